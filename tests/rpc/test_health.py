"""Health (Check and Watch, for every name), reflection, and what they say while models load and when they fail."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from trivec.v1 import embedding_pb2 as pb
from trivec_server.backends.interface import EngineOutput, TokenBatch

from tests.rpc.failures import failure_of
from tests.rpc.running_server import RunningServer, embed, loading_server, running_server
from tests.scripted_engine import Script
from tests.small_repository import make_repository

SERVICE = "trivec.v1.EmbeddingService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
Status = health_pb2.HealthCheckResponse.ServingStatus


async def check(server: RunningServer, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return int(response.status)


@asynccontextmanager
async def watching(server: RunningServer, name: str) -> AsyncIterator["Watch"]:
    stub = health_pb2_grpc.HealthStub(server.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service=name))
    try:
        yield Watch(call)
    finally:
        call.cancel()


class Watch:
    def __init__(self, call: "grpc.aio.UnaryStreamCall[object, health_pb2.HealthCheckResponse]") -> None:
        self._call = call

    async def next(self) -> int:
        """The next status; waits for it."""
        response = await self._call.read()
        assert isinstance(response, health_pb2.HealthCheckResponse)
        return int(response.status)

    async def ended(self) -> grpc.StatusCode:
        """How the watch ended, with nothing more said."""
        assert await self._call.read() is grpc.aio.EOF
        code = await self._call.code()
        assert isinstance(code, grpc.StatusCode)
        return code


@pytest.mark.parametrize("name", ["", SERVICE, "small", "small/1"])
async def test_every_name_is_serving_once_the_model_is_ready(tmp_path: Path, name: str) -> None:
    async with running_server(make_repository(tmp_path), Script()) as server:
        assert await check(server, name) == SERVING


async def test_live_is_serving_before_a_model_is_ready_and_while_the_server_drains(tmp_path: Path) -> None:
    script = Script()
    script.building.clear()
    async with loading_server(make_repository(tmp_path), script) as server, watching(server, "") as watch:
        assert await watch.next() == NOT_SERVING
        assert await check(server, "live") == SERVING
        script.building.set()
        assert await watch.next() == SERVING
        server.listener.enter_drain()
        assert await watch.next() == NOT_SERVING
        assert await check(server, "live") == SERVING


async def test_a_watcher_of_live_hears_of_no_drain_and_is_sent_away_with_the_others(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path), Script()) as server, watching(server, "live") as watch:
        assert await watch.next() == SERVING
        server.listener.enter_drain()
        assert await check(server, "") == NOT_SERVING
        async with asyncio.timeout(10):
            await server.listener.stop(60)
        assert await watch.ended() is grpc.StatusCode.OK


async def test_a_model_that_is_called_live_does_not_change_what_the_name_means(tmp_path: Path) -> None:
    script = Script()
    script.building.clear()
    async with loading_server(make_repository(tmp_path, "live"), script) as server:
        assert await check(server, "live/1") == NOT_SERVING
        assert await check(server, "live") == SERVING
        script.building.set()


@pytest.mark.parametrize("name", ["absent", "small/2", "small/", "/1", "trivec.v1"])
async def test_a_name_that_is_not_known_is_not_found(tmp_path: Path, name: str) -> None:
    async with running_server(make_repository(tmp_path), Script()) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(server, name)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        async with watching(server, name) as watch:
            assert await watch.next() == SERVICE_UNKNOWN


async def test_while_a_model_loads_the_port_is_open_and_nothing_is_serving(tmp_path: Path) -> None:
    script = Script()
    script.building.clear()
    async with loading_server(make_repository(tmp_path), script) as server:
        for name in ("", SERVICE, "small", "small/1"):
            assert await check(server, name) == NOT_SERVING
        failure = await failure_of(embed(server, pb.EmbedRequest(texts=["w10"])))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert "`small` version 1 is LOADING" in failure.message
        model = (await server.stub.GetModel(pb.GetModelRequest())).model
        assert model.state == pb.MODEL_STATE_LOADING
        script.building.set()
        async with watching(server, "small") as watch:
            while await watch.next() != SERVING:
                pass
        await embed(server, pb.EmbedRequest(texts=["w10"]))


@pytest.mark.parametrize("name", ["", SERVICE, "small", "small/1"])
async def test_watchers_hear_that_a_model_becomes_ready(tmp_path: Path, name: str) -> None:
    script = Script()
    script.building.clear()
    async with loading_server(make_repository(tmp_path), script) as server, watching(server, name) as watch:
        assert await watch.next() == NOT_SERVING
        script.building.set()
        assert await watch.next() == SERVING


async def test_the_first_ready_model_makes_the_server_serving(tmp_path: Path) -> None:
    slow, fast = Script(), Script()
    slow.building.clear()
    repository = make_repository(tmp_path, "a-fast", "b-slow")
    async with loading_server(repository, {"a-fast": fast, "b-slow": slow}) as server:
        async with watching(server, "") as watch:
            while await watch.next() != SERVING:
                pass
        assert await check(server, "a-fast") == SERVING
        assert await check(server, "b-slow") == NOT_SERVING
        response = await embed(server, pb.EmbedRequest(model="a-fast", texts=["w10"]))
        assert response.model == "a-fast"
        slow.building.set()


async def test_draining_makes_every_name_not_serving_for_good(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path), Script()) as server, watching(server, "small") as watch:
        assert await watch.next() == SERVING
        server.listener.enter_drain()
        assert await watch.next() == NOT_SERVING
        for record in server.registry.records():
            server.listener.announce(record)
        for name in ("", SERVICE, "small", "small/1"):
            assert await check(server, name) == NOT_SERVING
        # Calls are still accepted: balancers need a moment to see it.
        await embed(server, pb.EmbedRequest(texts=["w10"]))


def spoil(output: EngineOutput, _: TokenBatch) -> EngineOutput:
    assert output.token_weights is not None
    return replace(output, token_weights=np.zeros_like(output.token_weights))


async def test_a_model_that_fails_its_self_check_is_never_serving_and_others_are(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, "bad", "good")
    async with running_server(repository, {"bad": Script(alter=spoil), "good": Script()}) as server:
        assert await check(server, "bad") == NOT_SERVING
        assert await check(server, "bad/1") == NOT_SERVING
        assert await check(server, "good") == SERVING
        assert await check(server, "") == SERVING
        failure = await failure_of(embed(server, pb.EmbedRequest(model="bad", texts=["w10"])))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert "the sparse head is missing or untrained" in failure.message


async def test_without_a_ready_model_the_server_is_not_serving(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path), Script(alter=spoil)) as server:
        for name in ("", SERVICE, "small", "small/1"):
            assert await check(server, name) == NOT_SERVING


async def test_one_version_that_fails_leaves_the_model_serving_with_the_other(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, versions=(1, 2), config="version_policy { all {} }\n")
    (repository / "small" / "2" / "tokenizer.json").unlink()
    async with running_server(repository, Script()) as server:
        assert await check(server, "small/1") == SERVING
        assert await check(server, "small/2") == NOT_SERVING
        assert await check(server, "small") == SERVING
        assert (await embed(server, pb.EmbedRequest(texts=["w10"]))).version == 1


async def test_the_engine_of_a_version_that_fails_is_closed(tmp_path: Path) -> None:
    script = Script(alter=spoil)
    config = "instance_group { count: 2 kind: KIND_CPU }\n"
    async with running_server(make_repository(tmp_path, config=config), script):
        assert script.closed == 2


async def test_reflection_lists_the_services_and_describes_ours(tmp_path: Path) -> None:
    ours = (SERVICE, "inference.GRPCInferenceService")
    async with running_server(make_repository(tmp_path), Script()) as server:
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in ours),
        ]
        listed, *described = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    assert names == {*ours, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in described)


async def test_an_unknown_method_is_unimplemented(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path), Script()) as server:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(f"/{SERVICE}/Absent")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.ensure_future(method(b""))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_reflection_stream_without_questions_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path), Script()) as server:
        stream = reflection_pb2_grpc.ServerReflectionStub(server.channel).ServerReflectionInfo()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert await stream.read() is not grpc.aio.EOF
        async with asyncio.timeout(10):
            await server.listener.stop(60)
        assert await stream.code() is grpc.StatusCode.OK
