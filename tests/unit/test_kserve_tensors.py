"""Tensors as they travel: BYTES, typed contents, shapes that lie, and responses put together by hand."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference import grpc_service_pb2 as pb
from trivec_server.backends.tensor_interface import DTYPES
from trivec_server.errors import InvalidTensor, NotFound, ResponseTooLarge
from trivec_server.transport.kserve.checks import Signature, check_request
from trivec_server.transport.kserve.contents import read_inputs
from trivec_server.transport.kserve.datatypes import as_buffer, join_elements, split_elements
from trivec_server.transport.kserve.embed_inputs import check_inputs, read_plain
from trivec_server.transport.kserve.embed_outputs import output_names
from trivec_server.transport.kserve.lookup import NEWEST, parse_version
from trivec_server.transport.kserve.outputs import read_outputs
from trivec_server.transport.kserve.parameters import parse_parameters
from trivec_server.transport.kserve.response import (
    OutputTensor,
    check_size,
    render_response,
    render_stream_response,
)
from trivec_server.transport.kserve.shared_memory import Regions
from trivec_server.transport.kserve.subject import Subject
from trivec_server.types import Mode, ModelVersion, TensorSpec

SUBJECT = Subject("m", "")
REGIONS = Regions(allowed=False)
TYPES = st.sampled_from([*DTYPES, "FLOAT", ""])
DIMENSIONS = st.one_of(st.integers(-2, 4), st.integers(-(2**63), 2**63 - 1))


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_elements_are_split_as_they_were_joined(elements: list[bytes]) -> None:
    assert split_elements(join_elements(elements), len(elements), "x", SUBJECT) == elements


@given(st.binary(max_size=64), st.integers(0, 2**40))
def test_any_bytes_are_so_many_elements_or_refused(raw: bytes, count: int) -> None:
    try:
        elements = split_elements(raw, count, "x", SUBJECT)
    except InvalidTensor:
        return
    assert len(elements) == count
    assert join_elements(elements) == raw


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("", NEWEST),
        ("1", 1),
        ("01", 1),
        ("0", 0),
        ("000", 0),
        ("-0", 0),
        ("+7", 7),
        (" \t12", 12),
        ("3.5", 3),
        ("4x", 4),
    ],
)
def test_a_version_is_the_number_at_the_beginning(text: str, version: int) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["x", "-", "+", " ", "x1", "٣", "9" * 19 + "9", "9223372036854775808", "--1"])
def test_what_begins_with_no_number_of_64_bits_is_no_version(text: str) -> None:
    with pytest.raises(InvalidTensor, match="failed to get model version from specified version string"):
        parse_version(text)


def test_a_number_of_many_zeros_is_a_version() -> None:
    assert parse_version("0" * 100_000 + "5") == 5


@given(st.text(max_size=30))
def test_any_text_is_a_version_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidTensor):
        assert NEWEST <= parse_version(text) < 2**63


def tensors(draw: st.DrawFn, names: st.SearchStrategy[str]) -> pb.ModelInferRequest.InferInputTensor:
    contents = None
    if draw(st.booleans()):
        contents = pb.InferTensorContents(
            int_contents=draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)),
            fp32_contents=draw(st.lists(st.floats(width=32), max_size=3)),
            bytes_contents=draw(st.lists(st.binary(max_size=3), max_size=3)),
        )
    return pb.ModelInferRequest.InferInputTensor(
        name=draw(names), datatype=draw(TYPES), shape=draw(st.lists(DIMENSIONS, max_size=4)), contents=contents
    )


@st.composite
def requests(draw: st.DrawFn, names: st.SearchStrategy[str]) -> pb.ModelInferRequest:
    """Requests of which hardly any is right."""
    outputs = draw(st.lists(st.sampled_from(["y", "z", "dense"]), max_size=2))
    made = pb.ModelInferRequest(
        inputs=[tensors(draw, names) for _ in range(draw(st.integers(0, 3)))],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=draw(st.lists(st.binary(max_size=24), max_size=3)),
    )
    for key in draw(st.lists(st.sampled_from(["timeout", "priority", "sequence_id", "mine"]), max_size=2, unique=True)):
        made.parameters[key].int64_param = draw(st.integers(-2, 2))
    return made


@given(requests(st.sampled_from(["x", "w"])), st.sampled_from([*DTYPES]), st.sampled_from([0, 4]))
def test_a_request_is_right_or_refused_and_what_is_right_has_the_bytes_of_its_shape(
    made: pb.ModelInferRequest, datatype: str, max_rows: int
) -> None:
    specs: Mapping[str, TensorSpec] = {
        "x": TensorSpec(name="x", datatype=datatype, shape=(-1,)),
        "w": TensorSpec(name="w", datatype="FP32", shape=(2,), optional=True),
    }
    try:
        parse_parameters(made.parameters)
        inputs = read_inputs(made, SUBJECT, REGIONS)
        checked = check_request(Signature(specs, ["y"], max_rows), inputs, read_outputs(made, REGIONS), SUBJECT)
    except (InvalidTensor, NotFound):
        return
    assert 1 <= checked.rows <= max(1, max_rows)
    for tensor in checked.tensors:
        assert all(size >= 0 for size in tensor.shape)
        count = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
        if tensor.datatype == "BYTES":
            assert len(tensor.data) == count
        else:
            given_bytes = tensor.data if isinstance(tensor.data, bytes) else np.asarray(tensor.data).tobytes()
            assert len(given_bytes) == count * DTYPES[tensor.datatype].itemsize


@st.composite
def text_requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Requests of texts, most of them right."""
    texts = draw(st.lists(st.one_of(st.text(max_size=5).map(str.encode), st.binary(max_size=5)), max_size=4))
    raw = join_elements(texts)
    cut = draw(st.integers(0, 2))
    shape = draw(st.sampled_from([(len(texts), 1), (len(texts),), (len(texts), 1, 1), (len(texts) + 1, 1)]))
    tensor = pb.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=shape)
    outputs = draw(st.lists(st.sampled_from(["dense", "sparse_values", "absent"]), max_size=2))
    return pb.ModelInferRequest(
        inputs=[tensor],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=[raw[: len(raw) - cut] if cut else raw],
    )


@given(text_requests())
def test_the_short_way_and_the_long_way_agree(made: pb.ModelInferRequest) -> None:
    available = output_names(Mode.HYBRID)
    short = read_plain(made, available, 3)
    try:
        inputs = read_inputs(made, SUBJECT, REGIONS)
        long = check_inputs(inputs, read_outputs(made, REGIONS), available, 3, SUBJECT)
    except InvalidTensor:
        assert short is None
        return
    assert short is not None
    assert (list(short.texts), set(short.outputs)) == (list(long.texts), set(long.outputs))


def test_an_output_named_often_is_kept_once() -> None:
    available = output_names(Mode.HYBRID)
    made = pb.ModelInferRequest(
        inputs=[pb.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=(1, 1))],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="dense")] * 1000,
        raw_input_contents=[join_elements([b"a"])],
    )
    short = read_plain(made, available, 3)
    long = check_inputs(read_inputs(made, SUBJECT, REGIONS), read_outputs(made, REGIONS), available, 3, SUBJECT)
    assert [read.outputs for read in (short, long) if read is not None] == [("dense",), ("dense",)]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_response_put_together_by_hand_is_one_of_the_generated_classes(streamed: bool) -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    texts = np.array([b"a", "é".encode()], np.object_)
    response = render_response(
        ModelVersion("m", 7),
        "mine é",
        {"total_tokens": 300, "truncated_texts": 0, "final": True},
        [
            OutputTensor("y", "FP32", (2, 3), [as_buffer(numbers[:1]), as_buffer(numbers[1:])]),
            OutputTensor("empty", "INT64", (0,), [as_buffer(np.zeros(0, np.int64))]),
            OutputTensor("texts", "BYTES", (2,), [as_buffer(texts)]),
            OutputTensor("elsewhere", "FP32", (2, 3), ()),
        ],
    )
    if streamed:
        wrapped = pb.ModelStreamInferResponse.FromString(render_stream_response(response))
        assert wrapped.error_message == ""
        read = wrapped.infer_response
    else:
        read = pb.ModelInferResponse.FromString(b"".join(response))
    expected = pb.ModelInferResponse(model_name="m", model_version="7", id="mine é")
    expected.parameters["total_tokens"].int64_param = 300
    expected.parameters["truncated_texts"].int64_param = 0
    expected.parameters["final"].bool_param = True
    shapes: list[tuple[str, str, Any]] = [
        ("y", "FP32", (2, 3)),
        ("empty", "INT64", (0,)),
        ("texts", "BYTES", (2,)),
        ("elsewhere", "FP32", (2, 3)),
    ]
    for name, datatype, shape in shapes:
        expected.outputs.add(name=name, datatype=datatype, shape=shape)
    expected.raw_output_contents.extend([numbers.tobytes(), b"", join_elements([b"a", "é".encode()]), b""])
    assert read == expected


def test_arrays_that_do_not_lie_in_order_are_copied_in_order() -> None:
    numbers = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert bytes(as_buffer(numbers.T)) == np.ascontiguousarray(numbers.T).tobytes()
    assert bytes(as_buffer(numbers[:, ::2])) == np.ascontiguousarray(numbers[:, ::2]).tobytes()


def test_a_response_is_refused_by_its_true_size() -> None:
    check_size([b"12", b"345"], 5)
    with pytest.raises(ResponseTooLarge, match="Response has byte size 5 which exceeds gRPC's byte size limit 4"):
        check_size([b"12", b"345"], 4)
