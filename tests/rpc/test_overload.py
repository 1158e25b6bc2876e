"""Too much work: refused at once with a hint when to come back, and what was admitted is served."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec_server.settings import Limits

from tests.rpc.failures import Failure, failure_of, read_status
from tests.rpc.running_server import RunningServer, busy_engine, embed, running_server, until
from tests.rpc.scripted_answers import check_embedding
from tests.scripted_engine import Script
from tests.small_repository import ids_of, make_repository

RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
ONE_BY_ONE = "max_batch_size: 1\n"


def request(*texts: str, priority: int = 0) -> pb.EmbedRequest:
    return pb.EmbedRequest(texts=texts, priority=priority)


def start(server: RunningServer, *texts: str, priority: int = 0) -> "asyncio.Future[pb.EmbedResponse]":
    return asyncio.ensure_future(embed(server, request(*texts, priority=priority)))


def check_refusal(failure: Failure, *words: str) -> None:
    assert failure.code is RESOURCE_EXHAUSTED
    assert failure.retry_delay_s is not None
    assert 0 < failure.retry_delay_s <= 5
    for word in words:
        assert word in failure.message


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(max_queued_texts=3), ("1 texts are under way", "limit is 3")),
        (Limits(max_queued_bytes=24), ("bytes are under way", "limit is 24")),
    ],
    ids=["texts", "bytes"],
)
async def test_work_past_a_limit_is_refused_while_other_work_is_under_way(
    tmp_path: Path, limits: Limits, words: Sequence[str]
) -> None:
    script = Script()
    large = ("w100", "w101", "w102")
    async with running_server(make_repository(tmp_path), script, limits=limits) as server:
        async with busy_engine(server, script):
            check_refusal(await failure_of(embed(server, request(*large))), *words)
            assert server.pipeline().pending_requests == 1
        response = await embed(server, request(*large))
        refused = server.metric("trivec_rejected_requests_total")
    check_embedding(response.embeddings[2], ids_of("w102"))
    assert refused == 1


async def test_tokens_past_the_limit_are_refused(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script, limits=Limits(max_queued_tokens=5)) as server:
        async with busy_engine(server, script) as wait_for_tokens:
            waiting = start(server, "w10 w11 w12")
            await wait_for_tokens(5)
            check_refusal(await failure_of(embed(server, request("w13"))), "5 tokens wait", "limit is 5")
        check_embedding((await waiting).embeddings[0], ids_of("w10 w11 w12"))
        check_embedding((await embed(server, request("w13"))).embeddings[0], ids_of("w13"))


async def test_an_idle_server_takes_any_request_that_is_legal_by_itself(tmp_path: Path) -> None:
    limits = Limits(max_queued_texts=1, max_queued_bytes=1, max_queued_tokens=1)
    async with running_server(make_repository(tmp_path), Script(), limits=limits) as server:
        response = await embed(server, request(*(f"w{number}" for number in range(10, 60))))
    assert len(response.embeddings) == 50


async def test_a_refusal_on_a_stream_concerns_its_own_request(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script, limits=Limits(max_queued_texts=2)) as server:
        call = server.stub.EmbedStream()
        async with busy_engine(server, script) as wait_for_tokens:
            await call.write(pb.EmbedStreamRequest(id="admitted", request=request("w10")))
            await wait_for_tokens(3)
            await call.write(pb.EmbedStreamRequest(id="refused", request=request("w11")))
            answer = await call.read()
            assert isinstance(answer, pb.EmbedStreamResponse)
            assert answer.id == "refused"
            check_refusal(read_status(answer.error))
        answer = await call.read()
        assert isinstance(answer, pb.EmbedStreamResponse)
        assert (answer.id, answer.HasField("response")) == ("admitted", True)
        await call.done_writing()


async def test_score_is_refused_too(tmp_path: Path) -> None:
    script = Script()
    limits = Limits(max_queued_texts=2)
    async with running_server(make_repository(tmp_path), script, limits=limits) as server, busy_engine(server, script):
        check_refusal(await failure_of(server.stub.Score(pb.ScoreRequest(query="w10", passages=["w11"]))))


def queue_policy(policy: str) -> str:
    return f"max_batch_size: 1\ndynamic_batching {{ default_queue_policy {{ {policy} }} }}\n"


async def test_no_more_requests_wait_than_max_queue_size(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path, config=queue_policy("max_queue_size: 2")), script) as server:
        async with busy_engine(server, script) as wait_for_tokens:
            waiting = [start(server, "w10"), start(server, "w11")]
            await wait_for_tokens(6)
            check_refusal(await failure_of(embed(server, request("w12"))), "2 requests wait", "max_queue_size is 2")
        await asyncio.gather(*waiting)
        await embed(server, request("w12"))


async def test_each_priority_level_may_have_its_own_queue_size(tmp_path: Path) -> None:
    config = """
    max_batch_size: 1
    dynamic_batching {
      priority_levels: 2
      default_priority_level: 2
      priority_queue_policy { key: 2 value { max_queue_size: 1 } }
    }
    """
    script = Script()
    async with running_server(make_repository(tmp_path, config=config), script) as server:
        async with busy_engine(server, script) as wait_for_tokens:
            waiting = [start(server, "w10", priority=2)]
            await wait_for_tokens(3)
            check_refusal(await failure_of(embed(server, request("w11", priority=2))))
            waiting.append(start(server, "w12", priority=1))
            await wait_for_tokens(6)
        await asyncio.gather(*waiting)


async def test_the_queues_timeout_rejects_what_waits_while_the_engine_is_busy(tmp_path: Path) -> None:
    script = Script()
    # What keeps the engine busy is of another level, so that it does not time out before the engine takes it.
    config = """
    max_batch_size: 1
    dynamic_batching {
      priority_levels: 2
      default_priority_level: 1
      priority_queue_policy { key: 2 value { timeout_action: REJECT default_timeout_microseconds: 1000 } }
    }
    """
    async with running_server(make_repository(tmp_path, config=config), script) as server:
        async with busy_engine(server, script) as wait_for_tokens:
            failure = await failure_of(embed(server, request("w10", priority=2)))
            # The engine is still busy: the timeout needs no batch to end.
            assert not script.gate.is_set()
            await wait_for_tokens(0)
        # The request in the engine was longer under way, but not in the queue.
        assert len(script.batches) == 1
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "1000 us" in failure.message


async def test_a_request_of_which_a_part_is_computed_does_not_time_out_in_the_queue(tmp_path: Path) -> None:
    script = Script()
    config = queue_policy("timeout_action: REJECT default_timeout_microseconds: 500000")
    async with running_server(make_repository(tmp_path, config=config), script) as server:
        script.gate.clear()
        first = start(server, "w10", "w11")
        await asyncio.to_thread(script.entered.acquire)
        # This one is refused after the timeout of the first has passed too.
        assert (await failure_of(embed(server, request("w12")))).code is grpc.StatusCode.DEADLINE_EXCEEDED
        script.gate.set()
        assert len((await first).embeddings) == 2


async def test_with_delay_a_timeout_rejects_nothing(tmp_path: Path) -> None:
    script = Script()
    config = queue_policy("timeout_action: DELAY default_timeout_microseconds: 1")
    async with running_server(make_repository(tmp_path, config=config), script) as server:
        async with busy_engine(server, script) as wait_for_tokens:
            waiting = [start(server, "w10"), start(server, "w11")]
            await wait_for_tokens(6)
        for text, response in zip(("w10", "w11"), await asyncio.gather(*waiting), strict=True):
            check_embedding(response.embeddings[0], ids_of(text))


async def test_nothing_is_left_of_a_refused_request(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script, limits=Limits(max_queued_texts=1)) as server:
        async with busy_engine(server, script):
            for _ in range(5):
                await failure_of(embed(server, request("w10")))
        pipeline = server.pipeline()
        await until(lambda: pipeline.pending_requests == 0)
        assert pipeline.queued_tokens == 0
        assert len(script.batches) == 1


async def test_a_request_that_would_wait_in_vain_is_refused_while_the_engine_is_still_busy(tmp_path: Path) -> None:
    script = Script(before_run=lambda _: time.sleep(0.05))
    async with running_server(make_repository(tmp_path, config=ONE_BY_ONE), script) as server:
        # The engine's speed is known once it has worked off a queue.
        await asyncio.gather(*(start(server, "w10") for _ in range(4)))
        async with busy_engine(server, script) as wait_for_tokens:
            waiting = [start(server, "w10") for _ in range(40)]
            await wait_for_tokens(40 * 3)
            script.before_run = lambda _: None
            in_vain = server.stub.Embed(request("w11"), timeout=1.9)
            check_refusal(await failure_of(in_vain), "the answer would take about", "the deadline is in 1.")
            assert not script.gate.is_set()
            patient = asyncio.ensure_future(embed(server, request("w12")))
            await wait_for_tokens(41 * 3)
        await asyncio.gather(*waiting, patient)
        assert server.metric("trivec_rejected_requests_total") == 1


async def test_a_wait_beyond_the_limit_is_refused_without_a_deadline_too(tmp_path: Path) -> None:
    script = Script(before_run=lambda _: time.sleep(0.05))
    repository = make_repository(tmp_path, config=ONE_BY_ONE)
    async with running_server(repository, script, limits=Limits(max_queue_time_s=0.5)) as server:
        await asyncio.gather(*(start(server, "w10") for _ in range(4)))
        async with busy_engine(server, script):
            waiting = [start(server, "w10") for _ in range(11)]
            await until(
                lambda: server.metric("trivec_rejected_requests_total") > 0 or server.pipeline().queued_tokens >= 33
            )
            script.before_run = lambda _: None
            check_refusal(await failure_of(embed(server, request("w11"))), "s of work wait", "the limit is 0.5 s")
        await asyncio.gather(*waiting, return_exceptions=True)
