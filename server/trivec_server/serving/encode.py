"""From an engine's arrays to what a text's caller gets: lexical weights without repeats, and packed vectors."""

import sys
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import Vectors
from trivec_server.serving.request import SparseRow, VectorEncoding
from trivec_server.types import SPARSE_EXCLUDED_TOKEN_IDS

if sys.byteorder != "little":
    raise ImportError("Trivec writes arrays as they lie in memory and needs a little-endian machine")

_FIRST_SPARSE_ID = max(SPARSE_EXCLUDED_TOKEN_IDS) + 1
_BYTES_PER_NUMBER = {
    VectorEncoding.FLOAT_LIST: 4,
    VectorEncoding.FLOAT32: 4,
    VectorEncoding.FLOAT16: 2,
    VectorEncoding.BFLOAT16: 2,
    VectorEncoding.INT8: 1,
}


@dataclass(frozen=True, slots=True)
class PackedRows:
    """`data` uint8 [R, bytes per row]; `scales` float32 [R] with INT8, else None."""

    data: NDArray[np.uint8]
    scales: NDArray[np.float32] | None = None


def lexical_weights(
    token_ids: NDArray[np.int64], token_weights: NDArray[np.float32], lengths: NDArray[np.int64]
) -> list[SparseRow]:
    """
    The sparse vector of each text of a batch: special ids dropped, weights of zero dropped, the largest weight of a
    repeated id kept (FlagEmbedding 1.4.2, `m3.py`, `_process_token_weights`), ids ascending.

    `token_ids` and `token_weights` are flat [N]; `lengths` [B] sums to N. Gives B rows, views of two shared arrays.
    """
    rows = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    keep = np.flatnonzero((token_weights > 0) & (token_ids >= _FIRST_SPARSE_ID))
    # One sortable key per token: row in the upper half, id in the lower.
    keys = (rows[keep] << 32) | token_ids[keep]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    is_first = np.ones(len(keys), dtype=np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    starts = np.flatnonzero(is_first)
    unique = keys[starts]
    ids = (unique & 0xFFFFFFFF).astype(np.uint32)
    weights = np.maximum.reduceat(token_weights[keep][order], starts) if len(starts) else np.empty(0, np.float32)
    bounds = np.searchsorted(unique >> 32, np.arange(len(lengths) + 1)).tolist()
    return [SparseRow(ids[start:end], weights[start:end]) for start, end in pairwise(bounds)]


def prune(row: SparseRow, *, top_k: int, min_weight: float) -> SparseRow:
    """Keeps the `top_k` largest weights (0: all; of equal weights the lower id) that are at least `min_weight`."""
    ids, weights = row.ids, row.weights
    if min_weight > 0:
        keep = weights >= min_weight
        ids, weights = ids[keep], weights[keep]
    if 0 < top_k < len(ids):
        largest = np.sort(np.lexsort((ids, -weights))[:top_k])
        ids, weights = ids[largest], weights[largest]
    return SparseRow(ids, weights)


def bytes_per_row(dimension: int, encoding: VectorEncoding) -> int:
    """The bytes that one packed vector takes, without scale."""
    if encoding is VectorEncoding.BINARY:
        return (dimension + 7) // 8
    return dimension * _BYTES_PER_NUMBER[encoding]


def pack(vectors: Vectors, encoding: VectorEncoding) -> PackedRows:
    """
    Packs [R, D] row by row as `VectorEncoding` in `embedding.proto` describes: float32, or with FLOAT16 also float16.
    """
    if encoding is VectorEncoding.INT8:
        return _pack_int8(vectors)
    if encoding is VectorEncoding.BINARY:
        return PackedRows(np.packbits(vectors > 0, axis=1, bitorder="big"))
    if encoding is VectorEncoding.FLOAT16:
        # An engine may have cast them already.
        packed: NDArray[np.generic] = vectors.astype(np.float16, order="C", copy=False)
    elif encoding is VectorEncoding.BFLOAT16:
        packed = _to_bfloat16(vectors)
    else:
        packed = np.ascontiguousarray(vectors, np.float32)
    return PackedRows(packed.view(np.uint8).reshape(len(vectors), -1))  # [R, D * bytes per number]


def _pack_int8(vectors: Vectors) -> PackedRows:
    """Symmetric: scale = max|x| / 127 per row, so that number = byte * scale. A row of zeros has scale 0."""
    scales = (np.abs(vectors).max(axis=1, initial=0.0) / 127).astype(np.float32)  # [R]
    divisors = np.where(scales > 0, scales, 1)[:, None]
    quantized = np.clip(np.rint(vectors / divisors), -127, 127).astype(np.int8)
    return PackedRows(quantized.view(np.uint8), scales)


def _to_bfloat16(vectors: Vectors) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded to nearest even. The numbers are finite: batches are checked."""
    bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    rounding = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    return ((bits + rounding) >> 16).astype(np.uint16)
