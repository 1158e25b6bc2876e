"""A ModelConfig as JSON, as a load by call may bring it: parsed into a message, with the same faults as text format."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from trivec_server.errors import ConfigError
from trivec_server.repository.pbtxt import MAX_FILE_BYTES, Places, one_line, suggestion

SOURCE = "config"
"""What errors name instead of a file."""

_UNKNOWN_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "(.*?)" at "([^"]*)"', re.DOTALL)
_OUTER_FIELD = re.compile(r"Failed to parse (\w+) field: ")
_FAILED = re.compile(r"(Failed to load JSON: )+")
_PLACE = re.compile(r' at "?\w+\.([\w.\[\]]+)"?')


def read_json(text: str, message: Message) -> Places:
    """
    Reads JSON into an empty message. Field names are those of the schema, or its camel case.

    Raises:
        ConfigError: it is too large, not JSON, or not of this message; names line and column, or the field.
    """
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{SOURCE}: larger than {MAX_FILE_BYTES} characters, the most a configuration may have")
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ConfigError(f"{SOURCE}: is not a JSON object")
        json_format.Parse(text, message)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{SOURCE}:{error.lineno}:{error.colno}: is not JSON: {one_line(error.msg)}") from None
    except json_format.ParseError as error:
        raise ConfigError(f"{SOURCE}: {_meaning(str(error), message)}") from None
    except (RecursionError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{SOURCE}: is not a configuration: {one_line(str(error))}") from None
    return Places(SOURCE, dict.fromkeys(_fields(document, cast("Descriptor", message.DESCRIPTOR), "")))


def _meaning(said: str, message: Message) -> str:
    """What the parser says, in the words of the other errors."""
    if found := _UNKNOWN_FIELD.search(said):
        descriptor = message.DESCRIPTOR.file.pool.FindMessageTypeByName(found[1])
        near = suggestion(found[2], descriptor.fields_by_name)
        problem = f"unknown field `{found[2]}` in {descriptor.name}{near}"
        field = found[3].partition(".")[2]
    else:
        place = _PLACE.search(said)
        field = place[1].rstrip(".") if place else ".".join(_OUTER_FIELD.findall(said))
        problem = _FAILED.sub("", _OUTER_FIELD.sub("", _PLACE.sub("", said))).splitlines()[0].rstrip(".")
        problem = problem[:1].lower() + problem[1:]
    return one_line(f"{field}: {problem}" if field else problem)


def _fields(document: Mapping[str, object], descriptor: Descriptor, prefix: str) -> Iterator[str]:
    """The paths of all fields that are set, as `Places` has them."""
    for name, value in document.items():
        field = descriptor.fields_by_name.get(name) or descriptor.fields_by_camelcase_name[name]
        path = f"{prefix}{field.name}"
        yield path
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from _entries(value, field.message_type, path)
        elif isinstance(value, dict) and field.message_type is not None:
            yield from _fields(value, field.message_type, f"{path}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                at = f"{path}[{index}]" if index else path
                yield at
                if isinstance(item, dict) and field.message_type is not None:
                    yield from _fields(item, field.message_type, f"{at}.")


def _entries(value: object, entry: Descriptor, path: str) -> Iterator[str]:
    """The same of a map."""
    of_values = entry.fields_by_name["value"].message_type
    for key, item in value.items() if isinstance(value, dict) else ():
        at = f'{path}["{key}"]'
        yield at
        if isinstance(item, dict) and of_values is not None:
            yield from _fields(item, of_values, f"{at}.")
