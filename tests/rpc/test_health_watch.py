"""Watches of health: who does not read theirs holds up nobody, and there may only be so many."""

import asyncio
import fcntl
import struct
import termios
from pathlib import Path

import grpc
import h2.settings
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from trivec.v1 import embedding_pb2 as pb
from trivec_server.settings import Limits

from tests.raw_http2 import EMBED_STREAM, RawClient, framed
from tests.rpc.failures import failure_of
from tests.rpc.running_server import RunningServer, embed, running_server, until
from tests.scripted_engine import Script
from tests.small_repository import make_repository

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ALL = health_pb2.HealthCheckRequest(service="")
ENDLESS = 2**31 - 1
PATIENCE_S = 10.0

Watch = grpc.aio.UnaryStreamCall[object, health_pb2.HealthCheckResponse]


def watch(channel: grpc.aio.Channel) -> Watch:
    call: Watch = health_pb2_grpc.HealthStub(channel).Watch(ALL, timeout=PATIENCE_S)
    return call


async def next_status(call: Watch) -> int:
    response = await call.read()
    assert isinstance(response, health_pb2.HealthCheckResponse)
    return int(response.status)


async def check(server: RunningServer) -> int:
    response = await health_pb2_grpc.HealthStub(server.channel).Check(ALL, timeout=PATIENCE_S)
    return int(response.status)


def leave_unread(target: str) -> RawClient:
    """A client that has asked for megabytes and reads none of them."""
    client = RawClient(target)
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: ENDLESS})
    client.h2.increment_flow_control_window(ENDLESS - 65535)
    client.flush()
    client.read()
    question = reflection_pb2.ServerReflectionRequest(file_containing_symbol="trivec.v1.EmbeddingService")
    stream = client.begin(REFLECTION)
    for _ in range(8):
        client.send(stream, framed(question.SerializeToString()) * 150)
    return client


def arrived_bytes(client: RawClient) -> int:
    """How much waits to be read."""
    return int(struct.unpack("i", fcntl.ioctl(client.socket, termios.FIONREAD, bytes(4)))[0])


async def until_stuck(client: RawClient) -> None:
    """Waits until the server can send the client no more."""
    seen = -1
    while (arrived := arrived_bytes(client)) != seen or not arrived:
        seen = arrived
        await asyncio.sleep(0.5)


async def test_a_watcher_that_does_not_read_holds_up_no_other_and_no_drain(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path), Script()) as server:
        early = watch(server.channel)
        assert await next_status(early) == SERVING
        stuck = await asyncio.to_thread(leave_unread, server.target)
        try:
            await until_stuck(stuck)
            stream = stuck.begin(WATCH)
            stuck.send(stream, framed(ALL.SerializeToString()), ends=True)
            # Many, because nobody can tell when the stuck one begins.
            for _ in range(300):
                late = watch(server.channel)
                assert await next_status(late) == SERVING
                late.cancel()
            late = watch(server.channel)
            assert await next_status(late) == SERVING
            server.listener.enter_drain()
            assert await next_status(early) == NOT_SERVING
            assert await next_status(late) == NOT_SERVING
        finally:
            stuck.socket.close()


async def test_watches_are_limited_in_all_and_on_each_connection(tmp_path: Path) -> None:
    limits = Limits(max_concurrent_calls=8)
    async with running_server(make_repository(tmp_path), Script(), limits=limits) as server:
        channels = [
            grpc.aio.insecure_channel(server.target, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(5)
        ]
        watches: list[Watch] = []
        for channel in channels[:4]:
            for _ in range(2):
                watches.append(watch(channel))
                assert await next_status(watches[-1]) == SERVING
        of_connection = await failure_of(watch(channels[0]).read())
        assert of_connection.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        in_all = await failure_of(watch(channels[4]).read())
        assert in_all.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert server.metric("trivec_refused_calls_total", reason="watches") == 2
        # Calls and Check are not those that pay for it, and a watch that ends makes room.
        await embed(server, pb.EmbedRequest(texts=["w10"]))
        assert await check(server) == SERVING
        watches[0].cancel()
        async with asyncio.timeout(PATIENCE_S):
            while (again := watch(channels[4])) and not await again.read():
                pass
        for channel in channels:
            await channel.close()


async def test_health_is_answered_where_no_more_calls_are_taken(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path), Script(), limits=Limits(max_concurrent_calls=2)) as server:
        streams: list[grpc.aio.StreamStreamCall[object, object]] = []
        for _ in range(2):
            streams.append(server.channel.stream_stream(EMBED_STREAM)())
            await streams[-1].write(pb.EmbedStreamRequest(request=pb.EmbedRequest(texts=["w10"])).SerializeToString())
            await streams[-1].read()
        failure = await failure_of(embed(server, pb.EmbedRequest(texts=["w10"])))
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await check(server) == SERVING
        for stream in streams:
            await stream.done_writing()


@pytest.mark.parametrize("method", [CHECK, WATCH])
async def test_a_question_that_does_not_arrive_is_given_up(tmp_path: Path, method: str) -> None:
    limits = Limits(request_timeout_s=0.2)
    async with running_server(make_repository(tmp_path), Script(), limits=limits) as server:
        client = await asyncio.to_thread(RawClient, server.target)
        with client:
            answer = await asyncio.to_thread(lambda: client.wait(client.begin(method)))
        assert answer.status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        await until(lambda: server.metric("trivec_refused_calls_total", reason="slow") == 1)


async def test_a_question_of_many_bytes_is_refused(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path), Script()) as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        failure = await failure_of(stub.Check(health_pb2.HealthCheckRequest(service="x" * 5000)))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 4096" in failure.message
