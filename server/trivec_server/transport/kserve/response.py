"""
ModelInferResponse from arrays: what is small is built with the generated classes and remembered, the outputs' bytes are
appended as they lie in memory and copied once, by the join.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor
from inference import grpc_service_pb2 as pb

from trivec_server.errors import ResponseTooLarge
from trivec_server.transport.kserve.datatypes import Buffer
from trivec_server.transport.render import varint
from trivec_server.types import ModelVersion

_LENGTH_DELIMITED = 2


def _tag(descriptor: Descriptor, field: str) -> bytes:
    return varint(descriptor.fields_by_name[field].number << 3 | _LENGTH_DELIMITED)


_RESPONSE = pb.ModelInferResponse.DESCRIPTOR
_ID_TAG = _tag(_RESPONSE, "id")
_OUTPUTS_TAG = _tag(_RESPONSE, "outputs")
_RAW_TAG = _tag(_RESPONSE, "raw_output_contents")
_INFER_RESPONSE_TAG = _tag(pb.ModelStreamInferResponse.DESCRIPTOR, "infer_response")


class OutputTensor(NamedTuple):
    """An output: `buffers` one behind the other are its bytes, row by row; none where it lies in shared memory."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    buffers: Sequence[Buffer]


def render_response(
    key: ModelVersion, request_id: str, parameters: Mapping[str, int | bool], outputs: Sequence[OutputTensor]
) -> list[Buffer]:
    """A ModelInferResponse as buffers to be joined. `request_id` is the request's own."""
    head = [_head(key.name, key.version)]
    if request_id:
        encoded = request_id.encode()
        head += [_ID_TAG, varint(len(encoded)), encoded]
    head += [_parameter(name, value) for name, value in parameters.items()]
    head += [_output_header(output.name, output.datatype, output.shape) for output in outputs]
    buffers: list[Buffer] = [b"".join(head)]
    for output in outputs:
        buffers.append(_RAW_TAG + varint(sum(map(len, output.buffers))))
        buffers += output.buffers
    return buffers


def render_stream_response(response: Sequence[Buffer]) -> bytes:
    """A ModelStreamInferResponse around a rendered response."""
    return b"".join([_INFER_RESPONSE_TAG, varint(sum(map(len, response))), *response])


def check_size(response: Sequence[Buffer], limit: int) -> None:
    """
    Checks a rendered response.

    Raises:
        ResponseTooLarge: it is larger than a response may be.
    """
    size = sum(map(len, response))
    if size > limit:
        raise ResponseTooLarge(f"Response has byte size {size} which exceeds gRPC's byte size limit {limit}")


@lru_cache(maxsize=256)
def _head(name: str, version: int) -> bytes:
    return pb.ModelInferResponse(model_name=name, model_version=str(version)).SerializeToString()


@lru_cache(maxsize=4096, typed=True)
def _parameter(name: str, value: int | bool) -> bytes:
    made = pb.InferParameter(bool_param=value) if isinstance(value, bool) else pb.InferParameter(int64_param=value)
    return pb.ModelInferResponse(parameters={name: made}).SerializeToString()


@lru_cache(maxsize=4096)
def _output_header(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    output = pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
    return pb.ModelInferResponse(outputs=[output]).SerializeToString()
