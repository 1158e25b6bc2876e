"""EmbedStream: answers under their request's id, in parts, as they are ready, and never more than the client reads."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import grpc
import numpy as np
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec_server.settings import Limits

from tests.rpc.failures import read_status
from tests.rpc.running_server import RunningServer, running_server, until
from tests.rpc.scripted_answers import check_embedding, parts_of
from tests.scripted_engine import DIMENSION, Script, expected_multi_vector
from tests.small_repository import ids_of, make_repository
from tests.vector_decoding import row_numbers

HYBRID = [pb.MODE_HYBRID]
MIN_CHUNK_BYTES = 4096
ROW_BYTES = DIMENSION * 4


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(tmp_path: Path, script: Script) -> AsyncIterator[RunningServer]:
    async with running_server(make_repository(tmp_path), script) as server:
        yield server


def message(
    name: str, *texts: str, chunk_bytes: int = 0, modes: Iterable[pb.Mode.ValueType] = ()
) -> pb.EmbedStreamRequest:
    request = pb.EmbedRequest(texts=texts, modes=modes, encoding=pb.VECTOR_ENCODING_FLOAT32)
    return pb.EmbedStreamRequest(id=name, request=request, chunk_bytes=chunk_bytes)


async def ask(server: RunningServer, *messages: pb.EmbedStreamRequest) -> list[pb.EmbedStreamResponse]:
    """Sends all messages, ends the stream and reads all answers."""
    call = server.stub.EmbedStream(iter(messages))
    answers = [answer async for answer in call]
    assert await call.code() is grpc.StatusCode.OK
    return answers


def by_id(answers: list[pb.EmbedStreamResponse]) -> dict[str, list[pb.EmbedStreamResponse]]:
    grouped: dict[str, list[pb.EmbedStreamResponse]] = {}
    for answer in answers:
        grouped.setdefault(answer.id, []).append(answer)
    return grouped


class Stream:
    """A stream that is written and read step by step."""

    def __init__(self, server: RunningServer) -> None:
        self.call = server.stub.EmbedStream()

    async def write(self, request: pb.EmbedStreamRequest) -> None:
        await self.call.write(request)

    async def read(self) -> pb.EmbedStreamResponse:
        answer = await self.call.read()
        assert isinstance(answer, pb.EmbedStreamResponse), "the stream has ended"
        return answer

    async def finish(self) -> grpc.StatusCode:
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF
        return await self.call.code()


async def test_every_request_is_answered_under_its_id(server: RunningServer) -> None:
    texts = {f"id-{number}": f"w{number}" for number in range(10, 60)}
    answers = by_id(await ask(server, *(message(name, text, modes=HYBRID) for name, text in texts.items())))
    assert set(answers) == set(texts)
    for name, text in texts.items():
        (answer,) = answers[name]
        check_embedding(answer.response.embeddings[0], ids_of(text))
        assert answer.final


async def test_a_stream_without_requests_ends_well(server: RunningServer) -> None:
    assert await ask(server) == []


async def test_requests_of_the_same_id_are_all_answered(server: RunningServer) -> None:
    answers = await ask(server, message("x", "w10"), message("x", "w11"), message("", "w12"))
    assert sorted(answer.id for answer in answers) == ["", "x", "x"]


async def test_usage_timings_and_the_final_flag_are_in_the_last_message_only(server: RunningServer) -> None:
    request = message("x", *["w10 " * 60] * 20, chunk_bytes=MIN_CHUNK_BYTES, modes=HYBRID)
    answers = await ask(server, request)
    assert len(answers) > 2
    assert [answer.final for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert [answer.response.HasField("usage") for answer in answers] == [answer.final for answer in answers]
    assert [answer.response.HasField("timings") for answer in answers] == [answer.final for answer in answers]
    assert answers[-1].response.usage.total_tokens == 20 * 62


async def test_model_version_and_request_id_are_in_every_message(server: RunningServer) -> None:
    request = message("x", *["w10 " * 60] * 10, chunk_bytes=MIN_CHUNK_BYTES, modes=HYBRID)
    request.request.request_id = "mine"
    for answer in await ask(server, request):
        assert (answer.response.model, answer.response.version) == ("small", 1)
        assert answer.response.request_id == "mine"


async def test_a_large_answer_comes_in_chunks_that_follow_each_other(server: RunningServer) -> None:
    texts = [f"w{number} " * 60 for number in range(10, 30)]
    answers = await ask(server, message("x", *texts, chunk_bytes=MIN_CHUNK_BYTES, modes=HYBRID))
    rows: dict[int, list[np.typing.NDArray[np.float32]]] = {}
    last = -1
    for answer in answers:
        sent = 0
        for embedding in answer.response.embeddings:
            assert embedding.index >= last
            last = embedding.index
            seen = rows.setdefault(embedding.index, [])
            assert parts_of(embedding) == ({"dense", "sparse", "multi_vector"} if not seen else {"multi_vector"})
            assert embedding.multi_vector.first_row == sum(map(len, seen))
            assert embedding.multi_vector.total_rows == 61
            seen.append(row_numbers(embedding.multi_vector))
            sent += len(embedding.multi_vector.data)
        assert sent <= MIN_CHUNK_BYTES
    for index, text in enumerate(texts):
        np.testing.assert_array_equal(np.concatenate(rows[index]), expected_multi_vector(ids_of(text)))


async def test_chunks_are_as_large_as_asked_for(server: RunningServer) -> None:
    request = message("x", *["w10 " * 60] * 20, chunk_bytes=2 * MIN_CHUNK_BYTES, modes=[pb.MODE_MULTI_VECTOR])
    answers = await ask(server, request)
    sizes = [sum(len(each.multi_vector.data) for each in answer.response.embeddings) for answer in answers]
    assert sizes[:-1] == [2 * MIN_CHUNK_BYTES] * (len(sizes) - 1)
    assert sum(sizes) == 20 * 61 * ROW_BYTES


async def test_dense_answers_of_many_texts_are_chunked_too(server: RunningServer) -> None:
    texts = [f"w{number}" for number in range(10, 310)]
    answers = await ask(server, message("x", *texts, chunk_bytes=MIN_CHUNK_BYTES))
    embeddings = [embedding for answer in answers for embedding in answer.response.embeddings]
    assert len(answers) > 1
    assert [embedding.index for embedding in embeddings] == list(range(300))
    for text, embedding in zip(texts, embeddings, strict=True):
        check_embedding(embedding, ids_of(text), encoding=pb.VECTOR_ENCODING_FLOAT32)


async def test_a_request_computed_in_portions_has_the_right_indexes_and_usage(tmp_path: Path) -> None:
    """At most 16 MiB of results are computed at a time; how large they may become is told by the texts' characters."""
    limits = Limits(max_texts_per_request=10_000)
    texts = [f"w{10 + number % 900}" + " " * 60 for number in range(8_000)]
    repository = make_repository(tmp_path, config="max_batch_size: 1024\n")
    async with running_server(repository, Script(token_budget=10**6), limits=limits) as server:
        answers = await ask(server, message("x", *texts, modes=HYBRID))
    embeddings = [embedding for answer in answers for embedding in answer.response.embeddings]
    assert [embedding.index for embedding in embeddings] == list(range(8_000))
    for text, embedding in zip(texts[::97], embeddings[::97], strict=True):
        check_embedding(embedding, ids_of(text), encoding=pb.VECTOR_ENCODING_FLOAT32)
    assert [answer.final for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert answers[-1].response.usage.total_tokens == 3 * 8_000


async def test_a_fault_in_a_later_portion_ends_the_request_with_its_index(tmp_path: Path) -> None:
    limits = Limits(max_texts_per_request=10_000)
    texts = ["w10" + " " * 60] * 8_000 + ["w10 " * 100]
    repository = make_repository(tmp_path, config="max_batch_size: 1024\n")
    async with running_server(repository, Script(token_budget=10**6), limits=limits) as server:
        answers = await ask(server, message("x", *texts, modes=HYBRID))
        assert server.pipeline().pending_requests == 0
    assert [answer.HasField("error") for answer in answers] == [answer.final for answer in answers]
    assert list(read_status(answers[-1].error).violations) == ["texts[8000]"]


async def test_errors_of_one_request_leave_the_stream_open(server: RunningServer) -> None:
    stream = Stream(server)
    for name, text in (("bad", "w10 " * 100), ("good", "w10")):
        await stream.write(message(name, text))
        answer = await stream.read()
        assert (answer.id, answer.final) == (name, True)
        assert answer.HasField("error") == (name == "bad")
    assert await stream.finish() is grpc.StatusCode.OK


async def test_an_error_says_which_request_it_concerns(server: RunningServer) -> None:
    request = message("x", "w10 " * 100)
    request.request.request_id = "mine"
    (answer,) = await ask(server, request)
    failure = read_status(answer.error)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.request_id == "mine"


async def test_answers_leave_as_they_are_ready_not_in_order(tmp_path: Path) -> None:
    """While the engine of one model is held, requests to the other are answered."""
    held, free = Script(), Script()
    repository = make_repository(tmp_path, "held", "free")
    async with running_server(repository, {"held": held, "free": free}) as server:
        held.gate.clear()
        stream = Stream(server)
        for name in ("held", "free"):
            request = message(name, "w10")
            request.request.model = name
            await stream.write(request)
        assert (await stream.read()).id == "free"
        held.gate.set()
        assert (await stream.read()).id == "held"
        assert await stream.finish() is grpc.StatusCode.OK


async def test_requests_of_one_stream_share_batches(server: RunningServer, script: Script) -> None:
    script.gate.clear()
    stream = Stream(server)
    await stream.write(message("first", "w10"))
    await asyncio.to_thread(script.entered.acquire)
    for number in range(8):
        await stream.write(message(f"{number}", f"w{20 + number}"))
    pipeline = server.pipeline()
    await until(lambda: pipeline.queued_tokens == 8 * 3)
    script.gate.set()
    assert {(await stream.read()).id for _ in range(9)} == {"first", *map(str, range(8))}
    assert [len(batch.lengths) for batch in script.batches] == [1, 8]
    assert await stream.finish() is grpc.StatusCode.OK


async def test_no_more_requests_are_read_than_may_be_under_way(tmp_path: Path) -> None:
    script = Script()
    limits = Limits(max_stream_requests=3)
    async with running_server(make_repository(tmp_path), script, limits=limits) as server:
        script.gate.clear()
        stream = Stream(server)
        for number in range(10):
            await stream.write(message(f"{number}", f"w{20 + number}"))
        pipeline = server.pipeline()
        await until(lambda: pipeline.pending_requests == 3)
        other = await server.stub.ListModels(pb.ListModelsRequest())
        assert len(other.models) == 1
        assert pipeline.pending_requests == 3
        script.gate.set()
        assert {(await stream.read()).id for _ in range(10)} == set(map(str, range(10)))
        assert await stream.finish() is grpc.StatusCode.OK


async def test_a_client_that_does_not_read_is_not_read_either(tmp_path: Path) -> None:
    """Results wait for the client's flow control, and further requests are not computed meanwhile."""
    script, asked, rows = Script(), 120, 63
    limits = Limits(max_stream_requests=4)
    async with running_server(make_repository(tmp_path), script, limits=limits) as server:
        stream = Stream(server)
        request = message("x", *["w10 " * (rows - 1)] * 64, modes=HYBRID)

        async def write_all() -> None:
            for _ in range(asked):
                await stream.write(request)

        writing = asyncio.ensure_future(write_all())
        pipeline = server.pipeline()
        computed = await settled(script)
        assert pipeline.pending_requests == 0
        assert computed < asked * 64 / 2
        # The slow client loses nothing.
        finals = 0
        while finals < asked:
            finals += (await stream.read()).final
        await writing
        assert await stream.finish() is grpc.StatusCode.OK
    assert sum(len(batch.lengths) for batch in script.batches) == asked * 64


async def test_results_held_for_one_stream_are_bounded_in_bytes(tmp_path: Path) -> None:
    script = Script()
    limits = Limits(max_stream_requests=64, max_stream_result_bytes=10 * 16 * 1024)
    async with running_server(make_repository(tmp_path), script, limits=limits) as server:
        script.gate.clear()
        stream = Stream(server)
        # Each result takes some 16 KiB.
        for number in range(40):
            await stream.write(message(f"{number}", *["w10 w11 w12"] * 32, modes=[pb.MODE_MULTI_VECTOR]))
        pipeline = server.pipeline()
        await until(lambda: pipeline.pending_requests >= 3)
        held = pipeline.pending_requests
        assert held < 40
        script.gate.set()
        assert {(await stream.read()).id for _ in range(40)} == set(map(str, range(40)))
        assert await stream.finish() is grpc.StatusCode.OK


async def test_a_result_larger_than_all_room_is_answered_alone(tmp_path: Path) -> None:
    limits = Limits(max_stream_result_bytes=1)
    async with running_server(make_repository(tmp_path), Script(), limits=limits) as server:
        answers = await ask(server, *(message(f"{number}", "w10", modes=HYBRID) for number in range(5)))
    assert sorted(answer.id for answer in answers) == list("01234")


async def settled(script: Script) -> int:
    """Waits until the engine has stopped getting batches; the number of texts it got."""
    seen = -1
    while seen != len(script.batches):
        seen = len(script.batches)
        # Two hundred turns of the loop and of the engine's thread without a batch.
        for _ in range(200):
            await asyncio.sleep(0.001)
    return sum(len(batch.lengths) for batch in script.batches)
