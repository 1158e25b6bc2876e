"""
Rows in a Redis server, for several servers together.

Redis is never waited for long and never needed: what does not answer in time is a miss. Rows are written by a thread of
this store's own.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

from trivec_server.errors import LoadError
from trivec_server.logs import get_logger
from trivec_server.serving.cache.row import CachedRow
from trivec_server.settings import CacheSettings

if TYPE_CHECKING:
    import redis

_log = get_logger(__name__)

_PREFIX = b"trivec:"
_TIMEOUT_S = 0.1
_AWAY_S = 1.0
_WRITE_QUEUE_BATCHES = 256
_Rows = list[tuple[bytes, CachedRow]]


class RedisStore:
    """A client of one Redis server. After a failure it is left alone for a second."""

    def __init__(
        self,
        settings: CacheSettings,
        *,
        on_failure: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        `on_failure` is called, on any thread, for each call that Redis did not answer and each batch that was not
        written.

        Raises:
            LoadError: the package redis is missing.
        """
        self._client = _connect(settings)
        self._ttl_s = settings.ttl_s
        self._on_failure = on_failure
        self._clock = clock
        self._away_until = 0.0
        self._writes: queue.Queue[_Rows | None] = queue.Queue(_WRITE_QUEUE_BATCHES)
        self._writer = threading.Thread(target=self._write, name="redis cache", daemon=True)
        self._writer.start()

    def get_many(self, keys: Sequence[bytes], multi_vector_dimension: int) -> list[CachedRow | None]:
        """The rows of some keys, in one round trip."""
        if not keys or self._clock() < self._away_until:
            return [None] * len(keys)
        try:
            values = cast("list[bytes | None]", self._client.mget([_PREFIX + key for key in keys]))
        except Exception as error:  # noqa: BLE001 - whatever it is, the texts are computed
            self._failed("read from", error)
            return [None] * len(keys)
        return [self._decoded(value, multi_vector_dimension) for value in values]

    def put_many(self, rows: Iterable[tuple[bytes, CachedRow]]) -> None:
        """Hands rows to the writer; drops them if it cannot keep up."""
        try:
            self._writes.put_nowait(list(rows))
        except queue.Full:
            self._on_failure()

    @property
    def size_bytes(self) -> int:
        """None of it is in this process."""
        return 0

    @property
    def entries(self) -> int:
        """None of them is in this process."""
        return 0

    def close(self) -> None:
        """Writes what waits, and ends the writer."""
        self._writes.put(None)
        self._writer.join()
        self._client.close()

    def _write(self) -> None:
        while True:
            rows = self._writes.get()
            if rows is None:
                return
            if self._clock() < self._away_until:
                self._on_failure()
                continue
            try:
                with self._client.pipeline(transaction=False) as pipeline:
                    for key, row in rows:
                        pipeline.set(_PREFIX + key, row.to_bytes(), ex=self._ttl_s)
                    pipeline.execute()
            except Exception as error:  # noqa: BLE001 - rows may be lost at any time
                self._failed("written to", error)

    def _decoded(self, value: bytes | None, multi_vector_dimension: int) -> CachedRow | None:
        if value is None:
            return None
        try:
            return CachedRow.from_bytes(value, multi_vector_dimension)
        except ValueError as error:
            _log.warning("a row in the response cache is damaged: computed again", reason=str(error))
            self._on_failure()
            return None

    def _failed(self, what: str, error: Exception) -> None:
        self._away_until = self._clock() + _AWAY_S
        self._on_failure()
        # Its message may name the address, which the operator knows, but never a password.
        _log.warning(f"the response cache cannot be {what}: texts are computed", reason=type(error).__name__)


def _connect(settings: CacheSettings) -> "redis.Redis":
    try:
        import redis  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise LoadError("--cache-config redis needs the package redis: pip install 'trivec[redis]'") from error
    return redis.Redis(
        host=settings.host,
        port=settings.port,
        username=settings.username,
        password=settings.password,
        db=settings.database,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
    )
