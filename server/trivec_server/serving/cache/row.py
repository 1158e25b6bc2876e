"""One cached text: its embeddings, their size, their form outside this process, and the key they are kept under."""

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import Vectors
from trivec_server.serving.request import SparseRow
from trivec_server.types import Mode

_ENTRY_OVERHEAD_BYTES = 220
_ARRAY_OVERHEAD_BYTES = 130
"""What an entry takes beside its numbers, measured: the key, the table's slot, the row; the header of each array."""
_HEADER = struct.Struct("<4sBBxxIIII")
_CHECKED_BYTES = _HEADER.size - 4
_MAGIC = b"TRV1"
_HALF_DENSE = 1
_HALF_MULTI_VECTOR = 2
_NumberT = TypeVar("_NumberT", bound=np.generic)


@dataclass(frozen=True, slots=True)
class CachedRow:
    """
    The embeddings of one text, in arrays that nobody writes to: `dense` [D], `sparse`, `multi_vector` [tokens - 1, D].
    A part is None if it was not asked for.
    """

    dense: Vectors | None
    sparse: SparseRow | None
    multi_vector: Vectors | None

    def copy(self) -> "CachedRow":
        """The row with memory of its own, read-only: views would keep whole batches in memory."""
        return CachedRow(
            None if self.dense is None else _own(self.dense),
            None if self.sparse is None else SparseRow(_own(self.sparse.ids), _own(self.sparse.weights)),
            None if self.multi_vector is None else _own(self.multi_vector),
        )

    @property
    def nbytes(self) -> int:
        """About what the entry takes in memory."""
        arrays: list[NDArray[np.generic]] = [*(self.sparse or ())]
        arrays += [part for part in (self.dense, self.multi_vector) if part is not None]
        return _ENTRY_OVERHEAD_BYTES + sum(array.nbytes + _ARRAY_OVERHEAD_BYTES for array in arrays)

    def to_bytes(self, key: bytes) -> bytes:
        """
        The row for a store outside this process: a header, then the arrays, little-endian, each from a multiple of 4
        bytes on. The last number of the header is a checksum over the key and all else.
        """
        parts, halves = 0, 0
        pieces = []
        dimension, entries, vectors = 0, 0, 0
        if self.sparse is not None:
            parts |= Mode.SPARSE.value
            entries = len(self.sparse.ids)
            pieces += [self.sparse.ids.tobytes(), self.sparse.weights.tobytes()]
        if self.dense is not None:
            parts |= Mode.DENSE.value
            halves |= _HALF_DENSE if self.dense.dtype == np.float16 else 0
            dimension = len(self.dense)
            pieces += [self.dense.tobytes(), bytes(_padding(self.dense.nbytes))]
        if self.multi_vector is not None:
            parts |= Mode.MULTI_VECTOR.value
            halves |= _HALF_MULTI_VECTOR if self.multi_vector.dtype == np.float16 else 0
            vectors = len(self.multi_vector)
            pieces += [self.multi_vector.tobytes(), bytes(_padding(self.multi_vector.nbytes))]
        checked = _HEADER.pack(_MAGIC, parts, halves, dimension, entries, vectors, 0)[:_CHECKED_BYTES]
        return b"".join([checked, _checksum(key, checked, *pieces).to_bytes(4, "little"), *pieces])

    @classmethod
    def from_bytes(cls, key: bytes, data: bytes, multi_vector_dimension: int) -> "CachedRow":
        """
        The row that `to_bytes` wrote under this key.

        Raises:
            ValueError: the bytes are of no such row.
        """
        if len(data) < _HEADER.size:
            raise ValueError("too short")
        magic, parts, halves, dimension, entries, vectors, checksum = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("not a row of this format")
        whole = memoryview(data)
        if checksum != _checksum(key, whole[:_CHECKED_BYTES], whole[_HEADER.size :]):
            raise ValueError("its checksum is wrong")
        reader = _Reader(data)
        modes = Mode(parts)
        sparse: SparseRow | None = None
        dense: Vectors | None = None
        multi_vector: Vectors | None = None
        if Mode.SPARSE in modes:
            sparse = SparseRow(reader.take(entries, np.uint32), reader.take(entries, np.float32))
        if Mode.DENSE in modes:
            dense = reader.take_vectors(dimension, half=bool(halves & _HALF_DENSE))
        if Mode.MULTI_VECTOR in modes:
            flat = reader.take_vectors(vectors * multi_vector_dimension, half=bool(halves & _HALF_MULTI_VECTOR))
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
        self._at += size + _padding(size)
        return array

    def take_vectors(self, count: int, *, half: bool) -> Vectors:
        if half:
            return self.take(count, np.float16)
        return self.take(count, np.float32)

    def finish(self) -> None:
        if self._at != len(self._data):
            raise ValueError("too long")


def row_key(version_digest: bytes, modes: Mode, half: bool, token_ids: bytes) -> bytes:
    """
    SHA-256 over all that decides a row: the version (with its engine and precision), the parts, whether float16 will
    do, and the token ids (int64, with prefix and after truncation). Two different requests never share an entry.
    """
    return hashlib.sha256(b"%s%c%c%s" % (version_digest, modes.value, half, token_ids)).digest()


def _checksum(key: bytes, *pieces: bytes | memoryview) -> int:
    """CRC-32 over the key and some bytes: a row that lies under another key is damaged, too."""
    checksum = zlib.crc32(key)
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _padding(size: int) -> int:
    """The bytes up to the next multiple of 4."""
    return -size % 4


def _own(array: NDArray[_NumberT]) -> NDArray[_NumberT]:
    copy = np.array(array)
    copy.flags.writeable = False
    return copy
