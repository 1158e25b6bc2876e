"""Which models are loaded first, which is the default, and when the server is ready."""

from dataclasses import replace
from pathlib import Path

import pytest
from inference import grpc_service_pb2 as kserve
from trivec.v1 import embedding_pb2 as pb
from trivec_server.errors import LoadFailed, ModelNotInRepository
from trivec_server.settings import ServeSettings

from tests.rpc.failures import failure_of
from tests.rpc.live_repository import (
    EXPLICIT,
    explicit,
    index,
    reason,
    serves,
)
from tests.rpc.running_server import embed, loading_server, running_server
from tests.scripted_engine import Script
from tests.small_repository import make_repository, make_version


@pytest.mark.parametrize(("names", "loaded"), [(("a",), {"a"}), (("*",), {"a", "b"}), (("a", "b"), {"a", "b"})])
async def test_at_the_start_the_models_named_are_loaded(
    tmp_path: Path, names: tuple[str, ...], loaded: set[str]
) -> None:
    settings = replace(EXPLICIT, load_models=names)
    async with running_server(make_repository(tmp_path, "a", "b"), Script(), settings=settings) as server:
        assert {name for name, _, state, _ in await index(server) if state == "READY"} == loaded


async def test_a_model_of_two_repositories_is_unavailable_and_others_serve(tmp_path: Path) -> None:
    roots = (make_repository(tmp_path / "one", "a", "b"), make_repository(tmp_path / "two", "b", "c"))
    async with running_server(tmp_path, Script(), settings=ServeSettings(model_repositories=roots)) as server:
        twice = ("b", "", "UNAVAILABLE", "model appears in two or more repositories")
        assert await index(server) == [("a", "1", "READY", ""), twice, ("c", "1", "READY", "")]
        failure = await failure_of(embed(server, pb.EmbedRequest(model="b", texts=["w10"])))
        assert failure.code.name == "UNAVAILABLE"
        assert not server.control.server_ready


async def test_a_model_of_two_repositories_cannot_be_loaded(tmp_path: Path) -> None:
    roots = (make_repository(tmp_path / "one", "a"), make_repository(tmp_path / "two", "a"))
    async with running_server(tmp_path, Script(), settings=replace(EXPLICIT, model_repositories=roots)) as server:
        assert await index(server) == [("a", "", "UNAVAILABLE", "model appears in two or more repositories")]
        with pytest.raises(ModelNotInRepository, match="model appears in two or more repositories"):
            await server.control.load_model("a")


async def test_requests_without_a_name_follow_what_is_loaded(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path, "a", "b"), Script(), settings=EXPLICIT) as server:
        nameless = pb.EmbedRequest(texts=["w10"])
        assert "there is no default model" in (await failure_of(embed(server, nameless))).message
        await server.control.load_model("a")
        await server.control.load_model("b")
        assert (await embed(server, nameless)).model == "a"
        await server.control.unload_model("a")
        assert (await embed(server, nameless)).model == "b"


async def test_a_model_of_which_nothing_serves_keeps_a_strict_server_from_being_ready(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, "bad", "good")
    (repository / "bad" / "1" / "tokenizer.json").unlink()
    async with running_server(repository, Script()) as server:
        assert not server.control.server_ready
        assert [line.partition(":")[0] for line in server.control.failures()] == ["bad/1"]
    async with running_server(repository, Script(), settings=ServeSettings(strict_readiness=False)) as server:
        assert server.control.server_ready


async def test_the_server_is_not_ready_before_the_first_loading_is_over(tmp_path: Path) -> None:
    script = Script()
    script.building.clear()
    lax = ServeSettings(strict_readiness=False)
    async with loading_server(make_repository(tmp_path), script, settings=lax) as server:
        assert not server.control.server_ready
        script.building.set()
        await server.loading
        assert server.control.server_ready


async def test_a_failed_new_version_beside_one_that_serves_leaves_the_server_ready(tmp_path: Path) -> None:
    repository = make_repository(tmp_path)
    async with explicit(repository, Script()) as server:
        make_version(repository / "small" / "2")
        (repository / "small" / "2" / "manifest.json").unlink()
        with pytest.raises(LoadFailed, match=r"version 2 is at UNAVAILABLE state: small/2/manifest\.json: not found"):
            await server.control.load_model("small")
        assert await serves(server) == 1
        assert server.control.server_ready
        assert "small/2/manifest.json" in await reason(server, version=2)


async def test_a_model_that_cannot_be_served_is_not_the_default_in_place_of_one_that_is(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, "good")
    make_repository(tmp_path, "bad")
    config = repository / "bad" / "config.pbtxt"
    config.write_text(config.read_text().replace("scripted", "absent"))
    async with running_server(repository, Script()) as server:
        assert (await embed(server, pb.EmbedRequest(texts=["w10"]))).model == "good"


async def test_a_name_that_is_no_text_is_escaped_wherever_it_is_told(tmp_path: Path) -> None:
    (make_repository(tmp_path, "good") / b"bad\xff".decode(errors="surrogateescape") / "1").mkdir(parents=True)
    async with running_server(tmp_path, Script()) as server:
        shown = "'bad\\udcff'"
        assert [entry.name for entry in await server.control.index()] == [shown, "good"]
        listed = (await server.stub.ListModels(pb.ListModelsRequest())).models
        assert [model.name for model in listed] == [shown, "good"]
        asked = kserve.RepositoryIndexRequest()
        told = await server.channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryIndex",
            request_serializer=kserve.RepositoryIndexRequest.SerializeToString,
            response_deserializer=kserve.RepositoryIndexResponse.FromString,
        )(asked)
        assert [model.name for model in told.models] == [shown, "good"]
        assert b'model="good"' in server.metrics.exposition()


async def test_a_load_that_failed_leaves_the_server_ready_and_an_unload_takes_the_reason_away(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, "bad", "good")
    tokenizer = repository / "bad" / "1" / "tokenizer.json"
    content = tokenizer.read_bytes()
    tokenizer.unlink()
    async with running_server(repository, Script(), settings=replace(EXPLICIT, load_models=("good",))) as server:
        with pytest.raises(LoadFailed):
            await server.control.load_model("bad")
        assert server.control.server_ready
        assert "tokenizer.json" in await reason(server, "bad")
        await server.control.unload_model("bad")
        assert await index(server) == [("bad", "1", "UNAVAILABLE", "unloaded"), ("good", "1", "READY", "")]
        tokenizer.write_bytes(content)
        await server.control.load_model("bad")
        assert await serves(server, "bad") == 1
