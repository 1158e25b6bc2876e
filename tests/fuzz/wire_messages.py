"""Strategies for protobuf messages as bytes: random ones, built from a descriptor with extreme values, and mutated."""

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

_MOST_FIELDS = 5
_DEEPEST = 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 7, 8, 10, 16, 64, 65, 127, 128, 255, 999, 1000, 1024, 4096, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1),
)
_REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", " ", "a", "w10", "w10 w11 w12", "w10 " * 63, "w10 " * 200, "\0", "\n\t", "人工智能", "🤖" * 20, "\u202e")
_NO_TEXTS = (b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xf4\x90\x80\x80")
_TENSORS = (
    *(b"", b"\0", b"\0" * 4, b"\0" * 8, b"\xff" * 4, b"\xff" * 16, b"\0\0\x80\x3f" * 4, b"\0\0\xc0\x7f"),
    *(b"\3\0\0\0w10", b"\3\0\0\0w10\3\0\0\0w11", b"\3\0\0\0w1", b"\xff\xff\xff\xffw", b"\3\0\0\0\xff\xff\xff"),
)
_INTEGERS = frozenset(
    {
        *(FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT32),
        *(FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_ENUM),
    }
)


def varint(number: int) -> bytes:
    """A number from 0 to 2^64 - 1."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def _field(number: int, wire_type: int, payload: bytes) -> bytes:
    length = varint(len(payload)) if wire_type == _BYTES else b""
    return varint(number << 3 | wire_type) + length + payload


def _split(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The fields of a good message: number, wire type, payload. Ends where the bytes are none any more."""
    at = 0
    while at < len(raw):
        tag, at = _read_varint(raw, at)
        number, wire_type = tag >> 3, tag & 7
        start = at
        if wire_type == _VARINT:
            _, at = _read_varint(raw, at)
        elif wire_type == _BYTES:
            length, start = _read_varint(raw, at)
            at = start + length
        elif wire_type in (_FIXED32, _FIXED64):
            at += 4 if wire_type == _FIXED32 else 8
        else:
            return
        yield number, wire_type, raw[start:at]


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number, and the place behind it."""
    number = shift = 0
    while at < len(raw):
        byte = raw[at]
        at, number, shift = at + 1, number | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            break
    return number, at


_numbers = st.one_of(st.sampled_from(_NUMBERS), st.integers(0, 12)).map(varint)
_floats = st.sampled_from(_REALS).map(lambda value: struct.pack("<f", value))
_doubles = st.sampled_from(_REALS).map(lambda value: struct.pack("<d", value))
_any_text = st.one_of(
    st.sampled_from([text.encode() for text in _TEXTS]),
    st.sampled_from(_NO_TEXTS),
    st.text(max_size=12).map(str.encode),
    st.binary(max_size=12),
)


class Words:
    """Strings that get somewhere: those that the server knows, by the name of the field."""

    def __init__(self, by_field: dict[str, Sequence[str]]) -> None:
        self._known = {name: st.sampled_from([word.encode() for word in words]) for name, words in by_field.items()}

    def text(self, field: str) -> st.SearchStrategy[bytes]:
        """Mostly a word that is known there, if there is one."""
        known = self._known.get(field)
        return _any_text if known is None else st.one_of(known, known, known, _any_text)


class Messages:
    """Strategies for messages, with these words in their strings."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._fields: dict[tuple[str, int], st.SearchStrategy[bytes]] = {}

    def structured(self, message: Descriptor, depth: int = 0) -> st.SearchStrategy[bytes]:
        """Fields of the message, in any order and number, some of them wrong in type or length."""
        if not message.fields or depth > _DEEPEST:
            return st.binary(max_size=3)
        most = _MOST_FIELDS if depth == 0 else 3
        return st.lists(self._any_field(message, depth), max_size=most).map(b"".join)

    def cases(self, message: Descriptor, samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
        """Good messages with fields altered, good ones with more, structured ones, damaged ones, random bytes."""
        good = st.sampled_from(samples)
        altered = self._altered(good, message)
        added = st.tuples(good, self.structured(message)).map(b"".join)
        return st.one_of(
            altered, altered, altered, added, self.structured(message), damaged(good), st.binary(max_size=60)
        )

    def _altered(self, good: st.SearchStrategy[bytes], message: Descriptor) -> st.SearchStrategy[bytes]:
        """One or two fields, at any depth, changed, left out, given twice or added."""

        @st.composite
        def altered(draw: st.DrawFn) -> bytes:
            raw = draw(good)
            for _ in range(draw(st.integers(1, 2))):
                raw = self._alter(draw, raw, message, 0)
            return raw

        return altered()

    def _alter(self, draw: st.DrawFn, raw: bytes, message: Descriptor, depth: int) -> bytes:
        fields = list(_split(raw))
        place = draw(st.integers(0, len(fields)))
        if place == len(fields):
            return raw + draw(self._any_field(message, depth))
        number, wire_type, payload = fields[place]
        field = message.fields_by_number.get(number)
        if field is None:
            return raw
        inner = field.message_type
        what = draw(st.integers(0, 9))
        if inner is not None and what < 8:
            new = _field(number, wire_type, self._alter(draw, payload, inner, depth + 1))
        elif what == 9:
            new = draw(st.sampled_from([b"", 2 * _field(number, wire_type, payload)]))
        else:
            new = draw(self._right_field(field, depth))
        return b"".join(new if each == place else _field(*parts) for each, parts in enumerate(fields))

    def _any_field(self, message: Descriptor, depth: int) -> st.SearchStrategy[bytes]:
        key = (message.full_name, depth)
        if key not in self._fields:
            right = [self._right_field(field, depth) for field in message.fields]
            numbers = st.sampled_from([*(field.number for field in message.fields), 19, 536870911])
            wrong = st.builds(_field, numbers, st.sampled_from([0, 1, 2, 3, 4, 5, 7]), st.binary(max_size=9))
            self._fields[key] = st.one_of(*right, *right, *right, wrong)
        return self._fields[key]

    def _right_field(self, field: FieldDescriptor, depth: int) -> st.SearchStrategy[bytes]:
        wire_type, values = self._values(field, depth)
        one = values.map(_writer(field.number, wire_type))
        if not field.is_repeated or wire_type == _BYTES:
            return one
        return st.one_of(one, st.lists(values, max_size=6).map(b"".join).map(_writer(field.number, _BYTES)))

    def _values(self, field: FieldDescriptor, depth: int) -> tuple[int, st.SearchStrategy[bytes]]:
        message = field.message_type
        if message is not None:
            return _BYTES, st.deferred(lambda: self.structured(message, depth + 1))
        if field.type == FieldDescriptor.TYPE_STRING:
            # The keys of a map are known by the map's name.
            owner = field.containing_type
            name = owner.name if owner is not None and owner.GetOptions().map_entry else field.name
            return _BYTES, self._words.text(name)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return _BYTES, st.one_of(st.sampled_from(_TENSORS), st.binary(max_size=40))
        if field.type == FieldDescriptor.TYPE_FLOAT:
            return _FIXED32, _floats
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            return _FIXED64, _doubles
        assert field.type in _INTEGERS, field.full_name
        return _VARINT, _numbers


@cache
def _writer(number: int, wire_type: int) -> Callable[[bytes], bytes]:
    return lambda payload: _field(number, wire_type, payload)


def _cut(given: tuple[bytes, int, int, bytes]) -> bytes:
    """Replaces bytes from one place to another by others."""
    text, first, last, other = given
    first, last = sorted((first % (len(text) + 1), last % (len(text) + 1)))
    return text[:first] + other + text[last:]


def _flip(given: tuple[bytes, int]) -> bytes:
    text, bit = given
    if not text:
        return text
    place = bit // 8 % len(text)
    return text[:place] + bytes([text[place] ^ 1 << bit % 8]) + text[place + 1 :]


def damaged(good: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Good bytes with bits flipped, cut off, or with a part replaced."""
    place = st.integers(0, 4095)
    return st.one_of(
        st.tuples(good, place).map(_flip),
        st.tuples(st.tuples(good, place).map(_flip), place).map(_flip),
        st.tuples(good, place).map(lambda given: given[0][: given[1] % (len(given[0]) + 1)]),
        st.tuples(good, place, place, st.binary(max_size=6)).map(_cut),
    )
