"""RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload: what clients may ask, and in which words it fails."""

from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest
from inference import grpc_service_pb2 as pb
from trivec_server.settings import ControlMode, ServeSettings

from tests.rpc.inference_server import InferenceServer, embed, inference_server, output, refusal_of
from tests.scripted_engine import Script
from tests.small_repository import make_repository

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
EXPLICIT = ServeSettings(model_control_mode=ControlMode.EXPLICIT)
ELSEWHERE = "'repository_name' specification is not supported"


def text(value: str) -> pb.ModelRepositoryParameter:
    return pb.ModelRepositoryParameter(string_param=value)


async def index(server: InferenceServer, *, ready: bool = False, repository: str = "") -> list[tuple[str, str, str]]:
    asked = pb.RepositoryIndexRequest(ready=ready, repository_name=repository)
    told = await server.call("RepositoryIndex", asked, pb.RepositoryIndexResponse)
    return [(model.name, model.version, model.state) for model in told.models]


Parameters = Mapping[str, pb.ModelRepositoryParameter]


async def load(
    server: InferenceServer, name: str, parameters: Parameters | None = None, *, repository: str = ""
) -> None:
    asked = pb.RepositoryModelLoadRequest(model_name=name, repository_name=repository, parameters=parameters)
    await server.call("RepositoryModelLoad", asked, pb.RepositoryModelLoadResponse)


async def unload(
    server: InferenceServer, name: str, parameters: Parameters | None = None, *, repository: str = ""
) -> None:
    asked = pb.RepositoryModelUnloadRequest(model_name=name, repository_name=repository, parameters=parameters)
    await server.call("RepositoryModelUnload", asked, pb.RepositoryModelUnloadResponse)


async def test_a_model_is_loaded_and_unloaded_by_calls(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, "small", "other")
    async with inference_server(repository, Script(), settings=EXPLICIT) as server:
        assert await index(server) == [("other", "", ""), ("small", "", "")]
        assert (await refusal_of(server.infer(embed("w10")))).code is grpc.StatusCode.NOT_FOUND
        await load(server, "small")
        assert await index(server) == [("other", "", ""), ("small", "1", "READY")]
        assert await index(server, ready=True) == [("small", "1", "READY")]
        assert output(await server.infer(embed("w10")), "dense").shape[0] == 1
        await load(server, "small")
        await unload(server, "small", {"unload_dependents": pb.ModelRepositoryParameter(bool_param=True)})
        refusal = await refusal_of(server.infer(embed("w10")))
        assert refusal.message == "Request for unknown model: 'small' has no available versions"
        assert await index(server, ready=True) == []
        await unload(server, "none")


async def test_a_config_may_come_with_the_load(tmp_path: Path) -> None:
    async with inference_server(make_repository(tmp_path), Script(), settings=EXPLICIT) as server:
        await load(server, "small", {"config": text('{"backend": "scripted", "max_batch_size": 3}')})
        asked = pb.ModelConfigRequest(name="small")
        told = await server.call("ModelConfig", asked, pb.ModelConfigResponse)
        assert told.config.max_batch_size == 3


async def test_readiness_follows_what_is_loaded(tmp_path: Path) -> None:
    async with inference_server(make_repository(tmp_path), Script(), settings=EXPLICIT) as server:
        asked = pb.ServerReadyRequest()
        assert (await server.call("ServerReady", asked, pb.ServerReadyResponse)).ready


@pytest.mark.parametrize(
    ("name", "parameters", "code", "message"),
    [
        ("none", {}, grpc.StatusCode.INTERNAL, "failed to load 'none', failed to poll from model repository"),
        (
            "small",
            {"config": pb.ModelRepositoryParameter(int64_param=5)},
            INVALID,
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            "small",
            {"config": pb.ModelRepositoryParameter()},
            INVALID,
            "invalid value type for load parameter 'config', expected string_param.",
        ),
        (
            "small",
            {"config": text("{}"), "file:1/x": text("red")},
            INVALID,
            "invalid value type for load parameter 'file:1/x', expected bytes_param.",
        ),
        ("small", {"colour": text("red")}, INVALID, "unrecognized load parameter 'colour'."),
        (
            "small",
            {"config": text("{")},
            grpc.StatusCode.INTERNAL,
            "failed to load 'small', failed to poll from model repository",
        ),
        (
            "small",
            {"config": text('{"backend": "absent"}')},
            INVALID,
            "load failed for model 'small': version 1 is at UNAVAILABLE state: ",
        ),
    ],
)
async def test_a_load_that_cannot_be_is_refused_in_tritons_words(
    tmp_path: Path,
    name: str,
    parameters: Parameters,
    code: grpc.StatusCode,
    message: str,
) -> None:
    async with inference_server(make_repository(tmp_path), Script(), settings=EXPLICIT) as server:
        refusal = await refusal_of(load(server, name, parameters))
    assert refusal.code is code
    assert refusal.message.startswith(message)


NO_NAMES = ["../outside/model", "/outside", "..", ".", "", ".hidden", "a/b", "a\0b", "a\nb", "x" * 256]


@pytest.mark.parametrize("name", [*NO_NAMES, "absolute"], ids=ascii)
async def test_files_of_a_load_are_written_nowhere_under_what_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    temporary = tmp_path / "temporary"
    (temporary / "outside").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    name = str(tmp_path / "absolute") if name == "absolute" else name
    files = {"config": text("{}"), "file:1/model.onnx": pb.ModelRepositoryParameter(bytes_param=b"x")}
    async with inference_server(make_repository(tmp_path / "repository"), Script(), settings=EXPLICIT) as server:
        refusal = await refusal_of(load(server, name, files))
        assert refusal.code is INVALID
        assert "needs a name of printable text without `/`, and no dot at its start" in refusal.message
        assert await index(server) == [("small", "", "")]
    assert [path.name for path in temporary.rglob("*")] == ["outside"]
    assert not (tmp_path / "absolute").exists()


async def test_unload_dependents_is_a_flag_and_nothing_else_matters(tmp_path: Path) -> None:
    async with inference_server(make_repository(tmp_path), Script(), settings=EXPLICIT) as server:
        refusal = await refusal_of(unload(server, "small", {"unload_dependents": text("yes")}))
        assert (refusal.code, refusal.message) == (
            INVALID,
            "invalid value type for 'unload_dependents' parameter, expected bool_param.",
        )
        await unload(server, "small", {"colour": text("red")})


@pytest.mark.parametrize("call", [load, unload])
async def test_in_other_modes_nothing_is_loaded_by_calls(tmp_path: Path, call: object) -> None:
    async with inference_server(make_repository(tmp_path), Script()) as server:
        refusal = await refusal_of(call(server, "small"))  # type: ignore[operator]
        assert await index(server) == [("small", "1", "READY")]
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "")
    assert refusal.message == "explicit model load / unload is not allowed if polling is enabled"


async def test_a_repositorys_name_is_not_supported(tmp_path: Path) -> None:
    async with inference_server(make_repository(tmp_path), Script(), settings=EXPLICIT) as server:
        for call in (
            index(server, repository="x"),
            load(server, "small", repository="x"),
            unload(server, "small", repository="x"),
        ):
            refusal = await refusal_of(call)
            assert (refusal.code, refusal.message) == (UNIMPLEMENTED, ELSEWHERE)
