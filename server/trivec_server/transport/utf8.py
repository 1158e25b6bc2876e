"""
Reads what can be read of a message that would not decode: above all, which string is not UTF-8.

The decoder of the protobuf library refuses such a message without saying where; a client needs the field and index.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# The stubs give the pure Python class or the C one, depending on where a descriptor comes from.
_AnyDescriptor: TypeAlias = Any

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


def find_invalid_utf8(raw: bytes, message_type: type[Message]) -> str | None:
    """The path of the first string field with invalid UTF-8, such as `texts[3]`; None if there is none."""
    try:
        return _find(memoryview(raw), message_type.DESCRIPTOR, "")
    except (IndexError, ValueError):
        # Not a message at all: the fault is not in a string.
        return None


def read_string(raw: bytes, message_type: type[Message], name: str) -> str:
    """A string field of a message that would not decode; empty where it is missing or itself at fault."""
    number = message_type.DESCRIPTOR.fields_by_name[name].number
    value = ""
    try:
        for found, payload in _fields(memoryview(raw)):
            if found == number:
                value = str(payload, "utf-8")
    except (IndexError, ValueError):
        # What follows is no message; what was read before it counts.
        return value
    return value


def _find(raw: memoryview, descriptor: _AnyDescriptor, prefix: str) -> str | None:
    counts: dict[int, int] = {}
    for number, payload in _fields(raw):
        field = descriptor.fields_by_number.get(number)
        if field is None:
            continue
        index = counts[number] = counts.get(number, -1) + 1
        path = f"{prefix}{field.name}[{index}]" if field.is_repeated else f"{prefix}{field.name}"
        found = _find_in_field(payload, field, path)
        if found is not None:
            return found
    return None


def _fields(raw: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message: numbers and payloads."""
    at = 0
    while at < len(raw):
        key, at = _read_varint(raw, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            _, at = _read_varint(raw, at)
        elif wire_type in (_FIXED32, _FIXED64):
            at += 4 if wire_type == _FIXED32 else 8
        elif wire_type == _LENGTH_DELIMITED:
            length, at = _read_varint(raw, at)
            yield number, raw[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {wire_type}")


def _find_in_field(payload: memoryview, field: FieldDescriptor, path: str) -> str | None:
    if field.type == FieldDescriptor.TYPE_STRING:
        try:
            str(payload, "utf-8")
        except UnicodeDecodeError:
            return path
    elif field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
        return _find(payload, field.message_type, f"{path}.")
    return None


def _read_varint(raw: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")
