"""The data of a request's inputs: raw buffers, typed contents or shared memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from inference import grpc_service_pb2 as pb
from numpy.typing import NDArray

from trivec_server.backends.tensor_interface import DTYPES
from trivec_server.errors import InvalidTensor
from trivec_server.transport.kserve.datatypes import BYTES
from trivec_server.transport.kserve.shared_memory import Regions, SharedData, parse_placement
from trivec_server.transport.kserve.subject import Subject

Data: TypeAlias = bytes | NDArray[Any] | list[bytes]
"""Raw bytes; numbers [N] of the input's own data type; or elements of BYTES."""

_INVALID = "<invalid>"
_FIELD_TYPES = (
    ("bool_contents", "BOOL"),
    ("int_contents", "INT32"),
    ("int64_contents", "INT64"),
    ("uint_contents", "UINT32"),
    ("uint64_contents", "UINT64"),
    ("fp32_contents", "FP32"),
    ("fp64_contents", "FP64"),
    ("bytes_contents", BYTES),
)
_SMALL_TYPES = {"int_contents": ("INT8", "INT16"), "uint_contents": ("UINT8", "UINT16")}


class InputTensor(NamedTuple):
    """An input as the request gives it: nothing but the presence of its data is checked. `datatype` may be unknown."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data | SharedData

    @property
    def size_bytes(self) -> int:
        """How many bytes its data takes."""
        data = self.data
        if isinstance(data, bytes):
            return len(data)
        if isinstance(data, list):
            return sum(map(len, data))
        return data.size if isinstance(data, SharedData) else data.nbytes


def datatype_shown(datatype: str) -> str:
    """As Triton names it in errors."""
    return datatype if datatype in DTYPES else _INVALID


def read_inputs(message: pb.ModelInferRequest, subject: Subject, regions: Regions) -> dict[str, InputTensor]:
    """
    The inputs by name, in the request's order.

    Raises:
        InvalidTensor: a name stands twice, or there is no data for an input, or data in two forms or of another type.
        NotFound: a region of shared memory is not registered.
    """
    inputs: dict[str, InputTensor] = {}
    if len(message.inputs) > 1:
        _check_names(message, subject)
    raw = message.raw_input_contents
    used = 0
    for tensor in message.inputs:
        name = tensor.name
        placement = parse_placement(tensor.parameters, name) if len(tensor.parameters) else None
        data: Data | SharedData
        if placement is not None:
            if tensor.HasField("contents"):
                raise InvalidTensor(
                    f"unexpected 'content' provided when using shared memory for input tensor '{name}' for model "
                    f"'{subject.model}'"
                )
            data = SharedData(regions.find(placement), placement)
        elif tensor.HasField("contents"):
            if len(raw):
                raise InvalidTensor(
                    f"contents field must not be specified when using raw_input_contents for '{name}' for model "
                    f"'{subject.model}'"
                )
            data = _typed(tensor, subject)
        elif used < len(raw):
            data = raw[used]
            used += 1
        else:
            raise InvalidTensor(
                f"unable to find data for input tensor '{name}' for model '{subject.model}' in request."
            )
        inputs[name] = InputTensor(name, tensor.datatype, tuple(tensor.shape), data)
    return inputs


def _check_names(message: pb.ModelInferRequest, subject: Subject) -> None:
    seen: set[str] = set()
    for tensor in message.inputs:
        if tensor.name in seen:
            raise subject.refuse(f"input '{tensor.name}' already exists in request")
        seen.add(tensor.name)


def _typed(tensor: pb.ModelInferRequest.InferInputTensor, subject: Subject) -> Data:
    """Typed contents; of an input whose contents are there and empty, no bytes."""
    data: Data | None = None
    about = f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{subject.model}'"
    for field, field_type in _FIELD_TYPES:
        values = getattr(tensor.contents, field)
        if not len(values):
            continue
        if data is not None:
            raise InvalidTensor(f"{about}, binary data was already supplied.")
        if tensor.datatype != field_type and tensor.datatype not in _SMALL_TYPES.get(field, ()):
            shown = datatype_shown(tensor.datatype)
            raise InvalidTensor(f"{about} of type '{field_type}', expected datatype '{shown}'")
        data = list(values) if field_type == BYTES else _numbers(tensor, values)
    return b"" if data is None else data


def _numbers(tensor: pb.ModelInferRequest.InferInputTensor, values: Sequence[Any]) -> NDArray[Any]:
    dtype = DTYPES[tensor.datatype]
    if dtype.itemsize > 2 or dtype.kind not in "iu":
        return np.array(values, dtype)
    wide = np.array(values, np.int64)
    bounds = np.iinfo(dtype)
    if wide.min() < bounds.min or wide.max() > bounds.max:
        raise InvalidTensor(
            f"a value of input '{tensor.name}' is not within {bounds.min} to {bounds.max}, as '{tensor.datatype}' is"
        )
    return wide.astype(dtype)
