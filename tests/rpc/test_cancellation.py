"""
Nobody waits for it any more: work that is not computed yet is dropped, batch-mates get their answers, nothing is left.

That no task and no thread is left is checked by `running_server` itself, as it ends.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.rpc.running_server import RunningServer, busy_engine, embed, running_server, until
from tests.rpc.scripted_answers import check_embedding
from tests.scripted_engine import Script
from tests.small_repository import ids_of, make_repository

HYBRID = [pb.MODE_HYBRID]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(tmp_path: Path, script: Script) -> AsyncIterator[RunningServer]:
    async with running_server(make_repository(tmp_path), script) as server:
        yield server


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """That somebody went away is no error of the server: no traceback, no error in the log."""
    yield
    written = capfd.readouterr()
    assert "Traceback" not in written.out + written.err
    assert "[error" not in written.out + written.err
    assert not [record.message for record in caplog.get_records("call") if record.levelno >= logging.WARNING]


def start(server: RunningServer, *texts: str) -> "asyncio.Future[pb.EmbedResponse]":
    return asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=texts, modes=HYBRID)))


def computed_words(script: Script) -> set[int]:
    """The words that reached the engine."""
    return {token for batch in script.batches for token in batch.token_ids.tolist()} - {0, 2}


async def nothing_left(server: RunningServer) -> None:
    pipeline = server.pipeline()
    await until(lambda: pipeline.pending_requests == 0, "a request is still counted")
    await until(lambda: pipeline.queued_tokens == 0, "work is still queued")


async def test_a_cancelled_request_is_dropped_before_it_is_computed(server: RunningServer, script: Script) -> None:
    async with busy_engine(server, script) as wait_for_tokens:
        cancelled = start(server, "w10")
        await wait_for_tokens(3)
        kept = start(server, "w11")
        await wait_for_tokens(6)
        cancelled.cancel()
        # At once, while the engine is still busy: it must not count against the limits.
        await wait_for_tokens(3)
        pipeline = server.pipeline()
        await until(lambda: pipeline.pending_requests == 2)
    check_embedding((await kept).embeddings[0], ids_of("w11"))
    await nothing_left(server)
    assert computed_words(script) == {999, 11}


async def test_a_request_cancelled_in_the_engine_leaves_its_batch_mates_their_answers(
    server: RunningServer, script: Script
) -> None:
    async with busy_engine(server, script) as wait_for_tokens:
        calls = [start(server, f"w{word}", "w50") for word in (10, 11, 12)]
        await wait_for_tokens(18)
        script.before_run = lambda _: script.gate.clear()
        script.gate.set()
        await asyncio.to_thread(script.entered.acquire)
        pipeline = server.pipeline()
        calls[1].cancel()
        await until(lambda: pipeline.pending_requests == 2)
        script.before_run = lambda _: None
    for word, call in ((10, calls[0]), (12, calls[2])):
        check_embedding((await call).embeddings[0], ids_of(f"w{word}"))
    assert len(script.batches) == 2
    await nothing_left(server)


async def test_what_is_not_computed_yet_of_a_large_request_is_dropped(server: RunningServer, script: Script) -> None:
    script.gate.clear()
    texts = [f"w{number}" for number in range(100, 200)]
    large = start(server, *texts)
    await asyncio.to_thread(script.entered.acquire)
    pipeline = server.pipeline()
    await until(lambda: pipeline.queued_tokens == 3 * (100 - 16))
    large.cancel()
    await until(lambda: pipeline.queued_tokens == 0)
    script.gate.set()
    await nothing_left(server)
    assert len(script.batches) == 1


async def test_a_deadline_that_passes_in_the_queue_drops_the_request(server: RunningServer, script: Script) -> None:
    async with busy_engine(server, script) as wait_for_tokens:
        mate = start(server, "w11")
        await wait_for_tokens(3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stub.Embed(pb.EmbedRequest(texts=["w10"]), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await wait_for_tokens(3)
    check_embedding((await mate).embeddings[0], ids_of("w11"))
    await nothing_left(server)
    assert 10 not in computed_words(script)


async def test_a_request_with_time_left_is_answered(server: RunningServer) -> None:
    response = await server.stub.Embed(pb.EmbedRequest(texts=["w10"], modes=HYBRID), timeout=60)
    check_embedding(response.embeddings[0], ids_of("w10"))


async def test_a_cancelled_score_leaves_nothing(server: RunningServer, script: Script) -> None:
    async with busy_engine(server, script) as wait_for_tokens:
        call = server.stub.Score(pb.ScoreRequest(query="w10", passages=["w11", "w12"]))
        await wait_for_tokens(9)
        call.cancel()
        await wait_for_tokens(0)
    await nothing_left(server)
    assert computed_words(script) == {999}


def stream_message(name: str, *texts: str) -> pb.EmbedStreamRequest:
    return pb.EmbedStreamRequest(id=name, request=pb.EmbedRequest(texts=texts, modes=HYBRID), chunk_bytes=4096)


async def test_a_cancelled_stream_drops_all_its_requests(server: RunningServer, script: Script) -> None:
    async with busy_engine(server, script) as wait_for_tokens:
        call = server.stub.EmbedStream()
        for number in range(5):
            await call.write(stream_message(f"{number}", f"w{10 + number}"))
        await wait_for_tokens(15)
        call.cancel()
        await wait_for_tokens(0)
    await nothing_left(server)
    assert computed_words(script) == {999}


async def test_streams_cancelled_while_they_are_written_leave_nothing(server: RunningServer) -> None:
    for _ in range(10):
        call = server.stub.EmbedStream()
        for number in range(8):
            await call.write(stream_message(f"{number}", *["w10 " * 60] * 40))
        for _ in range(3):
            await call.read()
        call.cancel()
    await nothing_left(server)


async def test_deadlines_that_pass_on_both_sides_at_once_are_no_error(server: RunningServer, script: Script) -> None:
    """The server's own timer and the end of the call race: whoever wins, nobody is there to be answered."""

    async def embed_in_vain(number: int) -> grpc.StatusCode:
        call = server.stub.Embed(pb.EmbedRequest(texts=["w10"]), timeout=0.05 + number / 1000)
        return await call.code()

    async def stream_in_vain(number: int) -> grpc.StatusCode:
        call = server.stub.EmbedStream(timeout=0.05 + number / 1000)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(stream_message("x", "w10"))
        return await call.code()

    async with busy_engine(server, script):
        codes = await asyncio.gather(*map(embed_in_vain, range(20)), *map(stream_in_vain, range(20)))
        pipeline = server.pipeline()
        await until(lambda: pipeline.pending_requests == 1)
    assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}


async def test_a_stream_whose_deadline_passes_leaves_nothing(server: RunningServer, script: Script) -> None:
    async with busy_engine(server, script) as wait_for_tokens:
        call = server.stub.EmbedStream(timeout=0.2)
        await call.write(stream_message("x", "w10"))
        await wait_for_tokens(3)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await wait_for_tokens(0)
    await nothing_left(server)
    assert computed_words(script) == {999}


async def test_a_client_that_disappears_leaves_nothing(server: RunningServer, script: Script) -> None:
    async with busy_engine(server, script) as wait_for_tokens:
        async with grpc.aio.insecure_channel(server.target) as channel:
            call = EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(texts=["w10"]))
            await wait_for_tokens(3)
            call.cancel()
        await wait_for_tokens(0)
    await nothing_left(server)


async def test_dropped_requests_are_counted_once_each(server: RunningServer, script: Script) -> None:
    """Also one that is tokenized in several rounds and waits in several slices."""
    long = " " * 200_000
    async with busy_engine(server, script) as wait_for_tokens:
        calls = [start(server, *[f"w{word}" + long] * 5) for word in (10, 11)]
        await wait_for_tokens(30)
        for call in calls:
            call.cancel()
        await wait_for_tokens(0)
    await nothing_left(server)
    assert server.metric("trivec_dropped_requests_total") == 2


async def test_a_request_at_fault_is_not_counted_as_dropped(server: RunningServer, script: Script) -> None:
    long = " " * 200_000
    async with busy_engine(server, script):
        (outcome,) = await asyncio.gather(start(server, *["w10" + long] * 5, "w10 " * 100), return_exceptions=True)
        assert "texts[5]" in str(outcome)
    await nothing_left(server)
    assert server.metric("trivec_dropped_requests_total") == 0


async def test_of_many_requests_cancelled_at_random_all_others_are_answered_right(
    server: RunningServer, script: Script
) -> None:
    random = np.random.default_rng(5)
    texts = [
        [" ".join(f"w{word}" for word in random.integers(10, 900, random.integers(0, 30))) for _ in range(rows)]
        for rows in random.integers(1, 40, 150)
    ]
    calls = [start(server, *each) for each in texts]
    doomed = set(random.choice(len(calls), 60, replace=False).tolist())
    for number in doomed:
        for _ in range(int(random.integers(0, 20))):
            await asyncio.sleep(0)
        calls[number].cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for number, (each, outcome) in enumerate(zip(texts, outcomes, strict=True)):
        if number in doomed and isinstance(outcome, BaseException):
            continue
        assert isinstance(outcome, pb.EmbedResponse)
        for text, embedding in zip(each, outcome.embeddings, strict=True):
            check_embedding(embedding, ids_of(text))
    await nothing_left(server)
