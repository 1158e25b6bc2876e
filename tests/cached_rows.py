"""Rows for caches, in tests."""

import hashlib

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from trivec_server.backends.interface import Vectors
from trivec_server.serving.cache.row import CachedRow
from trivec_server.serving.request import SparseRow

DIMENSION = 4
"""Of multi-vectors."""


def key_of(number: int) -> bytes:
    """A key as caches have them."""
    return hashlib.sha256(str(number).encode()).digest()


def dense_row(fill: float, dimension: int = DIMENSION) -> CachedRow:
    return CachedRow(np.full(dimension, fill, np.float32), None, None)


@st.composite
def rows(draw: st.DrawFn) -> CachedRow:
    """Rows of any parts, in float32 or float16, without NaN."""
    dense = sparse = multi_vector = None
    if draw(st.booleans()):
        dense = draw(_vectors((draw(st.integers(1, 9)),)))
    if draw(st.booleans()):
        entries = draw(st.integers(0, 6))
        sparse = SparseRow(
            draw(arrays(np.uint32, entries)),
            draw(arrays(np.float32, entries, elements=st.floats(width=32, allow_nan=False))),
        )
    if draw(st.booleans()):
        multi_vector = draw(_vectors((draw(st.integers(1, 5)), DIMENSION)))
    return CachedRow(dense, sparse, multi_vector)


def _vectors(shape: tuple[int, ...]) -> st.SearchStrategy[Vectors]:
    single: st.SearchStrategy[Vectors] = arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False))
    half: st.SearchStrategy[Vectors] = arrays(np.float16, shape, elements=st.floats(width=16, allow_nan=False))
    return single | half


def arrays_of(row: CachedRow) -> list[NDArray[np.generic]]:
    """The arrays of a row."""
    return [part for part in (row.dense, *(row.sparse or ()), row.multi_vector) if part is not None]


def assert_same(one: CachedRow | None, other: CachedRow) -> None:
    """The same parts, types and numbers."""
    assert one is not None
    for part, expected in zip((one.dense, one.multi_vector), (other.dense, other.multi_vector), strict=True):
        assert (part is None) == (expected is None)
    assert (one.sparse is None) == (other.sparse is None)
    for array, expected_array in zip(arrays_of(one), arrays_of(other), strict=True):
        assert array.dtype == expected_array.dtype
        np.testing.assert_array_equal(array, expected_array)
