"""What is wrong with a request, in Triton's codes, words and order of checks."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from inference import grpc_service_pb2 as pb
from trivec.v1 import embedding_pb2
from trivec_server.repository.registry import State
from trivec_server.settings import Limits
from trivec_server.types import BatchingSettings, ModelVersion

from tests.raw_messages import field_bytes
from tests.rpc.inference_server import (
    InferenceServer,
    TensorModel,
    elements,
    embed,
    floats,
    given,
    inference_server,
    output,
    refusal_of,
    request,
    wanted,
)
from tests.scripted_tensors import TensorScript, identity, sum_and_difference, without_batch_dimension
from tests.small_repository import make_repository

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
UNKNOWN_ID = "[request id: <id_unknown>] "
X = given("x", "FP32", (1, 2))
PAIR = (given("INPUT0", "INT32", (1, 16)), given("INPUT1", "INT32", (1, 16)))
ROW = bytes(64)
NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[InferenceServer]:
    """An embedding model `small`, and three that take tensors."""
    models = {"floats": identity("FP32"), "texts": identity("BYTES"), "simple": sum_and_difference()}
    tensors = {name: TensorScript(model=model) for name, model in models.items()}
    async with inference_server(make_repository(folder), tensors=tensors) as server:
        yield server


def contents(**fields: Any) -> pb.InferTensorContents:
    return pb.InferTensorContents(**fields)


def x(*shape: int, raw: bytes = b"", **about: Any) -> pb.ModelInferRequest:
    return request("floats", given("x", "FP32", shape), raw=[raw], **about)


def text(*shape: int, raw: bytes) -> pb.ModelInferRequest:
    return request("texts", given("x", "BYTES", shape), raw=[raw])


def shape_error(name: str, model: str, expected: str, got: str) -> str:
    return (
        f"{UNKNOWN_ID}unexpected shape for input '{name}' for model '{model}'. Expected {expected}, got {got}. {NOTE}"
    )


CASES: dict[str, tuple[pb.ModelInferRequest, grpc.StatusCode, str]] = {
    "unknown model": (floats([1], model="none"), NOT_FOUND, "Request for unknown model: 'none' is not found"),
    "no model": (floats([1], model=""), NOT_FOUND, "Request for unknown model: '' is not found"),
    "unknown version": (
        floats([1], version="9"),
        NOT_FOUND,
        "Request for unknown model: 'floats' version 9 is not found",
    ),
    "version zero": (floats([1], version="0"), NOT_FOUND, "Request for unknown model: 'floats' version 0 is not found"),
    "version that is no number": (
        floats([1], version="one"),
        INVALID,
        (
            "failed to get model version from specified version string 'one' (details: stol), version should be an "
            "integral value > 0"
        ),
    ),
    "version beyond 64 bits": (
        floats([1], version="9" * 20),
        INVALID,
        (
            f"failed to get model version from specified version string '{'9' * 20}' (details: stol), version should "
            "be an integral value > 0"
        ),
    ),
    "negative version": (
        floats([1], version="-2"),
        INVALID,
        "invalid model version specified '-2' , version should be an integral value > 0",
    ),
    "input twice": (
        request("floats", X, X, raw=[bytes(8), bytes(8)]),
        INVALID,
        f"{UNKNOWN_ID}input 'x' already exists in request",
    ),
    "contents beside raw contents": (
        request("floats", given("x", "FP32", (1, 2), contents(fp32_contents=[1, 2])), raw=[bytes(8)]),
        INVALID,
        "contents field must not be specified when using raw_input_contents for 'x' for model 'floats'",
    ),
    "no contents": (
        request("floats", X),
        INVALID,
        "unable to find data for input tensor 'x' for model 'floats' in request.",
    ),
    "too few raw buffers": (
        request("simple", *PAIR, raw=[ROW]),
        INVALID,
        "unable to find data for input tensor 'INPUT1' for model 'simple' in request.",
    ),
    "contents of another type": (
        request("floats", given("x", "FP32", (1, 2), contents(int64_contents=[1, 2]))),
        INVALID,
        (
            "unexpected explicit tensor data for input tensor 'x' for model 'floats' of type 'INT64', expected "
            "datatype 'FP32'"
        ),
    ),
    "contents of two types": (
        request("floats", given("x", "FP32", (1, 1), contents(fp32_contents=[1], bytes_contents=[b"1"]))),
        INVALID,
        "unexpected explicit tensor data for input tensor 'x' for model 'floats', binary data was already supplied.",
    ),
    "contents for an unknown type": (
        request("floats", given("x", "FLOAT", (1, 1), contents(fp32_contents=[1]))),
        INVALID,
        (
            "unexpected explicit tensor data for input tensor 'x' for model 'floats' of type 'FP32', expected datatype "
            "'<invalid>'"
        ),
    ),
    "unknown output": (
        floats([1], outputs=["z"]),
        INVALID,
        "unexpected inference output 'z' for model 'floats'",
    ),
    "unknown input": (
        request("floats", given("z", "FP32", (1, 1)), raw=[bytes(4)]),
        INVALID,
        "unexpected inference input 'z' for model 'floats'",
    ),
    "an input too many": (
        request("floats", X, given("z", "FP32", (1, 1)), raw=[bytes(8), bytes(4)]),
        INVALID,
        (
            f"{UNKNOWN_ID}expected 1 inputs but got 2 inputs for model 'floats'. Got input(s) ['z','x'], but missing "
            "required input(s) []. Please provide all required input(s)."
        ),
    ),
    "missing input": (
        request("floats"),
        INVALID,
        (
            f"{UNKNOWN_ID}expected 1 inputs but got 0 inputs for model 'floats'. Got input(s) [], but missing required "
            "input(s) ['x']. Please provide all required input(s)."
        ),
    ),
    "too many rows": (
        x(9, 1, raw=bytes(36)),
        INVALID,
        f"{UNKNOWN_ID}inference request batch-size must be <= 8 for 'floats'",
    ),
    "rows that differ": (
        request("simple", PAIR[0], given("INPUT1", "INT32", (2, 16)), raw=[ROW, ROW * 2]),
        INVALID,
        f"{UNKNOWN_ID}input 'INPUT0' batch size does not match other inputs for 'simple'",
    ),
    "no batch dimension": (
        x(raw=bytes(4)),
        INVALID,
        f"{UNKNOWN_ID}input 'x' has no shape but model requires batch dimension for 'floats'",
    ),
    "no rows": (
        x(0, 2),
        INVALID,
        f"{UNKNOWN_ID}input byte size mismatch for input 'x' for model 'floats'. Expected 8, got 0",
    ),
    "no rows, with a row's bytes": (
        x(0, 2, raw=bytes(8)),
        INVALID,
        f"{UNKNOWN_ID}inference request batch-size must be >= 1 for 'floats'",
    ),
    "wrong data type": (
        request("texts", given("x", "FP32", (1, 1)), raw=[bytes(4)]),
        INVALID,
        f"{UNKNOWN_ID}inference input 'x' data-type is 'FP32', but model 'texts' expects 'BYTES'",
    ),
    "unknown data type": (
        request("floats", given("x", "FLOAT", (1, 1)), raw=[bytes(4)]),
        INVALID,
        f"{UNKNOWN_ID}inference input 'x' data-type is '<invalid>', but model 'floats' expects 'FP32'",
    ),
    "wrong shape": (
        request("simple", given("INPUT0", "INT32", (1, 3)), PAIR[1], raw=[bytes(12), ROW]),
        INVALID,
        shape_error("INPUT0", "simple", "[-1,16]", "[1,3]"),
    ),
    "too many dimensions": (
        x(1, 2, 1, raw=bytes(8)),
        INVALID,
        shape_error("x", "floats", "[-1,-1]", "[1,2,1]"),
    ),
    "too few dimensions": (x(2, raw=bytes(8)), INVALID, shape_error("x", "floats", "[-1,-1]", "[2]")),
    "very many dimensions": (
        x(*[1] * 5000, raw=bytes(4)),
        INVALID,
        shape_error("x", "floats", "[-1,-1]", f"[{','.join('1' * 16)},...]"),
    ),
    "too few bytes": (
        x(1, 2, raw=bytes(7)),
        INVALID,
        f"{UNKNOWN_ID}input byte size mismatch for input 'x' for model 'floats'. Expected 8, got 7",
    ),
    "too many bytes": (
        x(1, 2, raw=bytes(9)),
        INVALID,
        f"{UNKNOWN_ID}input byte size mismatch for input 'x' for model 'floats'. Expected 8, got 9",
    ),
    "too few typed values": (
        request("floats", given("x", "FP32", (1, 2), contents(fp32_contents=[1]))),
        INVALID,
        f"{UNKNOWN_ID}input byte size mismatch for input 'x' for model 'floats'. Expected 8, got 4",
    ),
    "contents that are there and empty": (
        request("floats", given("x", "FP32", (1, 2), contents())),
        INVALID,
        f"{UNKNOWN_ID}input byte size mismatch for input 'x' for model 'floats'. Expected 8, got 0",
    ),
    "a dimension of -1": (
        x(1, -1, raw=bytes(4)),
        INVALID,
        f"{UNKNOWN_ID}All input dimensions should be specified for input 'x' for model 'floats', got [1,-1]",
    ),
    "a negative dimension": (
        x(1, -2, raw=bytes(8)),
        INVALID,
        f"{UNKNOWN_ID}input byte size mismatch for input 'x' for model 'floats'. Expected -8, got 8",
    ),
    "negative dimensions whose product fits": (
        x(-2, -2, raw=bytes(16)),
        INVALID,
        f"{UNKNOWN_ID}All input dimensions should be specified for input 'x' for model 'floats', got [-2,-2]",
    ),
    "2 GB of numbers in 4 bytes": (
        x(1, 2**29, raw=bytes(4)),
        INVALID,
        f"{UNKNOWN_ID}input byte size mismatch for input 'x' for model 'floats'. Expected {2**31}, got 4",
    ),
    "a size beyond 64 bits": (
        x(8, 2**62, raw=b""),
        INVALID,
        f"{UNKNOWN_ID}input byte size mismatch for input 'x' for model 'floats'. Expected {2**67}, got 0",
    ),
    "2 GB of texts in 5 bytes": (
        text(1, 2**31, raw=elements("a")),
        INVALID,
        f"{UNKNOWN_ID}expected {2**31} string elements for inference input 'x' for model 'texts', got 1",
    ),
    "elements too few": (
        text(1, 2, raw=elements("a")),
        INVALID,
        f"{UNKNOWN_ID}expected 2 string elements for inference input 'x' for model 'texts', got 1",
    ),
    "no elements": (
        text(1, 1, raw=b""),
        INVALID,
        f"{UNKNOWN_ID}expected 1 string elements for inference input 'x' for model 'texts', got 0",
    ),
    "elements too many": (
        text(1, 1, raw=elements("a", "b", "c")),
        INVALID,
        f"{UNKNOWN_ID}unexpected number of string elements 2 for inference input 'x' for model 'texts', expecting 1",
    ),
    "typed elements too many": (
        request("texts", given("x", "BYTES", (1, 1), contents(bytes_contents=[b"a", b"b"]))),
        INVALID,
        f"{UNKNOWN_ID}unexpected number of string elements 2 for inference input 'x' for model 'texts', expecting 1",
    ),
    "a length cut short": (
        text(1, 2, raw=elements("a") + b"\x01\x00"),
        INVALID,
        (
            f"{UNKNOWN_ID}incomplete string length indicator for inference input 'x' for model 'texts', expecting 4 "
            "bytes but only 2 bytes available. Please make sure the string length indicator is in one buffer."
        ),
    ),
    "a text cut short": (
        text(1, 1, raw=elements("hello")[:-2]),
        INVALID,
        "incomplete string data for inference input 'x', expecting string of length 5 but only 3 bytes available",
    ),
    "a length beyond its buffer": (
        text(1, 1, raw=b"\xff\xff\xff\xffabc"),
        INVALID,
        (
            "incomplete string data for inference input 'x', expecting string of length 4294967295 but only 3 bytes "
            "available"
        ),
    ),
    "elements where there are none": (
        text(1, 0, raw=bytes(4)),
        INVALID,
        f"{UNKNOWN_ID}unexpected number of string elements 1 for inference input 'x' for model 'texts', expecting 0",
    ),
    "too many texts for an embedding model": (
        embed(*["w10"] * 1025),
        INVALID,
        f"{UNKNOWN_ID}inference request batch-size must be <= 1024 for 'small'",
    ),
}


async def check(folder: Path, bad: pb.ModelInferRequest, code: grpc.StatusCode, message: str) -> None:
    async with serving(folder) as server:
        refusal = await refusal_of(server.infer(bad))
        # It goes on serving.
        assert output(await server.infer(floats([1.5])), "y").tolist() == [[1.5]]
    assert (refusal.code, refusal.message, refusal.reason) == (code, message, "")


@pytest.mark.parametrize("name", CASES)
async def test_a_bad_request_is_refused_in_tritons_words(tmp_path: Path, name: str) -> None:
    await check(tmp_path, *CASES[name])


def uint64(value: int) -> pb.InferParameter:
    return pb.InferParameter(uint64_param=value)


NO_SEQUENCES = "no model of this server keeps a sequence of requests together; leave the parameter out"
BAD_PARAMETERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"timeout": "soon"}, "invalid value type for 'timeout' parameter, expected int64_param."),
    ({"timeout": uint64(5)}, "invalid value type for 'timeout' parameter, expected int64_param."),
    ({"priority": "high"}, "invalid value type for 'priority' parameter, expected int64_param or uint64_param."),
    ({"priority": -1}, "invalid value for 'priority', expected value >= 0."),
    (
        {"sequence_id": True},
        "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
    ),
    ({"sequence_start": 1}, "invalid value type for 'sequence_start' parameter, expected bool_param."),
    ({"sequence_end": "yes"}, "invalid value type for 'sequence_end' parameter, expected bool_param."),
    ({"sequence_id": 5}, f"'sequence_id' is not supported: {NO_SEQUENCES}"),
    ({"sequence_id": "five"}, f"'sequence_id' is not supported: {NO_SEQUENCES}"),
    ({"sequence_start": True}, f"'sequence_start' is not supported: {NO_SEQUENCES}"),
    ({"sequence_end": True}, f"'sequence_end' is not supported: {NO_SEQUENCES}"),
    (
        {"triton_mine": 1},
        (
            "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting "
            "with 'triton_' are allowed: triton_enable_empty_final_response"
        ),
    ),
    (
        {"triton_enable_empty_final_response": 1},
        "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param.",
    ),
    (
        {"mine": pb.InferParameter()},
        "invalid value type for 'mine' parameter, expected int64_param, bool_param, or string_param.",
    ),
)


@pytest.mark.parametrize(("about", "message"), BAD_PARAMETERS, ids=[str(about) for about, _ in BAD_PARAMETERS])
@pytest.mark.parametrize("make", [lambda about: floats([1], about=about), lambda about: embed("w10", **about)])
async def test_a_bad_parameter_is_refused_in_tritons_words(
    tmp_path: Path,
    make: Callable[[dict[str, Any]], pb.ModelInferRequest],
    about: dict[str, Any],
    message: str,
) -> None:
    await check(tmp_path, make(about), INVALID, message)


@pytest.mark.parametrize(
    "about",
    [
        {"timeout": 0},
        {"timeout": -5},
        {"priority": 7},
        {"priority": uint64(2**63)},
        {"sequence_id": 0, "sequence_start": False, "sequence_end": False},
        {"sequence_id": ""},
        {"triton_enable_empty_final_response": True},
        {"headers": "x", "binary_data_output": True, "mine": 1.5},
    ],
    ids=str,
)
async def test_parameters_that_ask_for_nothing_special_are_taken(tmp_path: Path, about: dict[str, Any]) -> None:
    async with serving(tmp_path) as server:
        assert output(await server.infer(floats([1.5], about=about)), "y").tolist() == [[1.5]]
        assert output(await server.infer(embed("w10", outputs=["dense"], **about)), "dense").shape[0] == 1


WRONG = given("x", "FP64", (9, 1))
ORDER: dict[str, tuple[pb.ModelInferRequest, grpc.StatusCode, str]] = {
    "version before model": (floats([1], model="none", version="x"), INVALID, "failed to get model version"),
    "model before parameters": (floats([1], model="none", about={"timeout": "x"}), NOT_FOUND, "unknown model"),
    "parameters before inputs": (request("floats", X, X, about={"timeout": "x"}), INVALID, "'timeout'"),
    "names before data": (request("floats", X, X), INVALID, "already exists"),
    "data before outputs": (request("floats", X, outputs=["z"]), INVALID, "unable to find data"),
    "outputs' parameters before their names": (
        floats([1], outputs=["z", wanted("x", classification=0)]),
        INVALID,
        "'classification'",
    ),
    "outputs before inputs": (request("floats", outputs=["z"]), INVALID, "unexpected inference output 'z'"),
    "count before rows": (request("simple", given("INPUT0", "FP64", (9, 1)), raw=[b""]), INVALID, "expected 2 inputs"),
    "names before rows": (
        request("simple", given("z", "INT32", (3, 16)), PAIR[1], raw=[ROW, ROW]),
        INVALID,
        "unexpected inference input 'z'",
    ),
    "rows before types": (request("floats", WRONG, raw=[b""]), INVALID, "batch-size must be <= 8"),
    "types before shapes": (
        request("simple", given("INPUT0", "FP32", (1, 3)), PAIR[1], raw=[ROW, ROW]),
        INVALID,
        "data-type is 'FP32'",
    ),
    "shapes before sizes": (
        request("simple", given("INPUT0", "INT32", (1, 3)), PAIR[1], raw=[bytes(3), ROW]),
        INVALID,
        "unexpected shape for input 'INPUT0'",
    ),
}


@pytest.mark.parametrize("name", ORDER)
async def test_of_several_faults_the_one_is_named_that_triton_names(tmp_path: Path, name: str) -> None:
    bad, code, words = ORDER[name]
    async with serving(tmp_path) as server:
        refusal = await refusal_of(server.infer(bad))
    assert refusal.code is code
    assert words in refusal.message


async def test_the_requests_own_id_stands_before_what_the_scheduler_refuses(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        refusal = await refusal_of(server.infer(x(1, 2, raw=b"", request_id="mine é")))
        assert refusal.message.startswith("[request id: mine é] input byte size mismatch")


@pytest.mark.parametrize(
    ("version", "code", "words"),
    [
        ("", NOT_FOUND, "Request for unknown model: 'late' has no available versions"),
        ("3", grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'late' version 3 is not at ready state"),
        ("4", NOT_FOUND, "Request for unknown model: 'late' version 4 is not found"),
    ],
)
@pytest.mark.parametrize("state", [State.LOADING, State.UNAVAILABLE])
async def test_a_version_that_is_not_ready_is_said_to_be_so(
    tmp_path: Path, version: str, code: grpc.StatusCode, words: str, state: State
) -> None:
    async with serving(tmp_path) as server:
        key = ModelVersion("late", 3)
        server.registry.expect(key) if state is State.LOADING else server.registry.refuse(key, "it is broken")
        for about in (floats([1], model="late", version=version), embed("w10", model="late")):
            about.model_version = version
            refusal = await refusal_of(server.infer(about))
            assert (refusal.code, refusal.message) == (code, words)
            assert refusal.reason == ("MODEL_NOT_READY" if code is grpc.StatusCode.UNAVAILABLE else "")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\xff\xff\xff", "request: is not a inference.ModelInferRequest message"),
        (b"\x0a\x02\xff\xfe", "model_name: is not valid UTF-8; encode the text as UTF-8"),
        (field_bytes(5, field_bytes(1, b"\xff")), "inputs[0].name: is not valid UTF-8"),
    ],
)
async def test_a_message_that_does_not_decode_is_refused(tmp_path: Path, raw: bytes, words: str) -> None:
    async with serving(tmp_path) as server:
        refusal = await refusal_of(server.send("ModelInfer", raw))
    assert refusal.code is INVALID
    assert words in refusal.message


async def test_a_long_name_is_cut_in_the_error(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        refusal = await refusal_of(server.infer(floats([1], model="🙂" * 100_000)))
    assert refusal.code is NOT_FOUND
    assert refusal.message.startswith("Request for unknown model: '🙂🙂")
    assert len(refusal.message.encode()) <= 1024


async def test_very_many_inputs_are_refused_in_a_short_message(tmp_path: Path) -> None:
    inputs = [given(f"input {number}", "FP32", (1, 1)) for number in range(20_000)]
    async with serving(tmp_path) as server:
        refusal = await refusal_of(server.infer(request("floats", *inputs, raw=[bytes(4)] * len(inputs))))
    assert "expected 1 inputs but got 20000 inputs for model 'floats'" in refusal.message


async def test_a_response_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    limits = Limits(max_response_bytes=4096, max_chunk_bytes=1024)
    tensors = {"floats": TensorScript(model=identity("FP32"))}
    async with inference_server(make_repository(tmp_path), tensors=tensors, limits=limits) as server:
        refusal = await refusal_of(server.infer(floats([0.0] * 2000)))
        assert refusal.code is INVALID
        assert "which exceeds gRPC's byte size limit 4096" in refusal.message
        refusal = await refusal_of(server.infer(embed(*["w10 " * 60] * 16)))
        assert refusal.code is INVALID
        assert refusal.message.startswith("Response exceeds gRPC's byte size limit: ")


async def test_a_text_over_the_limit_is_refused_by_row(tmp_path: Path) -> None:
    async with inference_server(make_repository(tmp_path), limits=Limits(max_text_bytes=100)) as server:
        refusal = await refusal_of(server.infer(embed("w10", "é" * 51, truncation="right")))
    assert refusal.code is INVALID
    assert "text[1]: has 102 bytes; at most 100 are allowed" in refusal.message


async def test_tensors_are_not_for_embed_and_models_of_tensors_say_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.embedding_stub.Embed(embedding_pb2.EmbedRequest(model="floats", texts=["a"]))
    assert caught.value.code() is INVALID
    assert "takes tensors, not texts: call ModelInfer" in str(caught.value.details())


@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "BYTES"])
@pytest.mark.parametrize("form", ["raw", "contents"])
async def test_an_empty_tensor_beyond_what_an_array_may_be_is_refused(datatype: str, form: str) -> None:
    whole = TensorModel(
        TensorScript(model=without_batch_dimension(identity(datatype))), BatchingSettings(max_batch_size=0)
    )
    batched = TensorModel(TensorScript(model=identity(datatype, (-1, -1))))
    filled = {"raw": [b""]} if form == "raw" else {}
    typed = None if form == "raw" else contents()
    async with inference_server(tensors={"whole": whole, "batched": batched}) as server:
        for model, shape in (
            ("whole", (2**62, 0)),
            ("whole", (0, 2**63 - 1)),
            ("batched", (1, 2**62, 0)),
            ("batched", (8, 0, 2**60)),
        ):
            refusal = await refusal_of(
                server.infer(request(model, given("x", datatype, shape, typed), raw=filled.get("raw", [])))
            )
            assert refusal.code is INVALID
            assert f"input 'x' for model '{model}' is too large: {list(shape)}".replace(", ", ",") in refusal.message
        response = await server.infer(request("whole", given("x", datatype, (3, 0), typed), raw=filled.get("raw", [])))
        assert list(response.outputs[0].shape) == [3, 0]
