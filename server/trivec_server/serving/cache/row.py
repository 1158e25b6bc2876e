"""One cached text: its embeddings, their size, their form outside this process, and the key they are kept under."""

import hashlib
import struct
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import Vectors
from trivec_server.serving.request import SparseRow
from trivec_server.types import Mode

_ENTRY_OVERHEAD_BYTES = 400
"""About what an entry takes beside its numbers: the key, the arrays' headers, the table's slot."""
_HEADER = struct.Struct("<4sBBIII")
_MAGIC = b"TRV1"
_DTYPES: tuple[type[np.float32 | np.float16], ...] = (np.float32, np.float16)
_NumberT = TypeVar("_NumberT", bound=np.generic)


@dataclass(frozen=True, slots=True)
class CachedRow:
    """
    The embeddings of one text, with memory of their own: `dense` [D], `sparse`, `multi_vector` [tokens - 1, D]. A part
    is None if it was not asked for.
    """

    dense: Vectors | None
    sparse: SparseRow | None
    multi_vector: Vectors | None

    @property
    def nbytes(self) -> int:
        """About what the entry takes in memory."""
        size = _ENTRY_OVERHEAD_BYTES
        if self.dense is not None:
            size += self.dense.nbytes
        if self.sparse is not None:
            size += self.sparse.ids.nbytes + self.sparse.weights.nbytes
        if self.multi_vector is not None:
            size += self.multi_vector.nbytes
        return size

    def to_bytes(self) -> bytes:
        """The row for a store outside this process: a header, then the arrays, little-endian."""
        parts = 0
        half = False
        pieces = []
        if self.dense is not None:
            parts, half = parts | Mode.DENSE.value, self.dense.dtype == np.float16
            pieces.append(self.dense.tobytes())
        if self.sparse is not None:
            parts |= Mode.SPARSE.value
            pieces += [self.sparse.ids.tobytes(), self.sparse.weights.tobytes()]
        if self.multi_vector is not None:
            parts, half = parts | Mode.MULTI_VECTOR.value, self.multi_vector.dtype == np.float16
            pieces.append(self.multi_vector.tobytes())
        dimension = 0 if self.dense is None else len(self.dense)
        entries = 0 if self.sparse is None else len(self.sparse.ids)
        vectors = 0 if self.multi_vector is None else len(self.multi_vector)
        return b"".join([_HEADER.pack(_MAGIC, parts, half, dimension, entries, vectors), *pieces])

    @classmethod
    def from_bytes(cls, data: bytes, multi_vector_dimension: int) -> "CachedRow":
        """
        The row that `to_bytes` wrote.

        Raises:
            ValueError: the bytes are of no such row.
        """
        if len(data) < _HEADER.size:
            raise ValueError("too short")
        magic, parts, half, dimension, entries, vectors = _HEADER.unpack_from(data)
        if magic != _MAGIC or half not in (0, 1):
            raise ValueError("not a row of this version")
        reader = _Reader(data)
        modes, dtype = Mode(parts), _DTYPES[half]
        dense: Vectors | None = None
        multi_vector: Vectors | None = None
        if Mode.DENSE in modes:
            dense = reader.take(dimension, dtype)
        sparse = None
        if Mode.SPARSE in modes:
            sparse = SparseRow(reader.take(entries, np.uint32), reader.take(entries, np.float32))
        if Mode.MULTI_VECTOR in modes:
            flat = reader.take(vectors * multi_vector_dimension, dtype)
            multi_vector = flat.reshape(vectors, multi_vector_dimension)  # [T, D]
        reader.finish()
        return cls(dense, sparse, multi_vector)


class _Reader:
    """Takes arrays out of a row's bytes, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = _HEADER.size

    def take(self, count: int, dtype: type[_NumberT]) -> NDArray[_NumberT]:
        size = count * np.dtype(dtype).itemsize
        if self._at + size > len(self._data):
            raise ValueError("cut off")
        array = np.frombuffer(self._data, dtype, count, self._at)
        self._at += size
        return array

    def finish(self) -> None:
        if self._at != len(self._data):
            raise ValueError("too long")


def row_key(version_digest: bytes, modes: Mode, half: bool, token_ids: bytes) -> bytes:
    """
    SHA-256 over all that decides a row: the version (with its engine and precision), the parts, whether float16 will
    do, and the token ids (int64, with prefix and after truncation). Two different requests never share an entry.
    """
    return hashlib.sha256(b"%s%c%c%s" % (version_digest, modes.value, half, token_ids)).digest()
