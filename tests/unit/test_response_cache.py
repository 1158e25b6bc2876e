"""Cached rows: their form outside the process, their keys, and the store in memory."""

import gc
import sys
import threading
import tracemalloc
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trivec_server.errors import LoadError
from trivec_server.metrics.statistics import ModelStatistics
from trivec_server.serving.cache.model_cache import ModelCache
from trivec_server.serving.cache.opening import open_store
from trivec_server.serving.cache.row import CachedRow, row_key
from trivec_server.serving.cache.store import LocalStore
from trivec_server.serving.request import EmbedTask, SparseRow, VectorEncoding
from trivec_server.settings import CacheSettings
from trivec_server.types import Mode

from tests.cached_rows import DIMENSION, arrays_of, assert_same, dense_row, key_of, rows
from tests.scripted_engine import Script, ScriptedEngine

KEY = key_of(0)
INFO = ScriptedEngine(Script()).info
ROW_BYTES = dense_row(0).nbytes

# --- the form of a row outside the process


@given(rows())
def test_a_row_comes_back_as_it_was(row: CachedRow) -> None:
    assert_same(CachedRow.from_bytes(KEY, row.to_bytes(KEY), DIMENSION), row)


@given(rows())
def test_the_arrays_that_come_back_are_aligned(row: CachedRow) -> None:
    for array in arrays_of(CachedRow.from_bytes(KEY, row.to_bytes(KEY), DIMENSION)):
        assert array.flags.aligned


@given(rows(), st.data())
def test_a_row_with_a_damaged_byte_is_refused(row: CachedRow, data: st.DataObject) -> None:
    written = bytearray(row.to_bytes(KEY))
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError):  # noqa: PT011 - whichever check sees it
        CachedRow.from_bytes(KEY, bytes(written), DIMENSION)


@given(rows(), st.data())
def test_a_row_that_is_cut_off_is_refused(row: CachedRow, data: st.DataObject) -> None:
    written = row.to_bytes(KEY)
    with pytest.raises(ValueError):  # noqa: PT011
        CachedRow.from_bytes(KEY, written[: data.draw(st.integers(0, len(written) - 1))], DIMENSION)


@given(rows(), st.binary(min_size=1, max_size=8))
def test_a_row_with_more_behind_it_is_refused(row: CachedRow, more: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        CachedRow.from_bytes(KEY, row.to_bytes(KEY) + more, DIMENSION)


@given(st.binary(max_size=100))
def test_bytes_of_something_else_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        CachedRow.from_bytes(KEY, data, DIMENSION)


@given(rows())
def test_a_row_under_another_key_is_refused(row: CachedRow) -> None:
    with pytest.raises(ValueError, match="checksum"):
        CachedRow.from_bytes(key_of(1), row.to_bytes(KEY), DIMENSION)


@given(rows())
def test_a_row_with_vectors_of_another_size_is_refused(row: CachedRow) -> None:
    row = replace(row, multi_vector=np.ones((3, DIMENSION), np.float32))
    with pytest.raises(ValueError, match=r"cut off|too long"):
        CachedRow.from_bytes(KEY, row.to_bytes(KEY), DIMENSION + 1)
    with pytest.raises(ValueError, match=r"cut off|too long"):
        CachedRow.from_bytes(KEY, row.to_bytes(KEY), DIMENSION - 1)


# --- copies


def test_a_copy_has_memory_of_its_own() -> None:
    batch = np.ones((100, DIMENSION), np.float32)
    weights = np.ones(100, np.float32)
    ids = np.arange(100, dtype=np.uint32)
    row = CachedRow(batch[3], SparseRow(ids[5:7], weights[5:7]), batch[10:12])
    copy = row.copy()
    assert_same(copy, row)
    for array in arrays_of(copy):
        assert array.base is None


def test_a_copy_cannot_be_written_to() -> None:
    row = CachedRow(
        np.ones(4, np.float32), SparseRow(np.ones(1, np.uint32), np.ones(1, np.float32)), np.ones((1, 4), np.float32)
    )
    for array in arrays_of(row.copy()):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


# --- keys


def cache_of(**changes: Any) -> ModelCache:
    """A cache of the version that all others differ from."""
    said: dict[str, Any] = {"content_digest": "content", "program_version": "1.0", "info": INFO} | changes
    return ModelCache(LocalStore(1000), statistics=ModelStatistics(), **said)


def task_of(modes: Mode = Mode.DENSE, encoding: VectorEncoding = VectorEncoding.FLOAT32) -> EmbedTask:
    return EmbedTask("id", modes, texts=["a text"], encoding=encoding)


def packed(*ids: int) -> bytes:
    return np.array(ids, np.int64).tobytes()


EVERY_MODES = [Mode(value) for value in range(1, 8)]


def test_whatever_decides_a_row_is_in_its_key() -> None:
    caches = [
        cache_of(),
        cache_of(content_digest="other"),
        cache_of(program_version="1.1"),
        cache_of(info=replace(INFO, engine="other")),
        cache_of(info=replace(INFO, device="cuda:0")),
        cache_of(info=replace(INFO, precision="bfloat16")),
        # What is between the names counts, too.
        cache_of(content_digest="conten", program_version="t1.0"),
        cache_of(content_digest="content1", program_version=".0"),
    ]
    sequences = [packed(0, 2), packed(0, 5, 2), packed(0, 5, 5, 2), packed(0, 6, 2), packed(0, 5, 2, 0, 2)]
    encodings = [VectorEncoding.FLOAT32, VectorEncoding.FLOAT16]
    keys = {
        cache.key(task_of(modes, encoding), ids)
        for cache, modes, encoding, ids in product(caches, EVERY_MODES, encodings, sequences)
    }
    assert len(keys) == len(caches) * len(EVERY_MODES) * len(encodings) * len(sequences)


def test_encodings_that_are_made_of_the_same_numbers_have_one_key() -> None:
    encodings = [encoding for encoding in VectorEncoding if encoding is not VectorEncoding.FLOAT16]
    assert len({cache_of().key(task_of(encoding=encoding), packed(0, 5, 2)) for encoding in encodings}) == 1


PARTS = st.tuples(
    st.binary(min_size=32, max_size=32),
    st.sampled_from(EVERY_MODES),
    st.booleans(),
    st.lists(st.integers(0, 3), min_size=2, max_size=5),
)


@given(st.lists(PARTS, min_size=2, max_size=8, unique_by=lambda part: (part[0], part[1], part[2], tuple(part[3]))))
def test_no_two_requests_share_a_key(parts: list[tuple[bytes, Mode, bool, list[int]]]) -> None:
    keys = [row_key(digest, modes, half, packed(*ids)) for digest, modes, half, ids in parts]
    assert all(one != other for one, other in combinations(keys, 2))


# --- the store in memory


def found(store: LocalStore, *numbers: int) -> list[bool]:
    return [row is not None for row in store.get_many([key_of(number) for number in numbers], DIMENSION)]


def test_what_was_put_is_found() -> None:
    store = LocalStore(10 * ROW_BYTES)
    store.put_many([(key_of(number), dense_row(number)) for number in range(3)])
    for number, row in enumerate(store.get_many([key_of(number) for number in range(3)], DIMENSION)):
        assert_same(row, dense_row(number))


def test_the_least_recently_used_go_first() -> None:
    store = LocalStore(3 * ROW_BYTES)
    for number in range(3):
        store.put_many([(key_of(number), dense_row(number))])
    found(store, 0)
    store.put_many([(key_of(3), dense_row(3))])
    assert found(store, 0, 1, 2, 3) == [True, False, True, True]


def test_a_row_that_was_put_again_counts_as_used() -> None:
    store = LocalStore(2 * ROW_BYTES)
    for number in (0, 1, 0, 2):
        store.put_many([(key_of(number), dense_row(number))])
    assert found(store, 0, 1, 2) == [True, False, True]


def test_a_row_that_was_put_again_counts_once() -> None:
    store = LocalStore(10 * ROW_BYTES)
    for _ in range(3):
        store.put_many([(KEY, dense_row(1))])
    assert (store.usage().entries, store.usage().size_bytes) == (1, ROW_BYTES)


def test_a_row_larger_than_the_cache_is_not_kept_and_puts_nothing_out() -> None:
    store = LocalStore(2 * ROW_BYTES)
    store.put_many([(key_of(0), dense_row(0)), (key_of(1), dense_row(1, dimension=10_000))])
    assert found(store, 0, 1) == [True, False]


def test_usage_counts_hits_misses_and_evictions() -> None:
    store = LocalStore(2 * ROW_BYTES)
    store.put_many([(key_of(number), dense_row(number)) for number in range(3)])
    found(store, 0, 1, 2)
    usage = store.usage()
    assert (usage.hits, usage.misses, usage.evictions, usage.failures) == (2, 1, 1, 0)
    assert usage.capacity_bytes == 2 * ROW_BYTES
    assert usage.lookup_ns > 0
    assert usage.insertion_ns > 0


def test_a_closed_store_holds_nothing() -> None:
    store = LocalStore(10 * ROW_BYTES)
    store.put_many([(KEY, dense_row(0))])
    store.close()
    assert (store.usage().entries, store.usage().size_bytes, found(store, 0)) == (0, 0, [False])


@given(st.lists(st.tuples(st.integers(0, 9), rows()), max_size=40), st.integers(0, 5000))
def test_the_size_is_that_of_the_rows_and_never_above_the_limit(puts: list[tuple[int, CachedRow]], limit: int) -> None:
    store = LocalStore(limit)
    last: dict[int, CachedRow] = {}
    for number, row in puts:
        store.put_many([(key_of(number), row)])
        if row.nbytes <= limit:
            last[number] = row
        assert store.usage().size_bytes <= limit
    kept = {number: row for number, row in last.items() if found(store, number) == [True]}
    assert store.usage().entries == len(kept)
    assert store.usage().size_bytes == sum(row.nbytes for row in kept.values())
    for number, row in kept.items():
        assert_same(store.get_many([key_of(number)], DIMENSION)[0], row)


@pytest.mark.parametrize("parts", ["dense", "sparse", "multi_vector", "hybrid"])
def test_the_size_is_about_the_memory_taken(parts: str) -> None:
    def row() -> CachedRow:
        dense = np.ones(8, np.float32)
        sparse = SparseRow(np.ones(3, np.uint32), np.ones(3, np.float32))
        multi_vector = np.ones((3, 8), np.float32)
        whole = CachedRow(dense, sparse, multi_vector)
        alone = {parts: getattr(whole, parts)} if parts != "hybrid" else {}
        return whole if parts == "hybrid" else replace(CachedRow(None, None, None), **alone)

    store = LocalStore(1 << 30)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2000):
            store.put_many([(key_of(number), row().copy())])
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.8 * taken <= store.usage().size_bytes <= 1.25 * taken


def test_threads_that_use_a_store_together_leave_it_consistent() -> None:
    store = LocalStore(20 * ROW_BYTES)
    wrong: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for number in random.integers(0, 60, 1500).tolist():
            store.put_many([(key_of(number), dense_row(number))])
            (row,) = store.get_many([key_of(59 - number)], DIMENSION)
            if row is not None and (row.dense is None or row.dense[0] != 59 - number):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    usage = store.usage()
    assert not wrong
    assert usage.size_bytes == usage.entries * ROW_BYTES <= 20 * ROW_BYTES
    assert usage.hits + usage.misses == 6000


# --- the settings' store


def test_the_default_is_in_memory() -> None:
    store = open_store(CacheSettings(size_bytes=12345))
    assert store.usage().capacity_bytes == 12345


def test_redis_without_its_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "trivec_server.serving.cache.redis", raising=False)
    with pytest.raises(LoadError, match=r"needs the package redis: pip install 'trivec\[redis\]'"):
        open_store(CacheSettings(kind="redis"))
