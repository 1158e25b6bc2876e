"""Loads that bring a configuration or files along."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from trivec_server.errors import InvalidTensor, LoadError, LoadFailed, ModelNotInRepository
from trivec_server.repository.load_override import LoadOverride, OverrideDirectory, remove_leftovers

from tests.rpc.live_repository import (
    config_json,
    explicit,
    index,
    is_demonstration,
    prefix,
    released,
    serves,
    set_prefix,
)
from tests.rpc.running_server import until
from tests.scripted_engine import Script
from tests.small_repository import make_repository, make_version


async def test_a_configuration_of_a_load_counts_until_the_model_is_unloaded(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    parameters = {"query_prefix": {"string_value": "w30 "}}
    async with explicit(repository, Script()) as server:
        await server.control.load_model("small", LoadOverride(config_json=config_json(parameters=parameters)))
        assert await prefix(server) == "w30 "
        set_prefix(repository, "w20 ")
        await server.control.load_model("small")
        assert await prefix(server) == "w30 "
        await server.control.unload_model("small")
        await server.control.load_model("small")
        assert await prefix(server) == "w20 "


@pytest.mark.parametrize(
    "text",
    ["{", '{"colour": "red"}', config_json(name="other"), config_json(max_batch_size=-1), ""],
    ids=["no JSON", "unknown field", "another name", "wrong value", "nothing"],
)
async def test_a_wrong_configuration_of_a_load_is_refused_and_changes_nothing(tmp_path: Path, text: str) -> None:
    async with explicit(make_repository(tmp_path), Script()) as server:
        with pytest.raises(
            ModelNotInRepository, match=r"^failed to load 'small', failed to poll from model repository: config"
        ):
            await server.control.load_model("small", LoadOverride(config_json=text))
        assert await index(server) == [("small", "1", "READY", "")]


async def test_an_unknown_backend_of_a_load_is_named_and_what_serves_goes_on(tmp_path: Path) -> None:
    async with explicit(make_repository(tmp_path), Script()) as server:
        with pytest.raises(LoadFailed, match="version 1 is at UNAVAILABLE state: backend `absent` is not known"):
            await server.control.load_model("small", LoadOverride(config_json=config_json(backend="absent")))
        assert await serves(server) == 1


def files_of(directory: Path) -> dict[str, bytes]:
    return {f"{directory.name}/{path.name}": path.read_bytes() for path in directory.iterdir()}


async def test_files_of_a_load_take_the_place_of_the_repository_until_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    repository = make_repository(tmp_path / "repository")
    make_version(tmp_path / "7", demonstration=True)
    async with explicit(repository, Script()) as server:
        await server.control.load_model(
            "small", LoadOverride(config_json=config_json(), files=files_of(tmp_path / "7"))
        )
        assert await serves(server) == 7
        assert await is_demonstration(server)
        (place,) = temporary.iterdir()
        assert place.stat().st_mode & 0o077 == 0
        await server.control.load_model("small")
        assert await serves(server) == 1
        await released(server)
        await until(lambda: not list(temporary.iterdir()))
        assert ("small", "7", "UNAVAILABLE", "unloaded") in await index(server)


async def test_files_of_a_load_may_make_a_model_that_no_repository_has(tmp_path: Path) -> None:
    make_version(tmp_path / "1")
    async with explicit(make_repository(tmp_path / "repository"), Script()) as server:
        override = LoadOverride(config_json=config_json(), files=files_of(tmp_path / "1"))
        await server.control.load_model("new", override)
        assert await serves(server, "new") == 1
        await server.control.load_model("new", override)
        with pytest.raises(ModelNotInRepository):
            await server.control.load_model("new")
        assert await serves(server, "new") == 1
        await server.control.unload_model("new")


async def test_a_reason_does_not_tell_where_the_files_of_a_load_were_put(tmp_path: Path) -> None:
    make_version(tmp_path / "1")
    files = files_of(tmp_path / "1") | {"1/tokenizer.json": b"{}"}
    async with explicit(make_repository(tmp_path / "repository"), Script()) as server:
        with pytest.raises(LoadFailed, match=r"state: new/1/tokenizer\.json: truncated"):
            await server.control.load_model("new", LoadOverride(config_json=config_json(), files=files))


@pytest.mark.parametrize("path", ["../1/x", "1/../../x", "/etc/x", "", ".", "..", "1/..", "1/", "a\0b"], ids=repr)
async def test_a_file_of_a_load_cannot_leave_its_directory(tmp_path: Path, path: str) -> None:
    async with explicit(make_repository(tmp_path), Script()) as server:
        with pytest.raises(InvalidTensor, match="is not the path of a file in the model's directory"):
            await server.control.load_model("small", LoadOverride(config_json=config_json(), files={path: b"x"}))
        assert await index(server) == [("small", "1", "READY", "")]


async def test_files_without_a_configuration_are_refused(tmp_path: Path) -> None:
    async with explicit(make_repository(tmp_path), Script()) as server:
        with pytest.raises(InvalidTensor, match=r"^failed to load 'small'.*files need the parameter `config`"):
            await server.control.load_model("small", LoadOverride(files={"1/x": b"x"}))


async def test_a_load_of_files_without_a_version_says_so(tmp_path: Path) -> None:
    async with explicit(make_repository(tmp_path), Script()) as server:
        override = LoadOverride(config_json=config_json(), files={"model.py": b"x"})
        with pytest.raises(LoadFailed, match="at least one version must be available under the version policy of mode"):
            await server.control.load_model("small", override)
        assert await serves(server) == 1


@pytest.mark.parametrize("name", ["../outside", "/outside", "a\0b"], ids=ascii)
def test_a_directory_for_files_is_made_under_its_own_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(LoadError, match="is not a model name"):
        OverrideDirectory(name, {"1/x": b"x"})
    assert list(tmp_path.iterdir()) == []


_KILLED_SERVER = """
import os, sys, tempfile
from trivec_server.repository.load_override import OverrideDirectory
tempfile.tempdir = sys.argv[1]
OverrideDirectory("small", {"1/x": b"x"})
os.kill(os.getpid(), 9)
"""


def left_by_a_killed_server(temporary: Path) -> Path:
    subprocess.run([sys.executable, "-c", _KILLED_SERVER, str(temporary)], check=False)
    (left,) = temporary.iterdir()
    return left


async def test_files_that_a_killed_server_has_left_are_removed_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    left = left_by_a_killed_server(temporary)
    in_use = OverrideDirectory("small", {"1/x": b"x"})
    (temporary / "trivec-load-link").symlink_to(tmp_path)
    async with explicit(make_repository(tmp_path / "repository"), Script()):
        assert not left.exists()
        assert (in_use.path / "1" / "x").exists()
    in_use.remove()
    remove_leftovers()
    assert [path.name for path in temporary.iterdir()] == ["trivec-load-link"]


async def test_nothing_is_kept_of_files_that_could_not_be_loaded_under_a_name_of_their_own(tmp_path: Path) -> None:
    make_version(tmp_path / "1")
    files = files_of(tmp_path / "1") | {"1/tokenizer.json": b"{}"}
    async with explicit(make_repository(tmp_path / "repository"), Script()) as server:
        override = LoadOverride(config_json=config_json(), files=files)
        loads = [server.control.load_model("new", override) for _ in range(3)]
        refusals = await asyncio.gather(*loads, return_exceptions=True)
        assert [type(refusal) for refusal in refusals] == [LoadFailed] * 3
        assert server.control.server_ready
        assert await index(server) == [("small", "1", "READY", "")]
        await server.control.load_model("new", LoadOverride(config_json=config_json(), files=files_of(tmp_path / "1")))
        assert await serves(server, "new") == 1
