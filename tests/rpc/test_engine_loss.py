"""What becomes of requests, health and metrics when an engine dies: it is built anew, and nothing is lost."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from trivec.v1 import embedding_pb2 as pb
from trivec_server.backends.interface import EngineLost, TokenBatch
from trivec_server.repository.registry import State

from tests.rpc.failures import failure_of
from tests.rpc.running_server import RunningServer, embed, running_server, until
from tests.scripted_engine import Script, expected_dense
from tests.small_repository import ids_of, make_repository
from tests.vector_decoding import dense_numbers

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
TWO_INSTANCES = "instance_group { count: 2 kind: KIND_CPU }"


def dying(times: int) -> Callable[[TokenBatch], None]:
    """An engine that dies of its first batches."""
    left = times

    def run(_: TokenBatch) -> None:
        nonlocal left
        if left:
            left -= 1
            raise EngineLost("killed by signal 9")

    return run


def dying_of(token: int) -> Callable[[TokenBatch], None]:
    def run(batch: TokenBatch) -> None:
        if token in batch.token_ids:
            raise EngineLost("killed by signal 11")

    return run


async def health(server: RunningServer) -> int:
    response = await health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(service="small"))
    return int(response.status)


async def test_a_batch_that_loses_its_engine_is_computed_by_the_next_one(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script) as server:
        script.before_run = dying(1)
        response = await embed(server, pb.EmbedRequest(texts=["w10 w11", "w12"]))
        assert (dense_numbers(response.embeddings[1].dense) == expected_dense(ids_of("w12"))).all()
        assert server.metric("trivec_engine_restarts_total") == 1
        assert (script.built, script.closed) == (2, 1)


async def test_a_batch_that_kills_its_engine_twice_fails_alone_and_the_model_serves_on(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script) as server:
        script.before_run = dying_of(13)
        failure = await failure_of(embed(server, pb.EmbedRequest(texts=["w13"])))
        assert failure.code is grpc.StatusCode.INTERNAL
        assert "died twice on this batch" in failure.message
        await embed(server, pb.EmbedRequest(texts=["w14"]))
        assert await health(server) == SERVING


async def test_while_the_only_engine_is_built_anew_health_says_so_and_requests_wait(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script) as server:
        script.before_run = dying(1)
        script.building.clear()
        waiting = [asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=[f"w{word}"]))) for word in (20, 21)]
        await until(lambda: server.metric("trivec_model_ready") == 0)
        waiting.append(asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=["w22"]))))
        model = (await server.stub.GetModel(pb.GetModelRequest())).model
        assert model.state == pb.MODEL_STATE_READY
        assert model.state_reason == "0 of 1 engine instances at work, 1 being restarted"
        await until(lambda: server.metric("trivec_running_engines") == 0)
        assert await health(server) == NOT_SERVING
        script.building.set()
        for word, response in zip((20, 21, 22), await asyncio.gather(*waiting), strict=True):
            assert (dense_numbers(response.embeddings[0].dense) == expected_dense(ids_of(f"w{word}"))).all()
        await until(lambda: server.metric("trivec_model_ready") == 1)
        assert (await server.stub.GetModel(pb.GetModelRequest())).model.state_reason == ""


async def test_while_one_of_two_engines_is_built_anew_the_other_serves(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path, config=TWO_INSTANCES), script) as server:
        script.before_run = dying(1)
        script.building.clear()
        lost = asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=["w20"])))
        await until(lambda: server.metric("trivec_running_engines") == 1)
        await embed(server, pb.EmbedRequest(texts=["w21"]))
        assert await health(server) == SERVING
        script.building.set()
        await lost


async def test_an_engine_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script) as server:
        script.before_run = dying_of(13)
        codes = [(await failure_of(embed(server, pb.EmbedRequest(texts=["w13"])))).code for _ in range(3)]
        assert codes == [grpc.StatusCode.INTERNAL, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE]
        (record,) = server.registry.records()
        assert record.state is State.UNAVAILABLE
        assert "the engine has failed" in record.reason


async def test_what_a_given_up_engine_had_begun_goes_to_the_other_engine(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path, config=TWO_INSTANCES), script) as server:
        script.before_run = dying(1)
        script.device = "another"
        response = await embed(server, pb.EmbedRequest(texts=["w20"]))
        assert (dense_numbers(response.embeddings[0].dense) == expected_dense(ids_of("w20"))).all()
        await until(lambda: "failed" in server.registry.records()[0].reason)
        reason = (await server.stub.GetModel(pb.GetModelRequest())).model.state_reason
        assert reason.startswith("1 of 2 engine instances at work, 0 being restarted, 1 failed")


async def test_an_engine_does_not_come_back_on_another_device(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script) as server:
        script.before_run = dying(1)
        script.device = "another"
        failure = await failure_of(embed(server, pb.EmbedRequest(texts=["w20"])))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        await until(lambda: server.registry.records()[0].state is State.UNAVAILABLE)


async def test_lack_of_memory_lowers_the_budget_of_later_batches(tmp_path: Path) -> None:
    script = Script()

    def lack(batch: TokenBatch) -> None:
        if len(batch.token_ids) > 600:
            raise MemoryError

    async with running_server(make_repository(tmp_path), script) as server:
        assert server.metric("trivec_batch_token_budget") == script.token_budget
        script.before_run = lack
        texts = [" ".join(["w20"] * 60)] * 16
        await embed(server, pb.EmbedRequest(texts=texts))
        assert server.metric("trivec_batch_token_budget") == int(16 * 62 * 0.75)
        script.forget()
        await embed(server, pb.EmbedRequest(texts=texts))
        assert max(len(batch.token_ids) for batch in script.batches) <= 16 * 62 * 0.75


async def test_an_engine_that_dies_while_it_is_built_anew_is_built_once_more(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script) as server:
        script.before_run = dying(1)
        script.build_failures = 1
        await embed(server, pb.EmbedRequest(texts=["w20"]))
        assert script.built == 2


async def test_an_engine_that_dies_in_its_self_check_is_refused_with_the_reason(tmp_path: Path) -> None:
    script = Script()
    script.before_run = dying(1)
    async with running_server(make_repository(tmp_path), script) as server:
        model = (await server.stub.GetModel(pb.GetModelRequest())).model
        assert model.state == pb.MODEL_STATE_UNAVAILABLE
        assert model.state_reason == "the engine died while it was checked: killed by signal 9"
