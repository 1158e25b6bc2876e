"""The parameters of a ModelInfer request that embedding models give a meaning to."""

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from inference import grpc_service_pb2 as pb

from trivec_server.errors import InvalidTensor
from trivec_server.serving.request import VectorEncoding
from trivec_server.transport.kserve.parameters import Parameters, kind_of
from trivec_server.types import InputType, Mode, Truncation

MODES: Mapping[str, Mode] = {
    "dense": Mode.DENSE,
    "sparse": Mode.SPARSE,
    "multi_vector": Mode.MULTI_VECTOR,
    "hybrid": Mode.HYBRID,
}
_ENCODINGS = {"float32": VectorEncoding.FLOAT32, "float16": VectorEncoding.FLOAT16}
_INPUT_TYPES = {"none": InputType.NONE, "query": InputType.QUERY, "passage": InputType.PASSAGE}
_TRUNCATIONS = {"error": Truncation.ERROR, "right": Truncation.RIGHT, "left": Truncation.LEFT}
_MIN_TOKENS = 2

ValueT = TypeVar("ValueT")


class EmbedParameters(NamedTuple):
    """`modes` None: those of the outputs asked for. `max_tokens` None: the model's. `sparse_top_k` 0: all."""

    modes: Mode | None = None
    encoding: VectorEncoding = VectorEncoding.FLOAT32
    input_type: InputType = InputType.NONE
    truncation: Truncation = Truncation.ERROR
    max_tokens: int | None = None
    sparse_top_k: int = 0
    sparse_min_weight: float = 0.0


_DEFAULT = EmbedParameters()


def parse_embed_parameters(given: Parameters, model_max_tokens: int) -> EmbedParameters:
    """
    Reads the parameters that are known and passes over the others, as Triton leaves them to the model.

    Raises:
        InvalidTensor: one has a wrong type or value; says what is allowed.
    """
    if not given:
        return _DEFAULT
    modes = _text(given, "modes")
    return EmbedParameters(
        modes=None if modes is None else _parse_modes(modes),
        encoding=_choice(given, "encoding", _ENCODINGS, _DEFAULT.encoding),
        input_type=_choice(given, "input_type", _INPUT_TYPES, _DEFAULT.input_type),
        truncation=_choice(given, "truncation", _TRUNCATIONS, _DEFAULT.truncation),
        max_tokens=_whole_number(given, "max_tokens", _MIN_TOKENS, model_max_tokens),
        sparse_top_k=_whole_number(given, "sparse_top_k", 0, None) or 0,
        sparse_min_weight=_weight(given, "sparse_min_weight"),
    )


def _parse_modes(text: str) -> Mode:
    modes = Mode(0)
    for name in text.split(","):
        mode = MODES.get(name.strip())
        if mode is None:
            raise InvalidTensor(
                f"invalid value for 'modes', expected one or more of {_listed(MODES)}, separated by commas; got "
                f"'{text}'"
            )
        modes |= mode
    return modes


def _choice(given: Parameters, key: str, choices: Mapping[str, ValueT], default: ValueT) -> ValueT:
    text = _text(given, key)
    if text is None:
        return default
    if text not in choices:
        raise InvalidTensor(f"invalid value for '{key}', expected one of {_listed(choices)}; got '{text}'")
    return choices[text]


def _text(given: Parameters, key: str) -> str | None:
    value = _value(given, key, "string_param")
    return None if value is None else value.string_param


def _whole_number(given: Parameters, key: str, least: int, most: int | None) -> int | None:
    value = _value(given, key, "int64_param")
    if value is None:
        return None
    number = value.int64_param
    if number < least or (most is not None and number > most):
        allowed = f"at least {least}" if most is None else f"{least} to {most}"
        raise InvalidTensor(f"invalid value for '{key}', expected a whole number of {allowed}; got {number}")
    return number


def _weight(given: Parameters, key: str) -> float:
    value = _value(given, key, "double_param", "int64_param")
    if value is None:
        return 0.0
    number = value.double_param if kind_of(value) == "double_param" else float(value.int64_param)
    if not (number >= 0 and math.isfinite(number)):
        raise InvalidTensor(f"invalid value for '{key}', expected a number of at least 0; got {number}")
    return number


def _value(given: Parameters, key: str, *kinds: str) -> pb.InferParameter | None:
    value = given.get(key)
    if value is not None and kind_of(value) not in kinds:
        raise InvalidTensor(f"invalid value type for '{key}' parameter, expected {' or '.join(kinds)}.")
    return value


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names)
