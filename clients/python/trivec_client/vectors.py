"""Packed vectors to NumPy arrays: no loop over numbers."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb

from trivec_client.errors import MalformedResponseError

WireEncoding = Literal["float32", "float16", "bfloat16", "int8", "binary"]
"""How vectors travel. Whatever it is, the caller gets float32."""

ENCODINGS: dict[WireEncoding, pb.VectorEncoding.ValueType] = {
    "float32": pb.VECTOR_ENCODING_FLOAT32,
    "float16": pb.VECTOR_ENCODING_FLOAT16,
    "bfloat16": pb.VECTOR_ENCODING_BFLOAT16,
    "int8": pb.VECTOR_ENCODING_INT8,
    "binary": pb.VECTOR_ENCODING_BINARY,
}


def row_bytes(encoding: WireEncoding, dimension: int) -> int:
    """Bytes of one packed row of `dimension` numbers."""
    match encoding:
        case "float32":
            return 4 * dimension
        case "float16" | "bfloat16":
            return 2 * dimension
        case "int8":
            return dimension
        case "binary":
            return (dimension + 7) // 8


def decode_rows(
    parts: Sequence[bytes], scales: Sequence[float], encoding: WireEncoding, dimension: int
) -> NDArray[np.float32]:
    """
    Packed rows as a writable array.

    Args:
        parts: the rows, each part holding whole rows, little-endian, row-major.
        scales: with `int8` one factor per row; not read otherwise.
        encoding: how the rows are packed.
        dimension: numbers per row.

    Returns:
        float32 [rows, dimension]. With `binary` a set bit is 1 and a clear one -1, so that inner products keep their
        order; the rows then are not of unit length.

    Raises:
        MalformedResponseError: the bytes are not a whole number of rows, or there is not one scale per row.
    """
    data = bytearray().join(parts)  # a bytearray, and so the array over it, is writable
    size = row_bytes(encoding, dimension)
    if dimension == 0 or len(data) % size:
        raise MalformedResponseError.because(
            f"{len(data)} bytes are not whole {encoding} rows of dimension {dimension}"
        )
    match encoding:
        case "float32":
            return np.frombuffer(data, "<f4").astype(np.float32, copy=False).reshape(-1, dimension)
        case "float16":
            return np.frombuffer(data, "<f2").astype(np.float32).reshape(-1, dimension)
        case "bfloat16":
            upper = np.frombuffer(data, "<u2").astype(np.uint32)
            return (upper << 16).view(np.float32).reshape(-1, dimension)
        case "int8":
            rows = np.frombuffer(data, np.int8).reshape(-1, dimension)
            if len(scales) != len(rows):
                raise MalformedResponseError.because(f"{len(scales)} int8 scales for {len(rows)} rows")
            return rows * np.asarray(scales, np.float32)[:, None]
        case "binary":
            packed = np.frombuffer(data, np.uint8).reshape(-1, size)
            bits = np.unpackbits(packed, axis=1, count=dimension, bitorder="big")
            return bits.astype(np.float32) * 2 - 1
