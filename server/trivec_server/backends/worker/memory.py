"""
How batches and results travel between the server and an engine's process: in anonymous shared memory.

Nothing of it has a name in a file system, so nothing is left behind, whoever dies in whatever way.
"""

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import EngineOutput, LexicalRows, TokenBatch, Vectors

_LEAST_BYTES = 64 * 1024
_ALIGNMENT_BYTES = 64
_Scalar = TypeVar("_Scalar", bound=np.generic)


class SharedArea:
    """
    Memory that two processes see: one writes, then the other reads. It grows with what is written; what was never
    touched costs nothing.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls, name: str) -> "SharedArea":
        """A new one, still empty; `name` is what /proc shows."""
        return cls(os.memfd_create(name))

    def for_writing(self, size_bytes: int) -> mmap.mmap:
        """
        The memory, at least of this size.

        Raises:
            MemoryError: there is not so much.
        """
        if self._map is None or len(self._map) < size_bytes:
            mapped_bytes = _mapped_bytes(size_bytes)
            with _memory_errors():
                os.ftruncate(self.fd, mapped_bytes)
                self._map = mmap.mmap(self.fd, mapped_bytes)
        return self._map

    def for_reading(self, size_bytes: int) -> mmap.mmap:
        """
        The memory, at least of this size, which the other process has filled.

        Raises:
            MemoryError: this process has no room for it.
        """
        if self._map is None or len(self._map) < size_bytes:
            with _memory_errors():
                self._map = mmap.mmap(self.fd, _mapped_bytes(size_bytes))
        return self._map

    def close(self) -> None:
        """Gives the memory back once the other process has, too."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._map = None


def _mapped_bytes(size_bytes: int) -> int:
    """How much both processes map for so much: not much more, and in few steps."""
    mapped_bytes = _LEAST_BYTES
    while mapped_bytes < size_bytes:
        mapped_bytes *= 2
    return mapped_bytes


@contextmanager
def _memory_errors() -> Iterator[None]:
    """The system tells of too little memory by an OSError; a batch is split for a MemoryError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.ENOSPC):
            raise MemoryError(f"shared memory: {error.strerror}") from error
        raise


def write_batch(area: SharedArea, batch: TokenBatch) -> None:
    """
    Puts a batch there: `token_ids`, then `lengths`.

    Raises:
        MemoryError: there is too little.
    """
    tokens, texts = len(batch.token_ids), len(batch.lengths)
    numbers = np.frombuffer(area.for_writing(8 * (tokens + texts)), np.int64, tokens + texts)
    numbers[:tokens] = batch.token_ids
    numbers[tokens:] = batch.lengths


def read_batch(area: SharedArea, tokens: int, texts: int) -> TokenBatch:
    """A copy of the batch that lies there."""
    numbers = np.frombuffer(area.for_reading(8 * (tokens + texts)), np.int64, tokens + texts).copy()
    return TokenBatch(numbers[:tokens], numbers[tokens:])


@dataclass(frozen=True, slots=True)
class Part:
    """An array in a shared area."""

    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the parts of an EngineOutput lie in a shared area. `multi_vector`: [N - B, D], all texts' rows."""

    size_bytes: int
    dense: Part | None
    token_weights: Part | None
    multi_vector: Part | None
    lexical: tuple[Part, Part, Part] | None
    non_finite_rows: Part | None
    recomputed_rows: int


def write_output(area: SharedArea, output: EngineOutput) -> Layout:
    """
    Puts a result there; each number is copied once.

    Raises:
        MemoryError: there is too little.
        ValueError: the texts' multi-vectors differ in dimension.
    """
    plan = _Plan()
    dense = plan.place(output.dense)
    token_weights = plan.place(output.token_weights)
    lexical, non_finite_rows = None, plan.place(output.non_finite_rows)
    if output.lexical is not None:
        rows = output.lexical
        lexical = (plan.place_array(rows.ids), plan.place_array(rows.weights), plan.place_array(rows.bounds))
    multi_vector = None
    if output.multi_vector is not None:
        first = output.multi_vector[0]
        shape = (sum(len(vectors) for vectors in output.multi_vector), first.shape[1])
        multi_vector = plan.reserve(first.dtype.str, shape)
    memory = area.for_writing(plan.size_bytes)
    for array, part in plan.placed:
        view(memory, part)[...] = array
    if output.multi_vector is not None and multi_vector is not None:
        np.concatenate(output.multi_vector, out=view(memory, multi_vector))
    return Layout(
        size_bytes=plan.size_bytes,
        dense=dense,
        token_weights=token_weights,
        multi_vector=multi_vector,
        lexical=lexical,
        non_finite_rows=non_finite_rows,
        recomputed_rows=output.recomputed_rows,
    )


def read_output(area: SharedArea, layout: Layout, lengths: NDArray[np.int64]) -> EngineOutput:
    """
    A copy of the result that lies there; each text has multi-vectors of its own, that keep no others alive.

    Raises:
        MemoryError: there is too little.
    """
    memory = area.for_reading(layout.size_bytes)

    def copied(part: Part | None) -> NDArray[Any] | None:
        return None if part is None else view(memory, part).copy()

    vectors: list[Vectors] | None = None
    if layout.multi_vector is not None:
        rows = view(memory, layout.multi_vector)
        bounds = [0, *(lengths - 1).cumsum().tolist()]
        vectors = [rows[start:end].copy() for start, end in pairwise(bounds)]
    lexical = None
    if layout.lexical is not None:
        ids, weights, row_bounds = (view(memory, part).copy() for part in layout.lexical)
        lexical = LexicalRows(ids, weights, row_bounds)
    return EngineOutput(
        dense=copied(layout.dense),
        token_weights=copied(layout.token_weights),
        multi_vector=vectors,
        lexical=lexical,
        non_finite_rows=copied(layout.non_finite_rows),
        recomputed_rows=layout.recomputed_rows,
    )


def view(memory: mmap.mmap, part: Part) -> NDArray[Any]:
    """The array where it lies."""
    return np.ndarray(part.shape, part.dtype, memory, part.offset_bytes)


class _Plan:
    """Finds each array its place, one behind the other."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.placed: list[tuple[NDArray[Any], Part]] = []

    def reserve(self, dtype: str, shape: tuple[int, ...]) -> Part:
        part = Part(dtype, shape, self.size_bytes)
        taken_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.size_bytes += -(-taken_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return part

    def place_array(self, array: NDArray[_Scalar]) -> Part:
        part = self.reserve(array.dtype.str, array.shape)
        self.placed.append((array, part))
        return part

    def place(self, array: NDArray[_Scalar] | None) -> Part | None:
        return None if array is None else self.place_array(array)
