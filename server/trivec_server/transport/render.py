"""
Embeddings straight from arrays into protobuf's wire format.

Building and serializing a message object per text takes more time than everything else the server does for a short
text, so the `Embedding` messages are written here: headers of fixed width, numbers copied from the array once. All
else in a response is built with the generated classes. A varint may be padded with continuation bytes (the protobuf
encoding allows up to ten), which is what makes the headers' width constant. Field numbers come from the generated
descriptors.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from google.protobuf.descriptor import Descriptor
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb

from trivec_server.serving.encode import bytes_per_row, pack, prune
from trivec_server.serving.request import EmbedResult, SparseRow, VectorEncoding
from trivec_server.serving.tokenizer import Tokenizer
from trivec_server.transport.parse import OutputOptions

Buffer: TypeAlias = bytes | memoryview

_VARINT, _LENGTH_DELIMITED, _FIXED32 = 0, 2, 5
_VARINT_WIDTH = 5
_ID_VARINT_WIDTH = 3
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


@dataclass(frozen=True, slots=True)
class Part:
    """What one message holds of one text: a range of multi-vector rows, and with `is_first` everything else."""

    index: int
    first_row: int
    rows: int
    is_first: bool


def _tag(descriptor: Descriptor, field: str, wire_type: int) -> bytes:
    return varint(descriptor.fields_by_name[field].number << 3 | wire_type)


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
_HEADER_WIDTH = len(_INDEX_TAG + _TOKEN_COUNT_TAG + _TRUNCATED_TAG) + 2 * _VARINT_WIDTH + 1


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
    if result.dense is not None and result.sparse is None and result.multi_vector is None:
        first, last = (parts[0].index, parts[-1].index + 1) if parts is not None else (0, len(result.lengths))
        return [_render_dense_only(result, result.dense[first:last], options.encoding, first, first_index)]
    if parts is None:
        parts = [whole_part(result, index) for index in range(len(result.lengths))]
    headers = _headers(result, first_index)
    blocks = None if result.dense is None else _dense_fields(result.dense, options.encoding)
    buffers: list[Buffer] = []
    for part in parts:
        fields: list[Buffer] = [memoryview(headers[part.index])]
        if blocks is not None and part.is_first:
            fields.append(memoryview(blocks[part.index]))
        if result.sparse is not None and part.is_first:
            row = prune(result.sparse[part.index], top_k=options.sparse_top_k, min_weight=options.sparse_min_weight)
            tokens = tokenizer.token_strings(row.ids.tolist()) if options.return_tokens else []
            fields.extend(_sparse_field(row, tokens))
        if result.multi_vector is not None:
            fields.extend(_multi_vector_field(result.multi_vector[part.index], part, options.encoding))
        buffers.extend(_delimited(_EMBEDDINGS_TAG, fields))
    return buffers


def render_stream_message(request_id_of_stream: str, response: Sequence[Buffer], *, final: bool) -> bytes:
    """An EmbedStreamResponse around the bytes of an EmbedResponse."""
    envelope = pb.EmbedStreamResponse(id=request_id_of_stream, final=final).SerializeToString()
    tag = _tag(pb.EmbedStreamResponse.DESCRIPTOR, "response", _LENGTH_DELIMITED)
    return b"".join([envelope, *_delimited(tag, response)])


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
    """Varints of constant width, uint8 [..., width]."""
    shifts = np.arange(0, 7 * width, 7, dtype=np.uint64)
    columns = ((values.astype(np.uint64)[..., None] >> shifts) & np.uint64(0x7F)).astype(np.uint8)
    columns[..., :-1] |= 0x80
    return columns


def _headers(result: EmbedResult, first_index: int) -> NDArray[np.uint8]:
    """`index`, `token_count` and `truncated` of every text, uint8 [B, _HEADER_WIDTH]."""
    headers = np.empty((len(result.lengths), _HEADER_WIDTH), np.uint8)
    _write_headers(headers, result, 0, len(result.lengths), first_index)
    return headers


def _write_headers(out: NDArray[np.uint8], result: EmbedResult, first: int, last: int, first_index: int) -> None:
    at = 0
    for tag, values, width in (
        (_INDEX_TAG, np.arange(first_index + first, first_index + last), _VARINT_WIDTH),
        (_TOKEN_COUNT_TAG, result.lengths[first:last], _VARINT_WIDTH),
        (_TRUNCATED_TAG, result.truncated[first:last].view(np.uint8), 1),
    ):
        out[:, at : at + len(tag)] = np.frombuffer(tag, np.uint8)
        at += len(tag)
        out[:, at : at + width] = _padded_varints(values, width)
        at += width


def _vector_header(descriptor: Descriptor, numbers: dict[str, int], encoding: VectorEncoding, payload: int) -> bytes:
    """The fields before a vector's payload, the payload's own tag and length included."""
    field = "values" if encoding is VectorEncoding.FLOAT_LIST else "data"
    header = b"".join(_tag(descriptor, name, _VARINT) + varint(value) for name, value in numbers.items() if value)
    header += _tag(descriptor, "encoding", _VARINT) + varint(_WIRE_ENCODINGS[encoding])
    return header + _tag(descriptor, field, _LENGTH_DELIMITED) + varint(payload)


def _dense_prefix(dimension: int, encoding: VectorEncoding, has_scale: bool) -> bytes:
    """All of the field `dense` before its payload; the scale, if there is one, comes after the payload."""
    payload = bytes_per_row(dimension, encoding)
    header = _vector_header(pb.DenseVector.DESCRIPTOR, {"dimension": dimension}, encoding, payload)
    scale_width = len(_DENSE_SCALE_TAG) + 4 if has_scale else 0
    return _DENSE_TAG + varint(len(header) + payload + scale_width) + header


def _write_dense(out: NDArray[np.uint8], prefix: bytes, data: NDArray[np.uint8], scales: bytes | None) -> None:
    """Writes the field `dense` of B texts into uint8 [B, W]."""
    at = len(prefix)
    out[:, :at] = np.frombuffer(prefix, np.uint8)
    out[:, at : at + data.shape[1]] = data
    if scales is not None:
        at += data.shape[1]
        out[:, at : at + len(_DENSE_SCALE_TAG)] = np.frombuffer(_DENSE_SCALE_TAG, np.uint8)
        out[:, at + len(_DENSE_SCALE_TAG) :] = np.frombuffer(scales, np.uint8).reshape(-1, 4)


def _dense_fields(dense: NDArray[np.float32], encoding: VectorEncoding) -> NDArray[np.uint8]:
    """The field `dense` of every text, uint8 [B, W]."""
    packed = pack(dense, encoding)
    prefix = _dense_prefix(dense.shape[1], encoding, packed.scales is not None)
    width = len(prefix) + packed.data.shape[1] + (0 if packed.scales is None else len(_DENSE_SCALE_TAG) + 4)
    out = np.empty((len(dense), width), np.uint8)
    _write_dense(out, prefix, packed.data, None if packed.scales is None else packed.scales.tobytes())
    return out


def _render_dense_only(
    result: EmbedResult, dense: NDArray[np.float32], encoding: VectorEncoding, first: int, first_index: int
) -> memoryview:
    """
    The embeddings of texts `first` and following, of which there is nothing but `dense` [B, D]: every one has the same
    width, so together they are one array.
    """
    packed = pack(dense, encoding)
    last = first + len(dense)
    prefix = _dense_prefix(dense.shape[1], encoding, packed.scales is not None)
    dense_width = len(prefix) + packed.data.shape[1] + (0 if packed.scales is None else len(_DENSE_SCALE_TAG) + 4)
    start = _EMBEDDINGS_TAG + varint(_HEADER_WIDTH + dense_width)
    out = np.empty((last - first, len(start) + _HEADER_WIDTH + dense_width), np.uint8)
    out[:, : len(start)] = np.frombuffer(start, np.uint8)
    _write_headers(out[:, len(start) : len(start) + _HEADER_WIDTH], result, first, last, first_index)
    scales = None if packed.scales is None else packed.scales.tobytes()
    _write_dense(out[:, len(start) + _HEADER_WIDTH :], prefix, packed.data, scales)
    return out.reshape(-1).data


def _sparse_field(row: SparseRow, tokens: Sequence[str]) -> list[Buffer]:
    """The field `sparse`, present also when it has no entries."""
    fields: list[Buffer] = []
    if len(row.ids):
        width = _ID_VARINT_WIDTH if int(row.ids[-1]) < _MAX_SHORT_ID else _VARINT_WIDTH
        ids = _padded_varints(row.ids, width).tobytes()
        fields += [_SPARSE_IDS_TAG + varint(len(ids)), ids]
        fields += [_SPARSE_WEIGHTS_TAG + varint(4 * len(row.weights)), row.weights.tobytes()]
    for token in tokens:
        encoded = token.encode()
        fields.append(_SPARSE_TOKENS_TAG + varint(len(encoded)) + encoded)
    return _delimited(_SPARSE_TAG, fields)


def _multi_vector_field(vectors: NDArray[np.float32], part: Part, encoding: VectorEncoding) -> list[Buffer]:
    """The field `multi_vector` with the rows of one part."""
    rows, dimension = part.rows, vectors.shape[1]
    packed = pack(vectors[part.first_row : part.first_row + rows], encoding)
    numbers = {"rows": rows, "dimension": dimension, "first_row": part.first_row, "total_rows": len(vectors)}
    header = _vector_header(pb.MultiVector.DESCRIPTOR, numbers, encoding, packed.data.size)
    fields: list[Buffer] = [header, packed.data.reshape(-1).data]
    if packed.scales is not None:
        scales_tag = _tag(pb.MultiVector.DESCRIPTOR, "scales", _LENGTH_DELIMITED)
        fields += [scales_tag + varint(packed.scales.nbytes), struct.pack(f"<{rows}f", *packed.scales.tolist())]
    return _delimited(_MULTI_VECTOR_TAG, fields)
