"""Where cached rows are kept: in this process, or in another."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

from trivec_server.serving.cache.row import CachedRow


class RowStore(Protocol):
    """Rows by key. Thread-safe. Losing a row is legal at any time; giving a wrong one is not."""

    def get_many(self, keys: Sequence[bytes], multi_vector_dimension: int) -> list[CachedRow | None]:
        """The rows of some keys, None where there is none."""

    def put_many(self, rows: Iterable[tuple[bytes, CachedRow]]) -> None:
        """Keeps rows."""

    @property
    def size_bytes(self) -> int:
        """What is held in this process."""

    @property
    def entries(self) -> int:
        """How many rows are held in this process."""

    def close(self) -> None:
        """Releases what the store holds."""


class LocalStore:
    """Rows in memory, up to a number of bytes: the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._rows: OrderedDict[bytes, CachedRow] = OrderedDict()
        self._size_bytes = 0

    def get_many(self, keys: Sequence[bytes], multi_vector_dimension: int) -> list[CachedRow | None]:
        """The rows of some keys; each found one is the most recently used."""
        with self._lock:
            found = [self._rows.get(key) for key in keys]
            for key, row in zip(keys, found, strict=True):
                if row is not None:
                    self._rows.move_to_end(key)
        return found

    def put_many(self, rows: Iterable[tuple[bytes, CachedRow]]) -> None:
        """Keeps rows; one that is larger than the whole cache is not kept."""
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

    @property
    def size_bytes(self) -> int:
        """What the rows take."""
        return self._size_bytes

    @property
    def entries(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def close(self) -> None:
        """Forgets all rows."""
        with self._lock:
            self._rows.clear()
            self._size_bytes = 0
