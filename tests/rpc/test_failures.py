"""What an engine that fails does to requests: each failure concerns those it must, and no others."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec_server.backends.interface import EngineOutput, TokenBatch

from tests.rpc.failures import failure_of
from tests.rpc.running_server import RunningServer, busy_engine, embed, running_server
from tests.scripted_engine import Script, expected_dense
from tests.small_repository import ids_of, make_repository


def fail_on(token: int, error: BaseException, *, from_texts: int = 1) -> Callable[[TokenBatch], None]:
    """Raises for batches of at least `from_texts` texts in which the token occurs."""

    def before_run(batch: TokenBatch) -> None:
        if token in batch.token_ids and len(batch.lengths) >= from_texts:
            raise error

    return before_run


async def embed_together(
    server: RunningServer, script: Script, *requests: pb.EmbedRequest
) -> list[pb.EmbedResponse | BaseException]:
    """Sends requests so that all of them are in one batch."""
    async with busy_engine(server, script) as wait_for_tokens:
        calls = [asyncio.ensure_future(embed(server, request)) for request in requests]
        await wait_for_tokens(sum(len(ids_of(text)) for request in requests for text in request.texts))
    return await asyncio.gather(*calls, return_exceptions=True)


def dense_of(response: pb.EmbedResponse | BaseException, index: int = 0) -> list[float]:
    if isinstance(response, BaseException):
        raise response
    return list(response.embeddings[index].dense.values)


def right(text: str) -> list[float]:
    numbers: list[float] = expected_dense(ids_of(text)).tolist()
    return numbers


async def again(outcome: pb.EmbedResponse | BaseException) -> object:
    assert isinstance(outcome, BaseException)
    raise outcome


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path)


async def test_an_engine_that_raises_fails_its_batch_only(repository: Path) -> None:
    script = Script()
    async with running_server(repository, script) as server:
        script.before_run = fail_on(66, ValueError("secret of the engine"))
        failure = await failure_of(server.stub.Embed(pb.EmbedRequest(texts=["w66"], request_id="mine")))
        later = await server.stub.Embed(pb.EmbedRequest(texts=["w10"]))
    assert failure.code is grpc.StatusCode.INTERNAL
    assert failure.request_id == "mine"
    assert "secret" not in failure.message
    assert dense_of(later) == right("w10")


async def test_every_request_of_a_failed_batch_is_answered(repository: Path) -> None:
    script = Script()
    async with running_server(repository, script) as server:
        script.before_run = fail_on(66, ValueError("boom"))
        outcomes = await embed_together(server, script, pb.EmbedRequest(texts=["w66"]), pb.EmbedRequest(texts=["w10"]))
        codes = [(await failure_of(again(outcome))).code for outcome in outcomes]
        pipeline = server.pipeline()
        assert (pipeline.pending_requests, pipeline.queued_tokens) == (0, 0)
    assert codes == [grpc.StatusCode.INTERNAL] * 2


async def test_a_batch_that_does_not_fit_into_memory_is_run_in_halves(repository: Path) -> None:
    script = Script()
    async with running_server(repository, script) as server:
        script.before_run = lambda batch: _refuse_more_than(2, batch)
        texts = [f"w{number}" for number in range(10, 17)]
        response = await server.stub.Embed(pb.EmbedRequest(texts=texts))
        splits = server.metric("trivec_batch_splits_total")
    assert [dense_of(response, index) for index in range(7)] == [right(text) for text in texts]
    assert splits == 3


async def test_a_text_too_large_for_memory_fails_alone(repository: Path) -> None:
    script = Script()
    async with running_server(repository, script) as server:
        script.before_run = fail_on(66, MemoryError())
        outcomes = await embed_together(
            server,
            script,
            pb.EmbedRequest(texts=["w10", "w11"]),
            pb.EmbedRequest(texts=["w12", "w66"]),
            pb.EmbedRequest(texts=["w13"]),
        )
        failure = await failure_of(again(outcomes[1]))
    assert dense_of(outcomes[0], 1) == right("w11")
    assert dense_of(outcomes[2]) == right("w13")
    assert failure.code is grpc.StatusCode.INTERNAL
    assert "texts[1]: 3 tokens do not fit" in failure.message


async def test_a_row_that_is_not_finite_fails_its_request_only(repository: Path) -> None:
    script = Script()
    async with running_server(repository, script) as server:
        script.alter = spoil_dense_of(66)
        outcomes = await embed_together(
            server, script, pb.EmbedRequest(texts=["w10"]), pb.EmbedRequest(texts=["w11", "w66"])
        )
        failure = await failure_of(again(outcomes[1]))
        counted = server.metric("trivec_non_finite_rows_total")
    assert dense_of(outcomes[0]) == right("w10")
    assert failure.code is grpc.StatusCode.INTERNAL
    assert "texts[1]" in failure.message
    assert "not finite" in failure.message
    assert counted == 1


@pytest.mark.parametrize("mode", [pb.MODE_DENSE, pb.MODE_SPARSE, pb.MODE_MULTI_VECTOR])
async def test_numbers_that_are_not_finite_are_found_in_every_part(repository: Path, mode: pb.Mode.ValueType) -> None:
    script = Script()

    def spoil(output: EngineOutput, _: TokenBatch) -> EngineOutput:
        for part in (output.dense, output.token_weights, *(output.multi_vector or ())):
            if part is not None:
                part[..., -1] = np.inf
        return output

    async with running_server(repository, script) as server:
        script.alter = spoil
        failure = await failure_of(server.stub.Embed(pb.EmbedRequest(texts=["w10"], modes=[mode])))
    assert "not finite" in failure.message


async def test_one_failing_request_of_a_stream_leaves_the_others_alone(repository: Path) -> None:
    script = Script()
    async with running_server(repository, script) as server:
        script.before_run = fail_on(66, ValueError("boom"))
        call = server.stub.EmbedStream()
        outcomes: dict[str, pb.EmbedStreamResponse] = {}
        for name, text in (("bad", "w66"), ("good", "w10")):
            await call.write(pb.EmbedStreamRequest(id=name, request=pb.EmbedRequest(texts=[text])))
            response = await call.read()
            assert isinstance(response, pb.EmbedStreamResponse)
            outcomes[response.id] = response
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
    assert outcomes["bad"].error.code == grpc.StatusCode.INTERNAL.value[0]
    assert dense_of(outcomes["good"].response) == right("w10")


def _refuse_more_than(texts: int, batch: TokenBatch) -> None:
    if len(batch.lengths) > texts:
        raise MemoryError


def spoil_dense_of(token: int) -> Callable[[EngineOutput, TokenBatch], EngineOutput]:
    """Puts NaN into the dense vectors of texts with the token."""

    def alter(output: EngineOutput, batch: TokenBatch) -> EngineOutput:
        if output.dense is None:
            return output
        dense = output.dense.copy()
        start = 0
        for row, length in enumerate(batch.lengths.tolist()):
            if token in batch.token_ids[start : start + length]:
                dense[row, 0] = np.nan
            start += length
        return replace(output, dense=dense)

    return alter
