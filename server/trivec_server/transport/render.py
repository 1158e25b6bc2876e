"""
Embeddings straight from arrays into protobuf's wire format.

Building and serializing a message object per text takes more time than everything else the server does for a short
text, so the `Embedding` messages are written here, as buffers that are joined once; the numbers themselves are copied
only by that. All else in a response is built with the generated classes. Field numbers come from their descriptors.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from google.protobuf.descriptor import Descriptor
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb

from trivec_server.backends.interface import Vectors
from trivec_server.serving.encode import bytes_per_row, pack, prune
from trivec_server.serving.portions import Totals
from trivec_server.serving.request import EmbedResult, SparseRow, VectorEncoding
from trivec_server.serving.tokenizer import Tokenizer
from trivec_server.transport.parse import OutputOptions
from trivec_server.types import ModelVersion

Buffer: TypeAlias = bytes | memoryview

_VARINT, _LENGTH_DELIMITED, _FIXED32 = 0, 2, 5
_VARINT_WIDTH = 5
_ID_VARINT_WIDTH = 3
_WIRE_TYPES = {
    VectorEncoding.FLOAT_LIST: np.float32,
    VectorEncoding.FLOAT32: np.float32,
    VectorEncoding.FLOAT16: np.float16,
}
"""The encodings that are NumPy's own types."""
_MAX_SHORT_ID = 1 << (7 * _ID_VARINT_WIDTH)
_BYTES_PER_SPARSE_ENTRY = 8
_BYTES_PER_SPARSE_ENTRY_WITH_TOKEN = 32

_WIRE_ENCODINGS = {
    VectorEncoding.FLOAT_LIST: pb.VECTOR_ENCODING_FLOAT_LIST,
    VectorEncoding.FLOAT32: pb.VECTOR_ENCODING_FLOAT32,
    VectorEncoding.FLOAT16: pb.VECTOR_ENCODING_FLOAT16,
    VectorEncoding.BFLOAT16: pb.VECTOR_ENCODING_BFLOAT16,
    VectorEncoding.INT8: pb.VECTOR_ENCODING_INT8,
    VectorEncoding.BINARY: pb.VECTOR_ENCODING_BINARY,
}

_SHIFTS = np.arange(0, 7 * _VARINT_WIDTH, 7)
_CONTINUED = np.array([0x80] * (_VARINT_WIDTH - 1) + [0])


@dataclass(frozen=True, slots=True)
class Part:
    """What one message holds of one text: a range of multi-vector rows, and with `is_first` everything else."""

    index: int
    first_row: int
    rows: int
    is_first: bool


def _tag(descriptor: Descriptor, field: str, wire_type: int) -> bytes:
    return varint(descriptor.fields_by_name[field].number << 3 | wire_type)


@lru_cache(maxsize=16_384)
def varint(value: int) -> bytes:
    """A varint of the fewest bytes."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_EMBEDDING = pb.Embedding.DESCRIPTOR
_EMBEDDINGS_TAG = _tag(pb.EmbedResponse.DESCRIPTOR, "embeddings", _LENGTH_DELIMITED)
_INDEX_TAG = _tag(_EMBEDDING, "index", _VARINT)
_TOKEN_COUNT_TAG = _tag(_EMBEDDING, "token_count", _VARINT)
_TRUNCATED_TAG = _tag(_EMBEDDING, "truncated", _VARINT)
_DENSE_TAG = _tag(_EMBEDDING, "dense", _LENGTH_DELIMITED)
_SPARSE_TAG = _tag(_EMBEDDING, "sparse", _LENGTH_DELIMITED)
_MULTI_VECTOR_TAG = _tag(_EMBEDDING, "multi_vector", _LENGTH_DELIMITED)
_SPARSE = pb.SparseVector.DESCRIPTOR
_SPARSE_IDS_TAG = _tag(_SPARSE, "ids", _LENGTH_DELIMITED)
_SPARSE_WEIGHTS_TAG = _tag(_SPARSE, "weights", _LENGTH_DELIMITED)
_SPARSE_TOKENS_TAG = _tag(_SPARSE, "tokens", _LENGTH_DELIMITED)
_DENSE_SCALE_TAG = _tag(pb.DenseVector.DESCRIPTOR, "scale", _FIXED32)
_MULTI_VECTOR_SCALES_TAG = _tag(pb.MultiVector.DESCRIPTOR, "scales", _LENGTH_DELIMITED)
_RESPONSE = pb.EmbedResponse.DESCRIPTOR
_REQUEST_ID_TAG = _tag(_RESPONSE, "request_id", _LENGTH_DELIMITED)
_USAGE_TAG = _tag(_RESPONSE, "usage", _LENGTH_DELIMITED)
_TIMINGS_TAG = _tag(_RESPONSE, "timings", _LENGTH_DELIMITED)
_USAGE_TAGS = [_tag(pb.TokenUsage.DESCRIPTOR, name, _VARINT) for name in ("total_tokens", "truncated_texts")]
_TIMINGS_TAGS = [_tag(pb.Timings.DESCRIPTOR, name, _VARINT) for name in ("tokenize_us", "queue_us", "compute_us")]
_STREAM_RESPONSE_TAG = _tag(pb.EmbedStreamResponse.DESCRIPTOR, "response", _LENGTH_DELIMITED)


def render_embeddings(
    result: EmbedResult,
    options: OutputOptions,
    tokenizer: Tokenizer,
    parts: Sequence[Part] | None = None,
    *,
    first_index: int = 0,
) -> list[Buffer]:
    """
    The `embeddings` of an EmbedResponse, as buffers to be joined: every text whole, or the given parts of texts.
    `first_index` is the position in the request of the result's first text.

    Each buffer is a complete run of field bytes, so joined with the other fields' bytes they make the message.
    """
    is_dense_only = result.sparse is None and result.multi_vector is None
    if result.dense is not None and is_dense_only and options.encoding is not VectorEncoding.INT8:
        first, last = (parts[0].index, parts[-1].index + 1) if parts is not None else (0, len(result.lengths))
        return _dense_only_fields(result, result.dense, options.encoding, first, last, first_index)
    if parts is None:
        parts = [whole_part(result, index) for index in range(len(result.lengths))]
    first = parts[0].index if parts else 0
    dense = None
    if result.dense is not None and parts:
        dense = _DenseFields(result.dense[first : parts[-1].index + 1], options.encoding)
    lengths, truncated = result.lengths.tolist(), result.truncated.tolist()
    buffers: list[Buffer] = []
    for part in parts:
        index = part.index
        fields: list[Buffer] = [_header(first_index + index, lengths[index], truncated[index])]
        if part.is_first:
            if dense is not None:
                fields += dense.field(index - first)
            if result.sparse is not None:
                row = prune(result.sparse[index], top_k=options.sparse_top_k, min_weight=options.sparse_min_weight)
                tokens = tokenizer.token_strings(row.ids.tolist()) if options.return_tokens else []
                fields += _sparse_field(row, tokens)
        if result.multi_vector is not None:
            fields += _multi_vector_field(result.multi_vector[index], part, options.encoding)
        buffers += _delimited(_EMBEDDINGS_TAG, fields)
    return buffers


def render_response(
    key: ModelVersion, request_id: str, totals: Totals | None, embeddings: Sequence[Buffer]
) -> list[Buffer]:
    """An EmbedResponse around its rendered embeddings; usage and timings only where `totals` are given."""
    head = _response_head(key.name, key.version) + _string_field(_REQUEST_ID_TAG, request_id)
    if totals is not None:
        timings = totals.timings
        usage = _varint_fields(_USAGE_TAGS, (totals.tokens, totals.truncated_texts))
        times = _varint_fields(_TIMINGS_TAGS, (timings.tokenize_us, timings.queue_us, timings.compute_us))
        head += _USAGE_TAG + varint(len(usage)) + usage + _TIMINGS_TAG + varint(len(times)) + times
    return [head, *embeddings]


@lru_cache(maxsize=256)
def _response_head(name: str, version: int) -> bytes:
    return pb.EmbedResponse(model=name, version=version).SerializeToString()


def _string_field(tag: bytes, value: str) -> bytes:
    encoded = value.encode()
    return tag + varint(len(encoded)) + encoded


def _varint_fields(tags: Sequence[bytes], values: Sequence[int]) -> bytes:
    return b"".join([tag + varint(value) for tag, value in zip(tags, values, strict=True)])


def render_stream_message(request_id_of_stream: str, response: Sequence[Buffer], *, final: bool) -> bytes:
    """An EmbedStreamResponse around the bytes of an EmbedResponse."""
    envelope = pb.EmbedStreamResponse(id=request_id_of_stream, final=final).SerializeToString()
    return b"".join([envelope, *_delimited(_STREAM_RESPONSE_TAG, response)])


def whole_part(result: EmbedResult, index: int) -> Part:
    """All of one text."""
    return Part(index, 0, 0 if result.multi_vector is None else len(result.multi_vector[index]), is_first=True)


def split_parts(result: EmbedResult, options: OutputOptions, chunk_bytes: int) -> Iterator[list[Part]]:
    """
    Divides a result into messages whose vectors take at most `chunk_bytes`, one text or row at least. Texts stay in
    order; a multi-vector that does not fit goes on in the next message.
    """
    entry_bytes = _BYTES_PER_SPARSE_ENTRY_WITH_TOKEN if options.return_tokens else _BYTES_PER_SPARSE_ENTRY
    dense_bytes = 0 if result.dense is None else bytes_per_row(result.dense.shape[1], options.encoding)
    message: list[Part] = []
    left = chunk_bytes
    for index in range(len(result.lengths)):
        whole = whole_part(result, index)
        single_bytes = dense_bytes + (0 if result.sparse is None else len(result.sparse[index].ids) * entry_bytes)
        row_bytes = 0
        if result.multi_vector is not None:
            row_bytes = bytes_per_row(result.multi_vector[index].shape[1], options.encoding)
        if message and single_bytes + row_bytes > left:
            yield message
            message, left = [], chunk_bytes
        left -= single_bytes
        first_row = 0
        while True:
            rows = whole.rows - first_row
            if row_bytes:
                rows = min(rows, max(1 if not message else 0, left // row_bytes))
            message.append(Part(index, first_row, rows, is_first=first_row == 0))
            left -= rows * row_bytes
            first_row += rows
            if first_row >= whole.rows:
                break
            yield message
            message, left = [], chunk_bytes
    if message:
        yield message


def _delimited(tag: bytes, fields: Sequence[Buffer]) -> list[Buffer]:
    return [tag + varint(sum(map(len, fields))), *fields]


def _padded_varints(values: NDArray[np.integer], width: int) -> NDArray[np.uint8]:
    """
    Varints of constant width, uint8 [..., width]: padded with continuation bytes, which the encoding allows (up to ten
    bytes) and which lets a whole array be written at once.
    """
    columns: NDArray[np.int64] = values[..., None] >> _SHIFTS[:width] & 0x7F | _CONTINUED[-width:]
    return columns.astype(np.uint8)


def _header(index: int, token_count: int, truncated: bool) -> bytes:
    header = _INDEX_TAG + varint(index) + _TOKEN_COUNT_TAG + varint(token_count)
    return header + _TRUNCATED_TAG + b"\x01" if truncated else header


@lru_cache(maxsize=256)
def _vector_header(
    descriptor_name: str, numbers: tuple[tuple[str, int], ...], encoding: VectorEncoding, payload: int
) -> bytes:
    """The fields before a vector's payload, the payload's own tag and length included."""
    descriptor = pb.DESCRIPTOR.message_types_by_name[descriptor_name]
    field = "values" if encoding is VectorEncoding.FLOAT_LIST else "data"
    header = b"".join(_tag(descriptor, name, _VARINT) + varint(value) for name, value in numbers if value)
    header += _tag(descriptor, "encoding", _VARINT) + varint(_WIRE_ENCODINGS[encoding])
    return header + _tag(descriptor, field, _LENGTH_DELIMITED) + varint(payload)


class _DenseFields:
    """The field `dense` of every text of a result: all the same but for the payload, and with INT8 the scale."""

    def __init__(self, dense: Vectors, encoding: VectorEncoding) -> None:
        self._payloads, scales = _payload(dense, encoding)
        self._scales = None if scales is None else scales.tolist()
        self._prefix, self._width = _dense_prefix(dense.shape[1], encoding, has_scale=scales is not None)

    def field(self, index: int) -> list[Buffer]:
        """The buffers of one text's field."""
        payload = self._payloads[index * self._width : (index + 1) * self._width]
        if self._scales is None:
            return [self._prefix, payload]
        return [self._prefix, payload, _DENSE_SCALE_TAG + struct.pack("<f", self._scales[index])]


@lru_cache(maxsize=256)
def _dense_prefix(dimension: int, encoding: VectorEncoding, *, has_scale: bool) -> tuple[bytes, int]:
    """All of the field `dense` before its payload, and the payload's bytes; a scale comes after it."""
    payload = bytes_per_row(dimension, encoding)
    header = _vector_header("DenseVector", (("dimension", dimension),), encoding, payload)
    size = len(header) + payload + (len(_DENSE_SCALE_TAG) + 4 if has_scale else 0)
    return _DENSE_TAG + varint(size) + header, payload


def _payload(vectors: Vectors, encoding: VectorEncoding) -> tuple[memoryview, NDArray[np.float32] | None]:
    """All rows packed, as bytes, and the scales of INT8. Rows that lie together in that type are not copied."""
    if vectors.dtype == _WIRE_TYPES.get(encoding) and vectors.flags.c_contiguous:
        return vectors.data.cast("B"), None
    packed = pack(vectors, encoding)
    return packed.data.reshape(-1).data, packed.scales


def _dense_only_fields(
    result: EmbedResult, dense: Vectors, encoding: VectorEncoding, first: int, last: int, first_index: int
) -> list[Buffer]:
    """The embeddings of texts `first` to `last`, of which there is nothing but `dense` [B, D], not INT8."""
    payloads, _ = _payload(dense[first:last], encoding)
    prefix, width = _dense_prefix(dense.shape[1], encoding, has_scale=False)
    counts = zip(result.lengths[first:last].tolist(), result.truncated[first:last].tolist(), strict=True)
    buffers: list[Buffer] = []
    at = 0
    for index, (token_count, truncated) in enumerate(counts, start=first_index + first):
        buffers.append(_dense_only_header(index, token_count, truncated, prefix, width))
        buffers.append(payloads[at : at + width])
        at += width
    return buffers


@lru_cache(maxsize=65_536)
def _dense_only_header(index: int, token_count: int, truncated: bool, dense_prefix: bytes, width: int) -> bytes:
    """All of an embedding before the numbers of its dense vector, the field's tag and length included."""
    header = _header(index, token_count, truncated) + dense_prefix
    return _EMBEDDINGS_TAG + varint(len(header) + width) + header


def _sparse_field(row: SparseRow, tokens: Sequence[str]) -> list[Buffer]:
    """The field `sparse`, present also when it has no entries."""
    fields: list[Buffer] = []
    if len(row.ids):
        width = _ID_VARINT_WIDTH if int(row.ids[-1]) < _MAX_SHORT_ID else _VARINT_WIDTH
        ids = _padded_varints(row.ids.astype(np.int64), width).tobytes()
        fields += [_SPARSE_IDS_TAG + varint(len(ids)), ids]
        fields += [_SPARSE_WEIGHTS_TAG + varint(4 * len(row.weights)), row.weights.tobytes()]
    for token in tokens:
        encoded = token.encode()
        fields.append(_SPARSE_TOKENS_TAG + varint(len(encoded)) + encoded)
    return _delimited(_SPARSE_TAG, fields)


def _multi_vector_field(vectors: Vectors, part: Part, encoding: VectorEncoding) -> list[Buffer]:
    """The field `multi_vector` with the rows of one part."""
    rows, dimension = part.rows, vectors.shape[1]
    payload, scales = _payload(vectors[part.first_row : part.first_row + rows], encoding)
    numbers = (("rows", rows), ("dimension", dimension), ("first_row", part.first_row), ("total_rows", len(vectors)))
    header = _vector_header("MultiVector", numbers, encoding, len(payload))
    fields: list[Buffer] = [header, payload]
    if scales is not None:
        fields += [_MULTI_VECTOR_SCALES_TAG + varint(scales.nbytes), scales.tobytes()]
    return _delimited(_MULTI_VECTOR_TAG, fields)
