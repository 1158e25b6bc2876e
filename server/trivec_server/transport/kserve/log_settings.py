"""LogSettings: what the process logs, read and changed by clients."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from inference import grpc_service_pb2 as pb

from trivec_server.errors import InvalidTensor, Unsupported
from trivec_server.logs import DEFAULT_TIMES, ISO8601, LogSettings, log_settings, set_log_settings

_FLAGS: Mapping[str, Callable[[LogSettings, bool], LogSettings]] = {
    "log_info": lambda settings, on: replace(settings, info=on),
    "log_warning": lambda settings, on: replace(settings, warning=on),
    "log_error": lambda settings, on: replace(settings, error=on),
}
_Given = pb.LogSettingsRequest.SettingValue
_Told = pb.LogSettingsResponse.SettingValue


def update_log_settings(given: Mapping[str, _Given]) -> pb.LogSettingsResponse:
    """
    Changes what is given, all of it or nothing; gives what then holds. As in Triton, unknown settings are passed over.

    Raises:
        InvalidTensor: a value is of the wrong type.
        Unsupported: the log's file is not changed by calls.
    """
    settings = log_settings()
    for key, value in given.items():
        settings = _changed(settings, key, value)
    if given:
        set_log_settings(settings)
    return _describe(settings)


def _changed(settings: LogSettings, key: str, value: _Given) -> LogSettings:
    kind = value.WhichOneof("parameter_choice")
    if key == "log_file":
        raise Unsupported("log file location can not be updated through network protocol")
    if key in _FLAGS:
        _check(kind == "bool_param", "boolean", key)
        return _FLAGS[key](settings, value.bool_param)
    if key == "log_verbose_level":
        _check(kind == "uint32_param", "int32", key)
        return replace(settings, verbose_level=value.uint32_param)
    if key == "log_format":
        _check(kind == "string_param", "string", key)
        if value.string_param not in (DEFAULT_TIMES, ISO8601):
            raise InvalidTensor(f"invalid argument for log_format, got: {value.string_param}")
        return replace(settings, times=value.string_param)
    return settings


def _check(is_right: bool, wanted: str, key: str) -> None:
    if not is_right:
        raise InvalidTensor(f"expect {wanted} for '{key}'")


def _describe(settings: LogSettings) -> pb.LogSettingsResponse:
    return pb.LogSettingsResponse(
        settings={
            "log_file": _Told(string_param=""),
            "log_info": _Told(bool_param=settings.info),
            "log_warning": _Told(bool_param=settings.warning),
            "log_error": _Told(bool_param=settings.error),
            "log_verbose_level": _Told(uint32_param=settings.verbose_level),
            "log_format": _Told(string_param=settings.times),
        }
    )
