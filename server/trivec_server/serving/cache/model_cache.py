"""The cache as one model version sees it."""

import hashlib
import time
from collections.abc import Iterable, Sequence

from trivec_server.backends.interface import EngineInfo
from trivec_server.metrics.statistics import ModelStatistics
from trivec_server.serving.cache.row import CachedRow, row_key
from trivec_server.serving.cache.store import RowStore
from trivec_server.serving.request import EmbedTask, VectorEncoding


class ModelCache:
    """Looks rows up and keeps them, under keys that hold everything that decides a row. Thread-safe."""

    def __init__(
        self, store: RowStore, content_digest: str, program_version: str, info: EngineInfo, statistics: ModelStatistics
    ) -> None:
        """`content_digest`: of the version. Servers that share a store may run other engines, or other releases."""
        said = "\0".join((program_version, content_digest, *info.identity))
        self._version_digest = hashlib.sha256(said.encode()).digest()
        self._store = store
        self._multi_vector_dimension = info.multi_vector_dimension
        self._statistics = statistics

    def key(self, task: EmbedTask, token_ids: bytes) -> bytes:
        """The key of one text of a task, by its token ids as int64."""
        return row_key(self._version_digest, task.modes, task.encoding is VectorEncoding.FLOAT16, token_ids)

    def look_up(self, keys: Sequence[bytes]) -> list[CachedRow | None]:
        """The rows of some keys, None where there is none; counts hits and misses."""
        started_at = time.monotonic()
        found = self._store.get_many(keys, self._multi_vector_dimension)
        each_ns = round((time.monotonic() - started_at) * 1e9 / max(1, len(keys)))
        for row in found:
            self._statistics.cache_looked_up(hit=row is not None, ns=each_ns)
        return found

    def keep(self, rows: Iterable[tuple[bytes, CachedRow]]) -> None:
        """Keeps copies of computed rows, one of each key."""
        self._store.put_many([(key, row.copy()) for key, row in dict(rows).items()])
