"""What a client does with the vectors of a response, written plainly: bytes to float32 arrays."""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb

ENCODINGS = (
    pb.VECTOR_ENCODING_FLOAT_LIST,
    pb.VECTOR_ENCODING_FLOAT32,
    pb.VECTOR_ENCODING_FLOAT16,
    pb.VECTOR_ENCODING_BFLOAT16,
    pb.VECTOR_ENCODING_INT8,
    pb.VECTOR_ENCODING_BINARY,
)


def dense_numbers(dense: pb.DenseVector) -> NDArray[np.float32]:
    """[dimension]; of BINARY the bits, as 0 and 1."""
    scales = np.array([dense.scale], np.float32)
    return _numbers(dense.encoding, dense.values, dense.data, scales, 1, dense.dimension).reshape(-1)


def row_numbers(vectors: pb.MultiVector) -> NDArray[np.float32]:
    """[rows, dimension]; of BINARY the bits, as 0 and 1."""
    scales = np.array(vectors.scales, np.float32)
    return _numbers(vectors.encoding, vectors.values, vectors.data, scales, vectors.rows, vectors.dimension)


def as_sent(vectors: NDArray[np.float32], encoding: int) -> NDArray[np.float32]:
    """The numbers that vectors [R, D] become by being sent in an encoding without scales."""
    if encoding == pb.VECTOR_ENCODING_FLOAT16:
        return vectors.astype(np.float16).astype(np.float32)
    if encoding == pb.VECTOR_ENCODING_BFLOAT16:
        return np.asarray(vectors.astype(ml_dtypes.bfloat16), np.float32)
    if encoding == pb.VECTOR_ENCODING_BINARY:
        return (vectors > 0).astype(np.float32)
    return vectors


def _numbers(
    encoding: int, values: object, data: bytes, scales: NDArray[np.float32], rows: int, dimension: int
) -> NDArray[np.float32]:
    if encoding == pb.VECTOR_ENCODING_FLOAT_LIST:
        assert data == b""
        return np.array(values, np.float32).reshape(rows, dimension)
    assert not values
    if encoding == pb.VECTOR_ENCODING_BINARY:
        bits = np.unpackbits(np.frombuffer(data, np.uint8).reshape(rows, -1), axis=1)
        assert not bits[:, dimension:].any(), "padding bits must be zero"
        return bits[:, :dimension].astype(np.float32)
    if encoding == pb.VECTOR_ENCODING_INT8:
        quantized = np.frombuffer(data, np.int8).reshape(rows, dimension)
        assert len(scales) == rows
        return quantized * scales[:, None]
    dtype = {
        int(pb.VECTOR_ENCODING_FLOAT32): "<f4",
        int(pb.VECTOR_ENCODING_FLOAT16): "<f2",
        int(pb.VECTOR_ENCODING_BFLOAT16): ml_dtypes.bfloat16,
    }[encoding]
    return np.asarray(np.frombuffer(data, dtype).reshape(rows, dimension), np.float32)
