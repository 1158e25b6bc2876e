"""Protobuf bytes that no generated class would write."""


def field_bytes(number: int, payload: bytes) -> bytes:
    """A length-delimited field; the payload may be anything."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low]) if value < 0x80 else bytes([low | 0x80]) + _varint(value >> 7)
