"""
Requests at fault: the code, the field with its index and the limit, in the message and in google.rpc.BadRequest.

Every fault of an EmbedRequest is sent alone and on a stream, where it must leave the stream open.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from trivec.v1 import embedding_pb2 as pb
from trivec_server.settings import Limits

from tests.raw_messages import field_bytes
from tests.rpc.failures import Failure, failure_of, read_status
from tests.rpc.running_server import RunningServer, embed, running_server, until
from tests.scripted_engine import VOCABULARY_SIZE, Script, expected_dense
from tests.small_repository import MAX_TOKENS, ids_of, make_repository

INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED

LIMITS = Limits(
    max_texts_per_request=4, max_request_bytes=64 * 1024, max_response_bytes=2500, max_chunk_bytes=1024 * 1024
)
SERVICE = "/trivec.v1.EmbeddingService/"
OVERLONG = "w10 " * (MAX_TOKENS - 1)
FIELD = pb.EmbedRequest.DESCRIPTOR.fields_by_name
INVALID_TEXT = field_bytes(FIELD["texts"].number, b"caf\xe9")


@dataclass(frozen=True)
class Fault:
    """A request at fault, and what must be said of it. `field` None: the fault is not in a field."""

    request: Message | bytes
    field: str | None
    says: tuple[str, ...]
    code: grpc.StatusCode = INVALID_ARGUMENT

    @property
    def raw(self) -> bytes:
        return self.request if isinstance(self.request, bytes) else self.request.SerializeToString()


def ids(*tokens: int) -> pb.TokenIds:
    return pb.TokenIds(ids=tokens)


def asking(**fields: object) -> pb.EmbedRequest:
    """A good request but for these fields."""
    return pb.EmbedRequest(**({"texts": ["w10"]} | fields))  # type: ignore[arg-type]


EMBED_FAULTS = {
    "no texts": Fault(pb.EmbedRequest(), "texts", ("at least one text", "token_ids")),
    "texts and ids": Fault(asking(token_ids=[ids(0, 2)]), "token_ids", ("`texts`",)),
    "too many texts": Fault(asking(texts=["w10"] * 5), "texts", ("5", "at most 4", "split")),
    "too many ids": Fault(asking(texts=[], token_ids=[ids(0, 2)] * 5), "token_ids", ("5", "at most 4")),
    "text too long": Fault(
        asking(texts=["w10", "w11", OVERLONG]), "texts[2]", (f"{MAX_TOKENS + 1} tokens", f"{MAX_TOKENS}", "truncation")
    ),
    "text longer than asked": Fault(
        asking(texts=["w10", "w11 w12"], max_tokens=3), "texts[1]", ("4 tokens", "the 3 allowed")
    ),
    "ids too long": Fault(
        asking(texts=[], token_ids=[ids(0, *[10] * MAX_TOKENS, 2)]), "token_ids[0]", (f"{MAX_TOKENS + 2} tokens",)
    ),
    "id out of range": Fault(
        asking(texts=[], token_ids=[ids(0, 10, 2), ids(0, 11, VOCABULARY_SIZE, 2)]),
        "token_ids[1].ids[2]",
        (f"is {VOCABULARY_SIZE}", f"below {VOCABULARY_SIZE}"),
    ),
    "ids without <s>": Fault(asking(texts=[], token_ids=[ids(10, 2)]), "token_ids[0]", ("begin with 0 (<s>)",)),
    "ids without </s>": Fault(asking(texts=[], token_ids=[ids(0, 10)]), "token_ids[0]", ("end with 2 (</s>)",)),
    "no ids at all": Fault(asking(texts=[], token_ids=[ids(0, 2), ids()]), "token_ids[1]", ("begin with 0",)),
    "one id": Fault(asking(texts=[], token_ids=[ids(0)]), "token_ids[0]", ("begin with 0",)),
    "ids with an input type": Fault(
        asking(texts=[], token_ids=[ids(0, 2)], input_type=pb.INPUT_TYPE_QUERY), "input_type", ("token_ids",)
    ),
    "unknown model": Fault(asking(model="absent"), None, ("`absent`", "small"), NOT_FOUND),
    "unknown model of two lines": Fault(asking(model="a\nb\x1b"), None, (r"`a\nb\x1b`",), NOT_FOUND),
    "unknown version": Fault(asking(version=7), None, ("version 7", "small", "1"), NOT_FOUND),
    "negative version": Fault(asking(version=-1), "version", ("-1", "positive")),
    "unknown mode": Fault(asking(modes=[pb.MODE_DENSE, 9]), "modes[1]", ("is 9", "MODE_HYBRID")),
    "negative mode": Fault(asking(modes=[-1]), "modes[0]", ("is -1",)),
    "no mode beside a mode": Fault(asking(modes=[pb.MODE_DENSE, 0]), "modes[1]", ("MODE_UNSPECIFIED",)),
    "unknown encoding": Fault(asking(encoding=99), "encoding", ("is 99", "VECTOR_ENCODING_INT8")),
    "unknown truncation": Fault(asking(truncation=99), "truncation", ("is 99", "TRUNCATION_LEFT")),
    "unknown input type": Fault(asking(input_type=99), "input_type", ("is 99", "INPUT_TYPE_QUERY")),
    "negative sparse_min_weight": Fault(asking(sparse_min_weight=-0.5), "sparse_min_weight", ("-0.5", "at least 0")),
    "sparse_min_weight not a number": Fault(asking(sparse_min_weight=math.nan), "sparse_min_weight", ("nan",)),
    "sparse_min_weight infinite": Fault(asking(sparse_min_weight=math.inf), "sparse_min_weight", ("inf",)),
    "max_tokens too small": Fault(asking(max_tokens=1), "max_tokens", ("is 1", "at least 2")),
    "max_tokens too large": Fault(
        asking(max_tokens=MAX_TOKENS + 1), "max_tokens", (f"is {MAX_TOKENS + 1}", f"at most {MAX_TOKENS}")
    ),
    "priority too high": Fault(asking(priority=2), "priority", ("is 2", "1 to 1")),
    "request_id too long": Fault(asking(request_id="x" * 129), "request_id", ("128",)),
    "request_id not printable": Fault(asking(request_id="a\nb"), "request_id", ("printable ASCII",)),
    "request_id not ASCII": Fault(asking(request_id="é"), "request_id", ("printable ASCII",)),
}

UTF8_FAULTS = {
    "text not UTF-8": Fault(asking(texts=["w10"]).SerializeToString() + INVALID_TEXT, "texts[1]", ("UTF-8",)),
    "model not UTF-8": Fault(
        asking().SerializeToString() + field_bytes(FIELD["model"].number, b"\xff"), "model", ("UTF-8",)
    ),
}
NOT_A_MESSAGE = Fault(b"\xff\xff\xff", "request", ("trivec.v1.EmbedRequest",))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(make_repository(tmp_path), Script(), limits=LIMITS) as server:
        yield server


def check(failure: Failure, fault: Fault) -> None:
    assert failure.code is fault.code
    assert failure.request_id
    for words in fault.says:
        assert words in failure.message
    if fault.field is None:
        assert not failure.violations
    else:
        assert list(failure.violations) == [fault.field]
        assert fault.field in failure.message
        assert failure.violations[fault.field] in failure.message


def open_stream(server: RunningServer) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
    """A stream of raw bytes."""
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = server.channel.stream_stream(SERVICE + "EmbedStream")
    return method()


async def read(call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> pb.EmbedStreamResponse:
    raw: object = await call.read()
    assert isinstance(raw, bytes)
    return pb.EmbedStreamResponse.FromString(raw)


async def refused(server: RunningServer, method: str, raw: bytes) -> Failure:
    callable_: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(SERVICE + method)
    return await failure_of(callable_(raw))


@pytest.mark.parametrize("name", [*EMBED_FAULTS, *UTF8_FAULTS])
async def test_embed_names_the_fault(server: RunningServer, name: str) -> None:
    fault = (EMBED_FAULTS | UTF8_FAULTS)[name]
    check(await refused(server, "Embed", fault.raw), fault)


async def test_bytes_that_are_no_message_are_said_to_be_none(server: RunningServer) -> None:
    check(await refused(server, "Embed", NOT_A_MESSAGE.raw), NOT_A_MESSAGE)


@pytest.mark.parametrize("name", [*EMBED_FAULTS, *UTF8_FAULTS])
async def test_a_stream_names_the_fault_under_the_requests_id_and_stays_open(server: RunningServer, name: str) -> None:
    fault = (EMBED_FAULTS | UTF8_FAULTS)[name]
    request = pb.EmbedStreamRequest.DESCRIPTOR.fields_by_name["request"].number
    call = open_stream(server)
    await call.write(pb.EmbedStreamRequest(id="faulty").SerializeToString() + field_bytes(request, fault.raw))
    answer = await read(call)
    assert (answer.id, answer.final) == ("faulty", True)
    check(read_status(answer.error), fault)
    await call.write(pb.EmbedStreamRequest(id="good", request=asking()).SerializeToString())
    answer = await read(call)
    assert (answer.id, answer.HasField("response")) == ("good", True)
    await call.done_writing()
    end: object = await call.read()
    assert end is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


STREAM_FAULTS = {
    "no request": Fault(pb.EmbedStreamRequest(id="x"), "request", ("missing",)),
    "id too long": Fault(pb.EmbedStreamRequest(id="x" * 129, request=asking()), "id", ("129 bytes", "128")),
    "id too long in bytes": Fault(pb.EmbedStreamRequest(id="é" * 65, request=asking()), "id", ("130 bytes", "128")),
    "id not UTF-8": Fault(field_bytes(1, b"\xff"), "id", ("UTF-8",)),
    "chunk_bytes too small": Fault(
        pb.EmbedStreamRequest(request=asking(), chunk_bytes=4095), "chunk_bytes", ("is 4095", "4096", "1048576")
    ),
    "chunk_bytes too large": Fault(
        pb.EmbedStreamRequest(request=asking(), chunk_bytes=1024 * 1024 + 1), "chunk_bytes", ("1048576",)
    ),
    "not a message": Fault(b"\xff\xff", "request", ("trivec.v1.EmbedStreamRequest",)),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
async def test_faults_of_a_stream_message_itself_leave_the_stream_open(server: RunningServer, name: str) -> None:
    call = open_stream(server)
    await call.write(STREAM_FAULTS[name].raw)
    answer = await read(call)
    assert answer.final
    check(read_status(answer.error), STREAM_FAULTS[name])
    await call.write(pb.EmbedStreamRequest(id="good", request=asking()).SerializeToString())
    assert (await read(call)).id == "good"
    await call.done_writing()


def scoring(**fields: object) -> pb.ScoreRequest:
    return pb.ScoreRequest(**({"query": "w10", "passages": ["w11"]} | fields))  # type: ignore[arg-type]


PASSAGES = pb.ScoreRequest.DESCRIPTOR.fields_by_name["passages"].number
SCORE_FAULTS = {
    "no passages": Fault(pb.ScoreRequest(query="w10"), "passages", ("at least one",)),
    "too many passages": Fault(scoring(passages=["w10"] * 4), "passages", ("4", "at most 3")),
    "passage too long": Fault(scoring(passages=["w11", OVERLONG]), "passages[1]", (f"{MAX_TOKENS + 1} tokens",)),
    "query too long": Fault(scoring(query=OVERLONG), "query", (f"{MAX_TOKENS + 1} tokens",)),
    "passage not UTF-8": Fault(
        scoring(passages=["a", "b"]).SerializeToString() + field_bytes(PASSAGES, b"\xff"), "passages[2]", ("UTF-8",)
    ),
    "negative weight": Fault(
        scoring(weights=pb.ScoreWeights(dense=1, sparse=-2)), "weights.sparse", ("-2.0", "at least 0")
    ),
    "weight not a number": Fault(scoring(weights=pb.ScoreWeights(dense=math.nan)), "weights.dense", ("nan",)),
    "weight infinite": Fault(scoring(weights=pb.ScoreWeights(multi_vector=math.inf)), "weights.multi_vector", ("inf",)),
    "all weights zero": Fault(scoring(weights=pb.ScoreWeights()), "weights", ("all 0", "above 0")),
    "unknown truncation": Fault(scoring(truncation=9), "truncation", ("is 9",)),
    "max_tokens too small": Fault(scoring(max_tokens=1), "max_tokens", ("at least 2",)),
    "max_tokens too large": Fault(scoring(max_tokens=65), "max_tokens", ("at most 64",)),
    "priority too high": Fault(scoring(priority=2), "priority", ("is 2",)),
    "unknown model": Fault(scoring(model="absent"), None, ("absent",), NOT_FOUND),
    "request_id too long": Fault(scoring(request_id="x" * 129), "request_id", ("128",)),
}


@pytest.mark.parametrize("name", SCORE_FAULTS)
async def test_score_names_the_fault(server: RunningServer, name: str) -> None:
    check(await refused(server, "Score", SCORE_FAULTS[name].raw), SCORE_FAULTS[name])


def tokenizing(**fields: object) -> pb.TokenizeRequest:
    return pb.TokenizeRequest(**({"texts": ["w10"]} | fields))  # type: ignore[arg-type]


TOKENIZE_FAULTS = {
    "no texts": Fault(pb.TokenizeRequest(), "texts", ("at least one",)),
    "too many texts": Fault(tokenizing(texts=["w10"] * 5), "texts", ("at most 4",)),
    "text too long": Fault(tokenizing(texts=["w10", OVERLONG]), "texts[1]", (f"{MAX_TOKENS + 1} tokens",)),
    "text not UTF-8": Fault(
        field_bytes(pb.TokenizeRequest.DESCRIPTOR.fields_by_name["texts"].number, b"\xff"), "texts[0]", ("UTF-8",)
    ),
    "unknown input type": Fault(tokenizing(input_type=9), "input_type", ("is 9",)),
    "unknown truncation": Fault(tokenizing(truncation=9), "truncation", ("is 9",)),
    "max_tokens too small": Fault(tokenizing(max_tokens=1), "max_tokens", ("at least 2",)),
    "max_tokens too large": Fault(tokenizing(max_tokens=65), "max_tokens", ("at most 64",)),
    "unknown version": Fault(tokenizing(version=2), None, ("version 2",), NOT_FOUND),
    "request_id too long": Fault(tokenizing(request_id="x" * 129), "request_id", ("128",)),
}


@pytest.mark.parametrize("name", TOKENIZE_FAULTS)
async def test_tokenize_names_the_fault(server: RunningServer, name: str) -> None:
    check(await refused(server, "Tokenize", TOKENIZE_FAULTS[name].raw), TOKENIZE_FAULTS[name])


MODEL_FAULTS = {
    "unknown model": Fault(pb.GetModelRequest(model="absent"), None, ("absent", "small"), NOT_FOUND),
    "unknown version": Fault(pb.GetModelRequest(version=2), None, ("version 2",), NOT_FOUND),
    "negative version": Fault(pb.GetModelRequest(version=-3), "version", ("-3",)),
}


@pytest.mark.parametrize("name", MODEL_FAULTS)
async def test_get_model_names_the_fault(server: RunningServer, name: str) -> None:
    check(await refused(server, "GetModel", MODEL_FAULTS[name].raw), MODEL_FAULTS[name])


async def test_a_message_over_the_limit_is_refused_with_the_limit(server: RunningServer) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(server, asking(texts=["w" * LIMITS.max_request_bytes]))
    assert caught.value.code() is RESOURCE_EXHAUSTED
    assert str(LIMITS.max_request_bytes) in str(caught.value.details())


async def test_a_response_over_the_limit_is_refused_before_it_is_computed(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script, limits=LIMITS) as server:
        request = asking(texts=["w10 " * 40] * 4, modes=[pb.MODE_MULTI_VECTOR])
        failure = await failure_of(embed(server, request))
        assert not script.batches
    assert failure.code is RESOURCE_EXHAUSTED
    assert failure.retry_delay_s is None, "sent again unchanged it fails again"
    for words in ("2,500", "EmbedStream", "fewer texts", "`encoding`"):
        assert words in failure.message


async def test_token_strings_that_make_a_response_too_large_are_refused_with_the_limit(server: RunningServer) -> None:
    words = " ".join(f"w{number}" for number in range(100, 160))
    failure = await failure_of(
        embed(server, asking(texts=[words] * 4, modes=[pb.MODE_SPARSE, pb.MODE_DENSE], return_tokens=True))
    )
    assert failure.code is RESOURCE_EXHAUSTED
    assert "2,500" in failure.message


async def test_a_tokenize_response_over_the_limit_is_refused_with_the_limit(server: RunningServer) -> None:
    failure = await failure_of(server.stub.Tokenize(pb.TokenizeRequest(texts=["w100 " * 60] * 4)))
    assert failure.code is RESOURCE_EXHAUSTED
    assert "2,500" in failure.message


@pytest.mark.parametrize("name", ["x" * 20_000, "模" * 300, "模" * 6_000, "a\nb\x00"])
async def test_a_model_name_of_any_length_and_script_is_answered_with_not_found(
    server: RunningServer, name: str
) -> None:
    assert (await failure_of(embed(server, asking(model=name)))).code is NOT_FOUND


async def test_the_callers_request_id_is_in_the_error(server: RunningServer) -> None:
    failure = await failure_of(embed(server, asking(request_id="mine", version=9)))
    assert failure.request_id == "mine"


async def test_the_request_id_of_the_metadata_is_used_where_the_message_has_none(server: RunningServer) -> None:
    metadata = (("x-request-id", "from metadata"),)
    assert (await server.stub.Embed(asking(), metadata=metadata)).request_id == "from metadata"
    assert (await server.stub.Embed(asking(request_id="mine"), metadata=metadata)).request_id == "mine"


async def test_a_bad_request_id_in_the_metadata_does_not_fail_the_call(server: RunningServer) -> None:
    response = await server.stub.Embed(asking(), metadata=(("x-request-id", "x" * 200),))
    assert 0 < len(response.request_id) <= 128


async def test_a_missing_model_name_is_a_fault_where_there_is_no_default(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path, "one", "two"), Script()) as server:
        failure = await failure_of(embed(server, asking()))
    assert list(failure.violations) == ["model"]
    assert "one, two" in failure.message


async def test_the_default_model_answers_where_no_model_is_named(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path, "one", "two"), Script(), default_model="two") as server:
        assert (await embed(server, asking())).model == "two"


async def test_other_requests_in_flight_are_not_affected(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path), script, limits=LIMITS) as server:
        script.gate.clear()
        good = asyncio.ensure_future(embed(server, asking(texts=["w10 w11"])))
        await asyncio.to_thread(script.entered.acquire)
        for fault in (EMBED_FAULTS | UTF8_FAULTS).values():
            check(await refused(server, "Embed", fault.raw), fault)
        pipeline = server.pipeline()
        await until(lambda: pipeline.pending_requests == 1)
        script.gate.set()
        response = await good
    assert list(response.embeddings[0].dense.values) == expected_dense(ids_of("w10 w11")).tolist()
