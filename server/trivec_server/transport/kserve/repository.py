"""The model repository as clients see it: its index, loading and unloading."""

from collections.abc import Mapping

from inference import grpc_service_pb2 as pb

from trivec_server.errors import InvalidTensor, Unsupported
from trivec_server.repository.control import LoadOverride

READY = "READY"
_CONFIG = "config"
_FILE = "file:"
_UNLOAD_DEPENDENTS = "unload_dependents"

Parameters = Mapping[str, pb.ModelRepositoryParameter]


def check_repository_name(name: str) -> None:
    """
    There is one repository for clients, without a name.

    Raises:
        Unsupported: a name is given.
    """
    if name:
        raise Unsupported("'repository_name' specification is not supported")


def parse_override(parameters: Parameters) -> LoadOverride | None:
    """
    What a load brings along; None: nothing.

    Raises:
        InvalidTensor: a parameter is unknown or of the wrong type.
    """
    config: str | None = None
    files: dict[str, bytes] = {}
    for key, value in parameters.items():
        if key == _CONFIG:
            _check_kind("load parameter", key, value, "string_param")
            config = value.string_param
        elif key.startswith(_FILE):
            _check_kind("load parameter", key, value, "bytes_param")
            files[key.removeprefix(_FILE)] = value.bytes_param
        else:
            raise InvalidTensor(f"unrecognized load parameter '{key}'.")
    return LoadOverride(config_json=config, files=files) if config is not None or files else None


def check_unload(parameters: Parameters) -> None:
    """
    Checks the parameters of an unload. No model depends on another: `unload_dependents` has nothing to do.

    Raises:
        InvalidTensor: it is no flag.
    """
    value = parameters.get(_UNLOAD_DEPENDENTS)
    if value is not None and value.WhichOneof("parameter_choice") != "bool_param":
        raise InvalidTensor(f"invalid value type for '{_UNLOAD_DEPENDENTS}' parameter, expected bool_param.")


def _check_kind(what: str, key: str, value: pb.ModelRepositoryParameter, wanted: str) -> None:
    if value.WhichOneof("parameter_choice") != wanted:
        raise InvalidTensor(f"invalid value type for {what} '{key}', expected {wanted}.")
