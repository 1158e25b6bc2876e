"""
Rows in a Redis server, for several servers together.

Redis is never needed and never waited for long. One thread of the store's own connects and writes; requests only read,
over a connection that has answered, and take what does not come at once for a miss. While Redis is away they do not
even try.
"""

import math
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import ConnectionPool, Redis, SSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from trivec_server.errors import LoadError
from trivec_server.logs import get_logger
from trivec_server.metrics import CacheUsage
from trivec_server.serving.cache.row import CachedRow
from trivec_server.serving.cache.store import LookupCounts
from trivec_server.settings import MIB, CacheSettings

_log = get_logger(__name__)

_PREFIX = b"trivec:"
_READ_TIMEOUT_S = 0.1
_WRITE_TIMEOUT_S = 1.0
_LOOKUP_S = 0.25
_LOOKUP_KEYS = 64
_AWAY_S = 1.0
_START_S = 1.0
_CLOSE_S = 2.0
_MAX_WAITING_BYTES = 64 * MIB
_WRITE_BYTES = 4 * MIB
_SAY_AGAIN_S = 60.0
_Rows = Sequence[tuple[bytes, CachedRow]]


@dataclass(frozen=True, slots=True, eq=False)
class _Link:
    """A Redis server that has answered: a client for requests, which cannot wait, and one for the store's thread."""

    reading: Redis
    writing: Redis

    def close(self) -> None:
        self.reading.close()
        self.writing.close()


class RedisStore:
    """A client of one Redis server."""

    def __init__(self, settings: CacheSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Waits up to a second for Redis to answer, so that the log of the start tells of it, and goes on in any case.

        Raises:
            LoadError: the file of authorities cannot be used.
        """
        self._settings = settings
        self._tls = _tls_context(settings)
        self._clock = clock
        self._address = f"{settings.host}:{settings.port}"
        self._counts = LookupCounts()
        self._changed = threading.Condition()
        self._link: _Link | None = None
        self._waiting: deque[_Rows] = deque()
        self._waiting_bytes = 0
        self._closing = False
        self._said_at: dict[tuple[str, str], float] = {}
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redis cache", daemon=True)
        self._thread.start()
        self._tried.wait(_START_S)

    def get_many(self, keys: Sequence[bytes], multi_vector_dimension: int) -> list[CachedRow | None]:
        """The rows of some keys, as far as Redis gives them at once."""
        started_ns = time.monotonic_ns()
        found: list[CachedRow | None] = [None] * len(keys)
        link = self._link
        if link is not None:
            values = self._read(link, keys)
            for index, (key, value) in enumerate(zip(keys, values, strict=False)):
                found[index] = None if value is None else self._decoded(key, value, multi_vector_dimension)
        self._counts.looked_up(found, started_ns)
        return found

    def put_many(self, rows: _Rows) -> None:
        """Hands rows to the store's thread. They are lost while Redis is away, or if it cannot keep up."""
        size = _nbytes(rows)
        with self._changed:
            if self._link is None or self._closing or not rows:
                return
            fits = not self._waiting or self._waiting_bytes + size <= _MAX_WAITING_BYTES
            if fits:
                self._waiting.append(rows)
                self._waiting_bytes += size
                self._changed.notify()
        if not fits:
            self._counts.failed()

    def usage(self) -> CacheUsage:
        """What was asked of it; nothing of it is in this process."""
        return self._counts.usage()

    def close(self) -> None:
        """Writes what waits, for up to two seconds, and lets go of Redis."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_S)
        with self._changed:
            link, self._link = self._link, None
        if link is not None:
            link.close()

    def _run(self) -> None:
        """The store's own thread."""
        self._connect()
        self._tried.set()
        while True:
            link, rows = self._wait()
            if link is not None and rows:
                self._write(link, rows)
            elif self._closing:
                return
            elif link is None:
                self._connect()

    def _wait(self) -> tuple[_Link | None, _Rows]:
        """Waits for rows to write, for the time to connect again, or for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self._link is None)
            if self._link is None:
                self._changed.wait_for(lambda: self._closing, _AWAY_S)
                return None, ()
            rows = self._waiting.popleft() if self._waiting else ()
            self._waiting_bytes -= _nbytes(rows)
            return self._link, rows

    def _connect(self) -> None:
        try:
            link = _open_link(self._settings, self._tls)
        except Exception as error:  # noqa: BLE001 - whatever it is, texts are computed
            self._counts.failed()
            self._say(_log.warning, "response cache: Redis cannot be reached, texts are computed", error)
            return
        with self._changed:
            if self._closing:
                link.close()
                return
            self._link = link
        self._say(_log.info, "response cache: Redis answers")

    def _read(self, link: _Link, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of the first keys, or of all."""
        values: list[bytes | None] = []
        ends_at = self._clock() + _LOOKUP_S
        try:
            for start in range(0, len(keys), _LOOKUP_KEYS):
                if start and self._clock() > ends_at:
                    # To compute the others may well be faster.
                    break
                asked = [_PREFIX + key for key in keys[start : start + _LOOKUP_KEYS]]
                values += cast("list[bytes | None]", link.reading.mget(asked))
        except Exception as error:  # noqa: BLE001 - whatever it is, the texts are computed
            self._failed(link, "read from", error)
        return values

    def _write(self, link: _Link, rows: _Rows) -> None:
        started_ns = time.monotonic_ns()
        try:
            for some in _portions(rows):
                with link.writing.pipeline(transaction=False) as pipeline:
                    for key, row in some:
                        pipeline.set(_PREFIX + key, row.to_bytes(key), ex=self._settings.ttl_s)
                    # An error that the pipeline raises would have the values in its text.
                    answers = pipeline.execute(raise_on_error=False)
                refused = next((answer for answer in answers if isinstance(answer, Exception)), None)
                if refused is not None:
                    raise refused  # noqa: TRY301 - it is handled as if it had been raised
        except Exception as error:  # noqa: BLE001 - rows may be lost at any time
            self._failed(link, "written to", error)
        else:
            self._counts.inserted(started_ns)

    def _decoded(self, key: bytes, value: bytes, multi_vector_dimension: int) -> CachedRow | None:
        try:
            return CachedRow.from_bytes(key, value, multi_vector_dimension)
        except ValueError as error:
            self._counts.failed()
            self._say(_log.warning, "response cache: a row in Redis is damaged and computed again", error)
            return None

    def _failed(self, link: _Link, what: str, error: Exception) -> None:
        """A call to Redis has failed. Unless Redis itself said so, it is left alone for a while."""
        self._counts.failed()
        if isinstance(error, ResponseError):
            self._say(_log.warning, f"response cache: Redis cannot be {what}, texts are computed", error)
            return
        with self._changed:
            is_first = self._link is link
            if is_first:
                self._link = None
                self._waiting.clear()
                self._waiting_bytes = 0
                self._changed.notify()
        if is_first:
            link.close()
            self._say(_log.warning, f"response cache: Redis cannot be {what}, texts are computed", error)

    def _say(self, log: Callable[..., None], event: str, error: Exception | None = None) -> None:
        """Logs an event unless the same has been said within a minute: the metrics count every failure."""
        reason = "" if error is None else str(error) or type(error).__name__
        now = self._clock()
        if now - self._said_at.get((event, reason), -math.inf) >= _SAY_AGAIN_S:
            self._said_at[event, reason] = now
            log(event, address=self._address, **({"reason": reason} if reason else {}))


class _TlsConnection(SSLConnection):
    """TLS to an address, with a certificate for the name that the address was found by."""

    def __init__(self, *, tls: ssl.SSLContext, name: str, **given: Any) -> None:
        super().__init__(**given)
        self._tls = tls
        self._name = name

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        return self._tls.wrap_socket(sock, server_hostname=self._name)


def _tls_context(settings: CacheSettings) -> ssl.SSLContext | None:
    if not settings.has_tls:
        return None
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        # An ssl.SSLError, which a file that is not PEM gives, is one as well.
        raise LoadError(f"--cache-config redis,ca={settings.ca_file}: cannot be used: {error.strerror}") from error


def _open_link(settings: CacheSettings, tls: ssl.SSLContext | None) -> _Link:
    """
    Connects to the first address of the host that answers.

    The clients get the address, not the name: to look a name up may take long, and they connect again by themselves.
    """
    failure: Exception = OSError("its name has no address")
    found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    for address in dict.fromkeys(str(each[4][0]) for each in found):
        link = _Link(*(_client(settings, tls, address, timeout_s) for timeout_s in (_READ_TIMEOUT_S, _WRITE_TIMEOUT_S)))
        try:
            link.reading.ping()
            link.writing.ping()
        except Exception as error:  # noqa: BLE001 - the next address may answer
            link.close()
            failure = error
        else:
            return link
    raise failure


def _client(settings: CacheSettings, tls: ssl.SSLContext | None, address: str, timeout_s: float) -> Redis:
    given: dict[str, Any] = {
        "host": address,
        "port": settings.port,
        "username": settings.username,
        "password": settings.password,
        "db": settings.database,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "protocol": 2,
        # By default it tries ten times, with pauses.
        "retry": Retry(NoBackoff(), 0),
    }
    if tls is None:
        return Redis(**given)
    pool = ConnectionPool(connection_class=_TlsConnection, tls=tls, name=settings.host, **given)
    return Redis.from_pool(pool)


def _portions(rows: _Rows) -> list[_Rows]:
    """Rows in portions of some megabytes: each has the timeout for itself."""
    portions: list[list[tuple[bytes, CachedRow]]] = []
    size = _WRITE_BYTES
    for each in rows:
        if size >= _WRITE_BYTES:
            portions.append([])
            size = 0
        portions[-1].append(each)
        size += each[1].nbytes
    return list(portions)


def _nbytes(rows: _Rows) -> int:
    return sum(row.nbytes for _, row in rows)
