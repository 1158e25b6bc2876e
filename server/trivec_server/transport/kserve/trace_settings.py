"""
TraceSetting as of a Triton that was given no trace file: tracing is off and cannot be turned on; what else can be set
is kept and told.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from inference import grpc_service_pb2 as pb

from trivec_server.errors import InvalidTensor, Unsupported

_NUMBERS = {"trace_rate": ("1000", 0), "trace_count": ("-1", -1), "log_frequency": ("0", 0)}
"""Defaults, and the least value of each."""
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_OFF = "OFF"
_LEVELS = ("TIMESTAMPS", "TENSORS")
_FIXED = {"trace_level": _OFF, "trace_file": "", "trace_mode": "triton"}

_Told = pb.TraceSettingResponse.SettingValue


class TraceSettings:
    """The settings of all models, and of single ones where they differ. Owned by the event loop."""

    def __init__(self, is_model: Callable[[str], bool]) -> None:
        """`is_model` says whether a model of that name serves."""
        self._is_model = is_model
        self._changes: dict[str, dict[str, str]] = {"": {}}

    def update(self, model: str, given: Mapping[str, Sequence[str]]) -> pb.TraceSettingResponse:
        """
        Changes settings of a model, or with an empty name of all models; no value: back to the default. Gives what then
        holds.

        Raises:
            InvalidTensor: the model is unknown, a value is wrong, or tracing is to be turned on.
            Unsupported: the trace's file is not changed by calls.
        """
        if model and not self._is_model(model):
            raise InvalidTensor(f"Request for unknown model : {model}")
        changed = dict(self._changes.get(model, {}))
        for key, values in given.items():
            _change(changed, key, values)
        if given:
            self._changes[model] = changed
        merged = {key: default for key, (default, _) in _NUMBERS.items()} | _FIXED | self._changes[""] | changed
        return pb.TraceSettingResponse(settings={key: _Told(value=[value]) for key, value in merged.items()})


def _change(changed: dict[str, str], key: str, values: Sequence[str]) -> None:
    """Unknown settings and levels are passed over, as in Triton."""
    if key == "trace_file":
        raise Unsupported("trace file location can not be updated through network protocol")
    if key == "trace_level" and any(value in _LEVELS for value in values):
        raise InvalidTensor("Attempting to set invalid trace setting :trace file name is not given")
    if key not in _NUMBERS:
        return
    if not values:
        changed.pop(key, None)
        return
    if len(values) > 1:
        raise InvalidTensor(f"expect only 1 value for '{key}'")
    changed[key] = str(_number(key, values[0]))


def _number(key: str, text: str) -> int:
    least = _NUMBERS[key][1]
    if not _WHOLE_NUMBER.fullmatch(text):
        raise InvalidTensor(f"Unable to parse '{key}', got: {text}")
    number = int(text)
    if number < least:
        raise InvalidTensor(f"Unable to parse '{key}'. Expecting value >= {least}, got: {text}")
    return number
