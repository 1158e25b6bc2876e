"""Models that take tensors in a live repository: they have no manifest to say what is whole, and what has changed."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trivec_server.errors import LoadFailed
from trivec_server.repository.registry import TensorVersion
from trivec_server.serving.tensors.request import TensorTask

from tests.onnx_models import node, write_identity, write_onnx
from tests.rpc.live_repository import EVERYTHING, POLL, Clock, index, released, touch
from tests.rpc.running_server import RunningServer, running_server
from tests.scripted_engine import Script
from tests.small_repository import make_repository


def make_tensors(repository: Path, *, config: str = 'backend: "onnxruntime"\n') -> Path:
    """A model `tensors` whose output is its input; gives the directory of its version."""
    version = repository / "tensors" / "1"
    version.mkdir(parents=True)
    write_identity(version / "model.onnx")
    if config:
        (version.parent / "config.pbtxt").write_text(config)
    return version


def write_negation(path: Path) -> None:
    """Another model with the same input and output."""
    write_onnx(path, [node("Neg", "x", "y")], {"x": ("FP32", ("batch", "n"))}, {"y": ("FP32", ("batch", "n"))})


async def infer(server: RunningServer) -> list[float]:
    """What becomes of [1, 2]."""
    served = server.registry.resolve_any("tensors", 0)
    assert isinstance(served, TensorVersion)
    task = TensorTask("id", {"x": np.array([[1.0, 2.0]], np.float32)}, ("y",), 1)
    rows: list[float] = (await served.pipeline.infer(task)).outputs["y"][0].tolist()
    return rows


@pytest.mark.parametrize("config", ['backend: "onnxruntime"\n', ""], ids=["with a configuration", "without"])
async def test_a_model_is_loaded_once_its_files_have_looked_the_same_for_a_while(tmp_path: Path, config: str) -> None:
    clock = Clock()
    async with running_server(make_repository(tmp_path), Script(), settings=POLL, clock=clock) as server:
        version = make_tensors(tmp_path, config=config)
        content = (version / "model.onnx").read_bytes()
        for part in (content[:10], content[:20], content):
            (version / "model.onnx").write_bytes(part)
            clock.advance(15)
            assert await server.control.look_again() == POLL.repository_stability_s
        assert [state for name, _, state, _ in await index(server) if name == "tensors"] == ["UNAVAILABLE"]
        clock.advance(POLL.repository_stability_s)
        await server.control.look_again()
        assert await infer(server) == [1, 2]


async def test_at_the_start_polling_looks_twice_before_it_loads(tmp_path: Path) -> None:
    make_tensors(tmp_path)
    settings = replace(POLL, repository_stability_s=0.01)
    async with running_server(make_repository(tmp_path), Script(), settings=settings) as server:
        assert server.control.server_ready
        assert await infer(server) == [1, 2]


async def test_a_version_without_a_file_is_being_written(tmp_path: Path) -> None:
    clock = Clock()
    async with running_server(make_repository(tmp_path), Script(), settings=POLL, clock=clock) as server:
        make_tensors(tmp_path)
        (tmp_path / "tensors" / "2").mkdir()
        for _ in range(2):
            clock.advance(15)
            await server.control.look_again()
        assert await infer(server) == [1, 2]
        assert ("tensors", "2", "UNAVAILABLE", "being written: tensors/2: there is no file in it") in await index(
            server
        )


async def test_only_other_files_are_another_model(tmp_path: Path) -> None:
    version = make_tensors(tmp_path)
    async with running_server(make_repository(tmp_path), Script(), settings=EVERYTHING) as server:
        first = server.registry.resolve_any("tensors", 0)
        touch(version, 5_000_000_000)
        await server.control.load_model("tensors")
        assert server.registry.resolve_any("tensors", 0) is first
        write_negation(version / "model.onnx")
        touch(version, 1_000_000)
        await server.control.load_model("tensors")
        assert await infer(server) == [-1, -2]


async def test_a_file_that_is_no_model_leaves_what_serves(tmp_path: Path) -> None:
    version = make_tensors(tmp_path)
    async with running_server(make_repository(tmp_path), Script(), settings=EVERYTHING) as server:
        (version / "model.onnx").write_bytes(b"no model")
        with pytest.raises(LoadFailed, match="version 1 is at UNAVAILABLE state"):
            await server.control.load_model("tensors")
        assert await infer(server) == [1, 2]
        (entry,) = [each for each in await index(server) if each[0] == "tensors"]
        assert entry[2] == "READY"
        assert entry[3].startswith("reload failed: ")
        assert str(tmp_path) not in entry[3]


async def test_a_model_of_tensors_takes_no_default_away(tmp_path: Path) -> None:
    make_tensors(tmp_path)
    async with running_server(make_repository(tmp_path), Script(), settings=EVERYTHING) as server:
        assert server.registry.default_model == "small"


async def test_an_unloaded_model_of_tensors_is_released(tmp_path: Path) -> None:
    version = make_tensors(tmp_path)
    async with running_server(make_repository(tmp_path), Script(), settings=EVERYTHING) as server:
        shutil.rmtree(version.parent)
        await server.control.unload_model("tensors")
        await released(server)
        assert [each for each in await index(server) if each[0] == "tensors"] == [
            ("tensors", "1", "UNAVAILABLE", "unloaded")
        ]
