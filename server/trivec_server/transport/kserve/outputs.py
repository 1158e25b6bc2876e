"""The outputs that a request names, and handing them over: in the message, as classes or in shared memory."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from inference import grpc_service_pb2 as pb
from numpy.typing import NDArray

from trivec_server.errors import InvalidTensor, SharedMemoryUnusable
from trivec_server.transport.kserve.datatypes import BYTES, as_buffer, join_elements
from trivec_server.transport.kserve.response import OutputTensor
from trivec_server.transport.kserve.shared_memory import Placement, Region, Regions, parse_placement

_CLASSES = "classification"
_CLASSIFIED = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64")


class WantedOutput(NamedTuple):
    """How an output is to be handed over. `classes`: the largest values as text, so many of each row; 0: all."""

    placement: Placement | None = None
    region: Region | None = None
    classes: int = 0


_IN_MESSAGE = WantedOutput()


def read_outputs(message: pb.ModelInferRequest, regions: Regions) -> dict[str, WantedOutput]:
    """
    The outputs that the request names; one that stands twice is one.

    Raises:
        InvalidTensor: a parameter is wrong.
        NotFound: a region of shared memory is not registered.
    """
    wanted: dict[str, WantedOutput] = {}
    for tensor in message.outputs:
        if len(tensor.parameters):
            wanted[tensor.name] = _read_output(tensor, regions)
        else:
            wanted.setdefault(tensor.name, _IN_MESSAGE)
    return wanted


def _read_output(tensor: pb.ModelInferRequest.InferRequestedOutputTensor, regions: Regions) -> WantedOutput:
    parameters = tensor.parameters
    placement = parse_placement(parameters, tensor.name)
    classes = 0
    if _CLASSES in parameters:
        value = parameters[_CLASSES]
        if value.WhichOneof("parameter_choice") != "int64_param":
            raise InvalidTensor(f"invalid value type for '{_CLASSES}' parameter, expected int64_param")
        classes = value.int64_param
        if classes < 1:
            raise InvalidTensor(f"invalid value for '{_CLASSES}' parameter, expected >= 0")
    if placement is None:
        return WantedOutput(classes=classes)
    if classes:
        raise InvalidTensor(f"output can't set both 'shared_memory_region' and '{_CLASSES}'")
    return WantedOutput(placement, regions.find(placement))


def hand_over(outputs: Sequence[OutputTensor], wanted: Mapping[str, WantedOutput]) -> Sequence[OutputTensor]:
    """
    Writes outputs that are wanted there into shared memory; the others stay as they are.

    Raises:
        SharedMemoryUnusable: an output is larger than its place.
    """
    if all(how.region is None for how in wanted.values()):
        return outputs
    return [_hand_over(output, wanted.get(output.name, _IN_MESSAGE)) for output in outputs]


def _hand_over(output: OutputTensor, wanted: WantedOutput) -> OutputTensor:
    if wanted.region is None or wanted.placement is None:
        return output
    size, place = sum(map(len, output.buffers)), wanted.placement.size
    if size > place:
        raise SharedMemoryUnusable(
            f"shared memory size specified with the request for output '{output.name}' ({place} bytes) should be at "
            f"least {size} bytes to hold the results"
        )
    wanted.region.write(wanted.placement, output.buffers)
    return output._replace(buffers=())


def render_array(
    name: str, datatype: str, array: NDArray[Any], wanted: WantedOutput, *, has_batch_dimension: bool
) -> OutputTensor:
    """
    An output, or with `wanted.classes` the text of its classes.

    Raises:
        InvalidTensor: its data type has no classes.
    """
    if not wanted.classes:
        return OutputTensor(name, datatype, array.shape, [as_buffer(array)])
    if datatype not in _CLASSIFIED:
        raise InvalidTensor(f"class result not available for output due to unsupported type '{datatype}'")
    rows = array.reshape(len(array), -1) if has_batch_dimension and array.size else array.reshape(1, -1)
    count = min(wanted.classes, rows.shape[1])
    texts = [text for row in rows for text in _classes(row, count)]
    shape = (len(array), count) if has_batch_dimension else (count,)
    return OutputTensor(name, BYTES, shape, [join_elements(texts)])


def _classes(row: NDArray[Any], count: int) -> list[bytes]:
    """The largest values of a row with their positions, as Triton writes them; of equal ones the first comes first."""
    order = len(row) - 1 - np.argsort(row[::-1], kind="stable")[::-1][:count]
    pattern = "{:f}:{}" if row.dtype.kind == "f" else "{}:{}"
    return [pattern.format(value, index).encode() for value, index in zip(row[order], order, strict=True)]
