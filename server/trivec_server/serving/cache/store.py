"""Where cached rows are kept: in this process, or in another (`redis.py`)."""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from trivec_server.metrics import CacheUsage
from trivec_server.serving.cache.row import CachedRow


class RowStore(Protocol):
    """Rows by key. Thread-safe. Losing a row is legal at any time; giving a wrong one is not."""

    def get_many(self, keys: Sequence[bytes], multi_vector_dimension: int) -> list[CachedRow | None]:
        """The rows of some keys, None where there is none."""

    def put_many(self, rows: Sequence[tuple[bytes, CachedRow]]) -> None:
        """Keeps rows, which have memory of their own."""

    def usage(self) -> CacheUsage:
        """What this process holds, and what was asked of it."""

    def close(self) -> None:
        """Releases what the store holds. May block for some seconds."""


class LookupCounts:
    """What was asked of a store. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = 0
        self._misses = 0
        self._evictions = 0
        self._failures = 0
        self._lookup_ns = 0
        self._insertion_ns = 0

    def looked_up(self, found: Sequence[CachedRow | None], started_ns: int) -> None:
        """Some rows were looked for, since an instant of `time.monotonic_ns`."""
        misses = found.count(None)
        with self._lock:
            self._hits += len(found) - misses
            self._misses += misses
            self._lookup_ns += time.monotonic_ns() - started_ns

    def inserted(self, started_ns: int, evictions: int = 0) -> None:
        """Some rows were kept, since an instant of `time.monotonic_ns`, and some put out for them."""
        with self._lock:
            self._evictions += evictions
            self._insertion_ns += time.monotonic_ns() - started_ns

    def failed(self) -> None:
        """A call was not answered, rows were not written, or a row was damaged."""
        with self._lock:
            self._failures += 1

    def usage(self, *, entries: int = 0, size_bytes: int = 0, capacity_bytes: int = 0) -> CacheUsage:
        """The counts, beside what this process holds."""
        with self._lock:
            return CacheUsage(
                entries=entries,
                size_bytes=size_bytes,
                capacity_bytes=capacity_bytes,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                failures=self._failures,
                lookup_ns=self._lookup_ns,
                insertion_ns=self._insertion_ns,
            )


class LocalStore:
    """Rows in memory, up to a number of bytes: the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._rows: OrderedDict[bytes, CachedRow] = OrderedDict()
        self._size_bytes = 0
        self._counts = LookupCounts()

    def get_many(self, keys: Sequence[bytes], multi_vector_dimension: int) -> list[CachedRow | None]:
        """The rows of some keys; each found one is the most recently used."""
        started_ns = time.monotonic_ns()
        with self._lock:
            found = [self._rows.get(key) for key in keys]
            for key, row in zip(keys, found, strict=True):
                if row is not None:
                    self._rows.move_to_end(key)
        self._counts.looked_up(found, started_ns)
        return found

    def put_many(self, rows: Sequence[tuple[bytes, CachedRow]]) -> None:
        """Keeps rows; one that is larger than the whole cache is not kept."""
        started_ns = time.monotonic_ns()
        evicted = []
        with self._lock:
            for key, row in rows:
                size = row.nbytes
                if size > self._max_bytes:
                    continue
                replaced = self._rows.pop(key, None)
                if replaced is not None:
                    self._size_bytes -= replaced.nbytes
                self._rows[key] = row
                self._size_bytes += size
            while self._size_bytes > self._max_bytes:
                _, oldest = self._rows.popitem(last=False)
                self._size_bytes -= oldest.nbytes
                evicted.append(oldest)
        self._counts.inserted(started_ns, len(evicted))

    def usage(self) -> CacheUsage:
        """What the rows take, and what was asked for."""
        with self._lock:
            entries, size_bytes = len(self._rows), self._size_bytes
        return self._counts.usage(entries=entries, size_bytes=size_bytes, capacity_bytes=self._max_bytes)

    def close(self) -> None:
        """Forgets all rows."""
        with self._lock:
            self._rows.clear()
            self._size_bytes = 0
