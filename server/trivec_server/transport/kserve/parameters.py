"""The parameters of a ModelInferRequest: those that Triton gives a meaning to."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from inference import grpc_service_pb2 as pb

from trivec_server.errors import InvalidTensor
from trivec_server.types import BatchingSettings

Parameters = Mapping[str, pb.InferParameter]

EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
_TRITONS_PREFIX = "triton_"
_NO_SEQUENCES = "no model of this server keeps a sequence of requests together; leave the parameter out"
_CUSTOM_KINDS = ("int64_param", "bool_param", "string_param", "double_param")


class RequestParameters(NamedTuple):
    """`priority` 0: the model's default. `timeout_us` 0: the model's. `custom`: what Triton passes on to the model."""

    priority: int = 0
    timeout_us: int = 0
    custom: Parameters = MappingProxyType({})

    def level(self, batching: BatchingSettings) -> int:
        """The priority for a model's queue: as in Triton, a level that the model does not have is its default one."""
        return self.priority if self.priority <= batching.priority_levels else 0


NONE = RequestParameters()


def kind_of(value: pb.InferParameter) -> str | None:
    """Which field of the value is set."""
    return value.WhichOneof("parameter_choice")


def parse_parameters(given: Parameters) -> RequestParameters:
    """
    The request's parameters.

    Raises:
        InvalidTensor: one has a value of the wrong type, a reserved name, or asks for a sequence of requests.
    """
    if not len(given):
        return NONE
    priority = timeout_us = 0
    custom: dict[str, pb.InferParameter] = {}
    for key, value in given.items():
        if key == "priority":
            priority = _priority(value)
        elif key == "timeout":
            _check_kind(key, value, "int64_param")
            # As in Triton, where it is unsigned, a negative one is no limit.
            timeout_us = max(0, value.int64_param)
        elif key in {"sequence_id", "sequence_start", "sequence_end"}:
            _check_sequence(key, value)
        elif key == EMPTY_FINAL_RESPONSE:
            # Every request here has exactly one response, which is its final one.
            _check_kind(key, value, "bool_param")
        elif key.startswith(_TRITONS_PREFIX):
            raise InvalidTensor(
                f"parameter keys starting with '{_TRITONS_PREFIX}' are reserved for Triton usage. Only the following "
                f"keys starting with '{_TRITONS_PREFIX}' are allowed: {EMPTY_FINAL_RESPONSE}"
            )
        elif kind_of(value) not in _CUSTOM_KINDS:
            raise InvalidTensor(
                f"invalid value type for '{key}' parameter, expected int64_param, bool_param, or string_param."
            )
        else:
            custom[key] = value
    return RequestParameters(priority, timeout_us, custom)


def _priority(value: pb.InferParameter) -> int:
    kind = kind_of(value)
    if kind == "uint64_param":
        return value.uint64_param
    if kind != "int64_param":
        raise InvalidTensor("invalid value type for 'priority' parameter, expected int64_param or uint64_param.")
    if value.int64_param < 0:
        raise InvalidTensor("invalid value for 'priority', expected value >= 0.")
    return value.int64_param


def _check_sequence(key: str, value: pb.InferParameter) -> None:
    """A sequence's parameters are legal while they ask for nothing: Triton's clients may send them so."""
    kind = kind_of(value)
    if key != "sequence_id":
        _check_kind(key, value, "bool_param")
        asks = value.bool_param
    elif kind == "int64_param":
        asks = value.int64_param != 0
    elif kind == "string_param":
        asks = value.string_param != ""
    else:
        raise InvalidTensor("invalid value type for 'sequence_id' parameter, expected int64_param or string_param.")
    if asks:
        raise InvalidTensor(f"'{key}' is not supported: {_NO_SEQUENCES}")


def _check_kind(key: str, value: pb.InferParameter, wanted: str) -> None:
    if kind_of(value) != wanted:
        raise InvalidTensor(f"invalid value type for '{key}' parameter, expected {wanted}.")
