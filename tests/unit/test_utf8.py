"""Finding the string that is not UTF-8, by field and index, in bytes that would not decode."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from trivec.v1 import embedding_pb2 as pb
from trivec_server.transport.utf8 import find_invalid_utf8, read_string

from tests.raw_messages import field_bytes

INVALID = [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]
"""A stray byte, a cut sequence, a surrogate, an overlong form, a code point above U+10FFFF."""

EMBED = pb.EmbedRequest
TEXTS = EMBED.DESCRIPTOR.fields_by_name["texts"].number


@given(st.lists(st.text(max_size=5), max_size=5), st.lists(st.text(max_size=5), max_size=5), st.sampled_from(INVALID))
def test_the_first_text_that_is_not_utf8_is_named_by_its_index(
    before: list[str], after: list[str], invalid: bytes
) -> None:
    raw = (
        EMBED(model="m", version=3, texts=before, sparse_min_weight=0.5).SerializeToString()
        + field_bytes(TEXTS, invalid)
        + EMBED(texts=after, request_id="r").SerializeToString()
    )
    assert find_invalid_utf8(raw, EMBED) == f"texts[{len(before)}]"


@pytest.mark.parametrize("invalid", INVALID)
def test_what_protobuf_refuses_is_found(invalid: bytes) -> None:
    raw = field_bytes(TEXTS, invalid)
    with pytest.raises(DecodeError):
        EMBED.FromString(raw)
    assert find_invalid_utf8(raw, EMBED) == "texts[0]"


@given(st.lists(st.text(max_size=9), max_size=4), st.text(max_size=9))
def test_a_valid_message_has_no_such_string(texts: list[str], name: str) -> None:
    assert find_invalid_utf8(EMBED(model=name, texts=texts).SerializeToString(), EMBED) is None


def test_a_field_that_is_not_repeated_is_named_without_an_index() -> None:
    assert find_invalid_utf8(field_bytes(EMBED.DESCRIPTOR.fields_by_name["model"].number, b"\xff"), EMBED) == "model"


def test_a_string_in_a_nested_message_is_named_by_its_path() -> None:
    stream = pb.EmbedStreamRequest
    inner = EMBED(texts=["a"]).SerializeToString() + field_bytes(TEXTS, b"\xff")
    raw = stream(id="x").SerializeToString() + field_bytes(stream.DESCRIPTOR.fields_by_name["request"].number, inner)
    assert find_invalid_utf8(raw, stream) == "request.texts[1]"


def test_bytes_of_an_unknown_field_are_no_fault() -> None:
    assert find_invalid_utf8(field_bytes(999, b"\xff"), EMBED) is None


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_never_raise(raw: bytes) -> None:
    find_invalid_utf8(raw, pb.EmbedStreamRequest)


@given(st.text(max_size=20), st.binary(max_size=20))
def test_a_string_is_read_from_a_message_whose_rest_cannot_be(name: str, rest: bytes) -> None:
    stream = pb.EmbedStreamRequest
    raw = stream(id=name).SerializeToString() + field_bytes(
        stream.DESCRIPTOR.fields_by_name["request"].number, rest + INVALID[0]
    )
    assert read_string(raw, stream, "id") == name
    assert read_string(raw + b"\xff", stream, "id") == name


def test_a_string_that_is_missing_or_not_utf8_itself_reads_as_empty() -> None:
    assert read_string(b"", pb.EmbedStreamRequest, "id") == ""
    assert read_string(field_bytes(1, b"\xff"), pb.EmbedStreamRequest, "id") == ""


@given(st.binary(max_size=60))
def test_reading_from_bytes_that_are_no_message_never_raises(raw: bytes) -> None:
    read_string(raw, pb.EmbedStreamRequest, "id")
