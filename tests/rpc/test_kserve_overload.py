"""What Triton gives one code for is told apart: a full queue, a timeout, a server that stops, a model not ready."""

import asyncio
from pathlib import Path

import grpc
import pytest
from inference import grpc_service_pb2 as pb
from trivec_server.settings import Limits
from trivec_server.types import BatchingSettings, QueuePolicy

from tests.rpc.inference_server import (
    InferenceServer,
    TensorModel,
    embed,
    floats,
    inference_server,
    output,
    refusal_of,
)
from tests.rpc.running_server import until
from tests.scripted_engine import Script
from tests.scripted_tensors import TensorScript
from tests.small_repository import make_repository

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def start(server: InferenceServer, request: pb.ModelInferRequest) -> "asyncio.Task[pb.ModelInferResponse]":
    return asyncio.ensure_future(server.infer(request))


def one_by_one(policy: QueuePolicy) -> TensorModel:
    return TensorModel(TensorScript(), BatchingSettings(max_batch_size=1, queue_policy=policy))


def queue_policy(policy: str) -> str:
    return f"max_batch_size: 1\ndynamic_batching {{ default_queue_policy {{ {policy} }} }}\n"


async def test_a_full_queue_is_unavailable_with_a_hint_when_to_come_back() -> None:
    model = one_by_one(QueuePolicy(max_queue_size=1))
    async with inference_server(tensors={"floats": model}) as server:
        model.script.gate.clear()
        running = start(server, floats([1]))
        await asyncio.to_thread(model.script.entered.acquire)
        waiting = start(server, floats([2]))
        pipeline = server.registry.resolve_any("floats", 0).pipeline
        await until(lambda: pipeline.pending_requests == 2)
        refusal = await refusal_of(server.infer(floats([3], request_id="mine")))
        model.script.gate.set()
        await asyncio.gather(running, waiting)
    assert refusal.code is UNAVAILABLE
    assert refusal.message.startswith("[request id: mine] Exceeds maximum queue size: 1 requests wait; ")
    assert refusal.reason == "QUEUE_FULL"
    assert refusal.retry_delay_s is not None
    assert refusal.retry_delay_s > 0


async def test_limits_of_the_server_are_a_full_queue_too(tmp_path: Path) -> None:
    script = Script()
    repository = make_repository(tmp_path)
    async with inference_server(repository, script, limits=Limits(max_queued_texts=1)) as server:
        script.gate.clear()
        running = start(server, embed("w10"))
        await asyncio.to_thread(script.entered.acquire)
        refusal = await refusal_of(server.infer(embed("w11")))
        script.gate.set()
        await running
    assert (refusal.code, refusal.reason) == (UNAVAILABLE, "QUEUE_FULL")
    assert refusal.message.startswith("[request id: <id_unknown>] Exceeds maximum queue size: 1 texts are under way")


async def test_the_queues_timeout_is_unavailable() -> None:
    model = one_by_one(QueuePolicy(timeout_us=500_000))
    async with inference_server(tensors={"floats": model}) as server:
        model.script.gate.clear()
        running = start(server, floats([1]))
        await asyncio.to_thread(model.script.entered.acquire)
        refusal = await refusal_of(server.infer(floats([2], request_id="mine")))
        model.script.gate.set()
        await running
    assert (refusal.code, refusal.message) == (UNAVAILABLE, "Request timeout expired")
    assert refusal.reason == "QUEUE_TIMEOUT"


@pytest.mark.parametrize("make", [lambda **about: floats([2], **about), lambda about: embed("w11", **about)])
async def test_a_requests_own_timeout_counts_where_the_policy_allows_it(tmp_path: Path, make: object) -> None:
    hour_us = 3_600_000_000
    model = one_by_one(QueuePolicy(timeout_us=hour_us, allow_timeout_override=True))
    policy = queue_policy(f"default_timeout_microseconds: {hour_us} allow_timeout_override: true")
    script = Script()
    repository = make_repository(tmp_path, config=policy)
    async with inference_server(repository, script, {"floats": model}) as server:
        for each in (script, model.script):
            each.gate.clear()
        running = [start(server, floats([1])), start(server, embed("w10"))]
        for gate in (script, model.script):
            await asyncio.to_thread(gate.entered.acquire)
        refusal = await refusal_of(server.infer(make(about={"timeout": 1000})))  # type: ignore[operator]
        for each in (script, model.script):
            each.gate.set()
        await asyncio.gather(*running)
    assert (refusal.code, refusal.message, refusal.reason) == (UNAVAILABLE, "Request timeout expired", "QUEUE_TIMEOUT")


async def test_the_callers_deadline_is_not_the_queues(tmp_path: Path) -> None:
    script = Script()
    async with inference_server(make_repository(tmp_path), script) as server:
        script.gate.clear()
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer"
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(embed("w10").SerializeToString(), timeout=0.05)
        script.gate.set()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_request_cancelled_in_the_queue_is_dropped_and_disturbs_no_other(tmp_path: Path) -> None:
    script = Script()
    async with inference_server(make_repository(tmp_path), script) as server:
        script.gate.clear()
        running = start(server, embed("w10"))
        await asyncio.to_thread(script.entered.acquire)
        waiting = start(server, embed("w11"))
        pipeline = server.registry.resolve("small", 0).pipeline
        await until(lambda: pipeline.pending_requests == 2)
        waiting.cancel()
        await until(lambda: pipeline.pending_requests == 1)
        script.gate.set()
        assert output(await running, "dense").shape[0] == 1
        assert len(script.batches) == 1


@pytest.mark.parametrize("levels", [0, 2])
async def test_a_priority_that_the_model_does_not_have_is_its_default(tmp_path: Path, levels: int) -> None:
    config = f"dynamic_batching {{ priority_levels: {levels} default_priority_level: {min(1, levels)} }}\n"
    async with inference_server(make_repository(tmp_path, config=config)) as server:
        for priority in (0, 1, 2, 9):
            assert output(await server.infer(embed("w10", priority=priority)), "dense").shape[0] == 1


async def test_the_higher_priority_goes_first(tmp_path: Path) -> None:
    script = Script()
    config = "max_batch_size: 1\ndynamic_batching { priority_levels: 2 default_priority_level: 2 }\n"
    async with inference_server(make_repository(tmp_path, config=config), script) as server:
        script.gate.clear()
        running = start(server, embed("w10"))
        await asyncio.to_thread(script.entered.acquire)
        pipeline = server.registry.resolve("small", 0).pipeline
        later = start(server, embed("w20"))
        await until(lambda: pipeline.queued_tokens == 3)
        first = start(server, embed("w30", priority=1))
        await until(lambda: pipeline.queued_tokens == 6)
        script.gate.set()
        await asyncio.gather(running, later, first)
        assert [batch.token_ids[1] for batch in script.batches] == [10, 30, 20]


async def test_a_server_that_stops_refuses_with_its_own_reason(tmp_path: Path) -> None:
    async with inference_server(make_repository(tmp_path)) as server:
        service = server.running.listener
        service.enter_drain()
        # Until it stops, requests are served; only readiness says no.
        assert output(await server.infer(embed("w10")), "dense").shape[0] == 1
        ready = await server.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)
        assert not ready.ready


async def test_requests_under_way_are_answered_by_a_server_that_stops(tmp_path: Path) -> None:
    script = Script()
    async with inference_server(make_repository(tmp_path), script) as server:
        script.gate.clear()
        running = start(server, embed("w10"))
        await asyncio.to_thread(script.entered.acquire)
        stopping = asyncio.ensure_future(server.running.listener.stop(30))
        script.gate.set()
        assert output(await running, "dense").shape[0] == 1
        await stopping
