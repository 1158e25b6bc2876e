"""Requests to the models of `models.py`: for Triton's client, and as messages for what it would not send."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tritonclient import grpc as triton  # type: ignore[import-not-found, unused-ignore]
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-not-found, unused-ignore]
from tritonclient.utils import np_to_triton_dtype  # type: ignore[import-not-found, unused-ignore]

ROW = np.arange(16, dtype=np.int32)


def tensor(name: str, array: Any) -> triton.InferInput:
    """An input with the array's own type; an array of objects is BYTES."""
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def simple_inputs(rows: int = 1) -> list[triton.InferInput]:
    """INPUT0 counts, INPUT1 is all ones."""
    counting = np.tile(ROW, (rows, 1))
    return [tensor("INPUT0", counting), tensor("INPUT1", np.ones_like(counting))]


def floats(*numbers: float) -> list[triton.InferInput]:
    """One row for `identity_fp32`."""
    return [tensor("INPUT0", np.array([numbers], np.float32))]


def texts(*rows: Sequence[str | bytes]) -> list[triton.InferInput]:
    """Rows of BYTES."""
    encoded = [[text.encode() if isinstance(text, str) else text for text in row] for row in rows]
    return [tensor("INPUT0", np.array(encoded, np.object_))]


def steps(count: int) -> list[triton.InferInput]:
    """For the slow models: about a microsecond a step."""
    return [tensor("INPUT0", np.array([[count]], np.int64))]


def parameter(value: bool | int | float | str) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value)
    return pb.InferParameter(double_param=value) if isinstance(value, float) else pb.InferParameter(string_param=value)


def raw_input(
    datatype: str, shape: Sequence[int], name: str = "INPUT0", given: Mapping[str, Any] | None = None, **contents: Any
) -> pb.ModelInferRequest.InferInputTensor:
    """`contents`: fields of InferTensorContents; `given`: the tensor's parameters."""
    made = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    if contents:
        made.contents.CopyFrom(pb.InferTensorContents(**contents))
    for key, value in (given or {}).items():
        made.parameters[key].CopyFrom(parameter(value))
    return made


def raw_output(name: str = "OUTPUT0", **given: Any) -> pb.ModelInferRequest.InferRequestedOutputTensor:
    made = pb.ModelInferRequest.InferRequestedOutputTensor(name=name)
    for key, value in given.items():
        made.parameters[key].CopyFrom(parameter(value))
    return made


def message(
    model: str,
    *inputs: pb.ModelInferRequest.InferInputTensor,
    raw: Sequence[bytes] = (),
    outputs: Sequence[pb.ModelInferRequest.InferRequestedOutputTensor] = (),
    given: Mapping[str, Any] | None = None,
    **fields: Any,
) -> pb.ModelInferRequest:
    """A request as it is. `given`: its parameters; `fields`: model_version and id."""
    made = pb.ModelInferRequest(model_name=model, inputs=inputs, outputs=outputs, raw_input_contents=raw, **fields)
    for key, value in (given or {}).items():
        made.parameters[key].CopyFrom(parameter(value))
    return made


def float_message(shape: Sequence[int] = (1, 2), raw: bytes = bytes(8), **fields: Any) -> pb.ModelInferRequest:
    """A request to `identity_fp32` that is good as it is."""
    return message("identity_fp32", raw_input("FP32", shape), raw=[raw], **fields)


def text_message(shape: Sequence[int], raw: bytes) -> pb.ModelInferRequest:
    """A request to `identity_bytes`."""
    return message("identity_bytes", raw_input("BYTES", shape), raw=[raw])


def element(text: bytes) -> bytes:
    """An element of a raw BYTES tensor."""
    return struct.pack("<I", len(text)) + text
