"""ModelInfer for models that take tensors: every data type, raw and typed, with and without a batch dimension."""

import struct
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from trivec_server.types import BatchingSettings, TensorSpec

from tests.rpc.inference_server import (
    InferenceServer,
    TensorModel,
    elements,
    floats,
    given,
    inference_server,
    output,
    refusal_of,
    request,
    wanted,
)
from tests.scripted_tensors import (
    ScriptedModel,
    TensorScript,
    identity,
    row_functions,
    sum_and_difference,
    without_batch_dimension,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
RAW = {
    "BOOL": b"\x01\x00\x01",
    "UINT8": bytes([0, 1, 255]),
    "UINT16": np.array([0, 1, 65535], np.uint16).tobytes(),
    "UINT32": np.array([0, 1, 2**32 - 1], np.uint32).tobytes(),
    "UINT64": np.array([0, 1, 2**64 - 1], np.uint64).tobytes(),
    "INT8": np.array([-128, 0, 127], np.int8).tobytes(),
    "INT16": np.array([-(2**15), 0, 2**15 - 1], np.int16).tobytes(),
    "INT32": np.array([-(2**31), 0, 2**31 - 1], np.int32).tobytes(),
    "INT64": np.array([-(2**63), 0, 2**63 - 1], np.int64).tobytes(),
    "FP16": np.array([0.5, -2, np.inf], np.float16).tobytes(),
    "FP32": np.array([0.5, np.nan, -np.inf], np.float32).tobytes(),
    "FP64": np.array([0.1, -0.0, 1e300], np.float64).tobytes(),
    "BF16": b"\x80\x3f\x00\xc0\x80\x7f",
    "BYTES": elements("", "日本語", b"\xff\x00"),
}
TYPED = {
    "BOOL": ("bool_contents", [True, False, True], RAW["BOOL"]),
    "UINT8": ("uint_contents", [0, 1, 255], RAW["UINT8"]),
    "UINT16": ("uint_contents", [0, 1, 65535], RAW["UINT16"]),
    "UINT32": ("uint_contents", [0, 1, 2**32 - 1], RAW["UINT32"]),
    "UINT64": ("uint64_contents", [0, 1, 2**64 - 1], RAW["UINT64"]),
    "INT8": ("int_contents", [-128, 0, 127], RAW["INT8"]),
    "INT16": ("int_contents", [-(2**15), 0, 2**15 - 1], RAW["INT16"]),
    "INT32": ("int_contents", [-(2**31), 0, 2**31 - 1], RAW["INT32"]),
    "INT64": ("int64_contents", [-(2**63), 0, 2**63 - 1], RAW["INT64"]),
    "FP32": ("fp32_contents", [0.5, float("inf"), -2.25], np.array([0.5, np.inf, -2.25], np.float32).tobytes()),
    "FP64": ("fp64_contents", [0.1, -0.0, 1e300], RAW["FP64"]),
    "BYTES": ("bytes_contents", [b"", "日本語".encode(), b"\xff\x00"], RAW["BYTES"]),
}


def same(datatype: str) -> TensorScript:
    return TensorScript(model=identity(datatype))


@pytest.mark.parametrize("datatype", RAW)
async def test_raw_tensors_of_every_type_come_back_as_they_went(datatype: str) -> None:
    async with inference_server(tensors={"same": same(datatype)}) as server:
        response = await server.infer(request("same", given("x", datatype, (1, 3)), raw=[RAW[datatype]]))
    (tensor,) = response.outputs
    assert (tensor.name, tensor.datatype, tuple(tensor.shape)) == ("y", datatype, (1, 3))
    assert response.raw_output_contents == [RAW[datatype]]
    assert not tensor.HasField("contents")


@pytest.mark.parametrize("datatype", TYPED)
async def test_typed_tensors_are_answered_raw(datatype: str) -> None:
    field, values, raw = TYPED[datatype]
    contents = pb.InferTensorContents(**{field: values})  # type: ignore[arg-type]
    async with inference_server(tensors={"same": same(datatype)}) as server:
        response = await server.infer(request("same", given("x", datatype, (1, 3), contents)))
    assert response.raw_output_contents == [raw]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
async def test_half_numbers_have_no_typed_form(datatype: str) -> None:
    contents = pb.InferTensorContents(fp32_contents=[1, 2])
    async with inference_server(tensors={"same": same(datatype)}) as server:
        refusal = await refusal_of(server.infer(request("same", given("x", datatype, (1, 2), contents))))
    assert refusal.code is INVALID
    assert f"of type 'FP32', expected datatype '{datatype}'" in refusal.message


@pytest.mark.parametrize(
    ("datatype", "contents", "words"),
    [
        ("INT8", pb.InferTensorContents(int_contents=[128]), "is not within -128 to 127, as 'INT8' is"),
        ("UINT16", pb.InferTensorContents(uint_contents=[65536]), "is not within 0 to 65535, as 'UINT16' is"),
    ],
)
async def test_a_typed_value_that_does_not_fit_is_refused(
    datatype: str, contents: pb.InferTensorContents, words: str
) -> None:
    async with inference_server(tensors={"same": same(datatype)}) as server:
        refusal = await refusal_of(server.infer(request("same", given("x", datatype, (1, 1), contents))))
    assert refusal.code is INVALID
    assert words in refusal.message


@pytest.mark.parametrize(("datatype", "raw"), [("FP32", b""), ("BYTES", b""), ("BOOL", b"")])
async def test_a_tensor_may_have_no_elements(datatype: str, raw: bytes) -> None:
    async with inference_server(tensors={"same": same(datatype)}) as server:
        response = await server.infer(request("same", given("x", datatype, (2, 0)), raw=[raw]))
    assert (list(response.outputs[0].shape), list(response.raw_output_contents)) == ([2, 0], [b""])


async def test_any_byte_but_zero_is_true() -> None:
    async with inference_server(tensors={"same": same("BOOL")}) as server:
        response = await server.infer(request("same", given("x", "BOOL", (1, 3)), raw=[b"\x02\x00\xff"]))
    assert response.raw_output_contents == [b"\x01\x00\x01"]


async def test_several_inputs_and_outputs_in_the_models_order() -> None:
    first, second = np.arange(32, dtype=np.int32).reshape(2, 16), np.ones((2, 16), np.int32)
    inputs = [given("INPUT1", "INT32", (2, 16)), given("INPUT0", "INT32", (2, 16))]
    raw = [second.tobytes(), first.tobytes()]
    async with inference_server(tensors={"simple": TensorScript(model=sum_and_difference())}) as server:
        response = await server.infer(request("simple", *inputs, raw=raw, request_id="7"))
        swapped = await server.infer(request("simple", *inputs, raw=raw, outputs=["OUTPUT1", "OUTPUT0"]))
    assert (response.id, [tensor.name for tensor in response.outputs]) == ("7", ["OUTPUT0", "OUTPUT1"])
    np.testing.assert_array_equal(output(response, "OUTPUT0"), first + second)
    np.testing.assert_array_equal(output(response, "OUTPUT1"), first - second)
    assert swapped.outputs == response.outputs


async def test_only_outputs_asked_for_are_computed_and_one_named_twice_comes_once() -> None:
    script = TensorScript(model=row_functions())
    async with inference_server(tensors={"floats": script}) as server:
        response = await server.infer(floats([1, 2], outputs=["total", "total"]))
    assert script.asked == [("total",)]
    assert [tensor.name for tensor in response.outputs] == ["total"]
    assert output(response, "total").tolist() == [[3.0]]


async def test_an_optional_input_may_be_left_out() -> None:
    first = np.arange(16, dtype=np.int32)[None]
    async with inference_server(tensors={"simple": TensorScript(model=sum_and_difference(optional=True))}) as server:
        response = await server.infer(request("simple", given("INPUT0", "INT32", (1, 16)), raw=[first.tobytes()]))
        np.testing.assert_array_equal(output(response, "OUTPUT0"), first)
        refusal = await refusal_of(server.infer(request("simple")))
    assert "expected number of inputs between 1 and 2 but got 0 inputs for model 'simple'" in refusal.message
    assert "missing required input(s) ['INPUT0']" in refusal.message


async def test_an_optional_input_does_not_stand_in_for_one_that_is_needed() -> None:
    second = np.arange(16, dtype=np.int32)[None]
    async with inference_server(tensors={"simple": TensorScript(model=sum_and_difference(optional=True))}) as server:
        call = server.infer(request("simple", given("INPUT1", "INT32", (1, 16)), raw=[second.tobytes()]))
        refusal = await refusal_of(call)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "missing required input(s) ['INPUT0']" in refusal.message


async def test_a_model_without_a_batch_dimension_gets_whole_shapes() -> None:
    model = TensorModel(
        TensorScript(model=without_batch_dimension(identity(shape=(2,)))), BatchingSettings(max_batch_size=0)
    )
    numbers = np.arange(6, dtype=np.float32).reshape(3, 2)
    async with inference_server(tensors={"whole": model}) as server:
        response = await server.infer(request("whole", given("x", "FP32", (3, 2)), raw=[numbers.tobytes()]))
        np.testing.assert_array_equal(output(response, "y"), numbers)
        refusal = await refusal_of(server.infer(request("whole", given("x", "FP32", (3, 3)), raw=[bytes(36)])))
        assert refusal.code is INVALID
        assert refusal.message.endswith(
            "unexpected shape for input 'x' for model 'whole'. Expected [-1,2], got [3,3]. "
        )
        refusal = await refusal_of(server.infer(request("whole", given("x", "FP32", (-1, 2)), raw=[b""])))
        assert "All input dimensions should be specified for input 'x'" in refusal.message


async def test_reshape_is_between_the_request_and_the_model() -> None:
    model = ScriptedModel(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(1,), reshape=()),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(1,), reshape=()),),
        compute=lambda inputs: {"y": inputs["x"] * 2},
    )
    async with inference_server(tensors={"scalars": TensorScript(model=model)}) as server:
        response = await server.infer(
            request("scalars", given("x", "FP32", (2, 1)), raw=[np.array([1, 2], np.float32).tobytes()])
        )
    assert output(response, "y").tolist() == [[2.0], [4.0]]


async def test_versions_are_chosen_by_number_or_the_newest_is_taken() -> None:
    def times(factor: int) -> TensorModel:
        model = ScriptedModel(
            inputs=identity().inputs,
            outputs=identity().outputs,
            compute=lambda inputs: {"y": inputs["x"] * factor},
        )
        return TensorModel(TensorScript(model=model), version=factor)

    async with inference_server(tensors={"floats": times(1)}) as server:
        newest = times(2)
        await server.put_tensors("floats", newest)
        for version, factor in (("", 2.0), ("1", 1.0), ("2", 2.0), ("01", 1.0)):
            response = await server.infer(floats([1], version=version))
            assert output(response, "y").tolist() == [[factor]]
            assert response.model_version == str(int(factor))


async def test_requests_that_wait_together_run_together() -> None:
    script = TensorScript(model=row_functions())
    async with inference_server(tensors={"floats": TensorModel(script, BatchingSettings(max_batch_size=8))}) as server:
        await server.infer(floats([1, 2], [3, 4]))
        assert script.batch_rows == [2]


async def test_a_failure_of_the_model_is_internal_and_concerns_its_request() -> None:
    script = TensorScript(model=row_functions())

    def fail(_: Any) -> None:
        raise RuntimeError("no")

    async with inference_server(tensors={"floats": script}) as server:
        script.before_run = fail
        refusal = await refusal_of(server.infer(floats([1])))
        assert refusal.code is grpc.StatusCode.INTERNAL
        script.before_run = lambda _: None
        assert output(await server.infer(floats([1])), "total").tolist() == [[1.0]]


async def classify(server: InferenceServer, *rows: list[float], classes: int = 2, name: str = "same") -> list[bytes]:
    response = await server.infer(floats(*rows, outputs=[wanted(name, classification=classes)]))
    (tensor,) = response.outputs
    assert tensor.datatype == "BYTES"
    found, raw = [], response.raw_output_contents[0]
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    assert list(tensor.shape) == [len(rows), len(found) // len(rows)]
    return found


async def test_classes_are_the_largest_values_of_each_row_with_their_places() -> None:
    async with inference_server(tensors={"floats": TensorScript(model=row_functions())}) as server:
        assert await classify(server, [0.5, -1, 7.25]) == [b"7.250000:2", b"0.500000:0"]
        assert await classify(server, [1, 2], [4, 3]) == [b"2.000000:1", b"1.000000:0", b"4.000000:0", b"3.000000:1"]
        assert await classify(server, [1, 1, 0, 1], classes=3) == [b"1.000000:0", b"1.000000:1", b"1.000000:3"]
        assert await classify(server, [1, 2], classes=9) == [b"2.000000:1", b"1.000000:0"]
        assert await classify(server, [5], name="batch_rows", classes=1) == [b"1:0"]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"classification": "1"}, "invalid value type for 'classification' parameter, expected int64_param"),
        ({"classification": 0}, "invalid value for 'classification' parameter, expected >= 0"),
        (
            {"classification": 1, "shared_memory_region": "r", "shared_memory_byte_size": 1},
            "output can't set both 'shared_memory_region' and 'classification'",
        ),
    ],
)
async def test_classes_asked_for_wrongly_are_refused(about: dict[str, Any], words: str) -> None:
    async with inference_server(tensors={"floats": TensorScript(model=row_functions())}) as server:
        refusal = await refusal_of(server.infer(floats([1], outputs=[wanted("same", **about)])))
    assert (refusal.code, refusal.message) == (INVALID, words)


@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "BF16", "BYTES"])
async def test_types_without_classes_are_refused(datatype: str) -> None:
    async with inference_server(tensors={"same": same(datatype)}) as server:
        bad = request(
            "same", given("x", datatype, (1, 3)), raw=[RAW[datatype]], outputs=[wanted("y", classification=1)]
        )
        refusal = await refusal_of(server.infer(bad))
    assert refusal.code is INVALID
    assert f"class result not available for output due to unsupported type '{datatype}'" in refusal.message


@pytest.mark.parametrize("make", [floats], ids=["raw"])
async def test_requests_in_flight_together_each_get_their_own(make: Callable[..., pb.ModelInferRequest]) -> None:
    import asyncio  # noqa: PLC0415 - used here alone

    async with inference_server(tensors={"floats": TensorScript(model=row_functions())}) as server:
        responses = await asyncio.gather(*(server.infer(make([n, n + 1], request_id=str(n))) for n in range(64)))
    for number, response in enumerate(responses):
        assert (response.id, output(response, "total").tolist()) == (str(number), [[2.0 * number + 1]])
