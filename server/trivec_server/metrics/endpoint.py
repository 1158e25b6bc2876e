"""
Metrics and health over plain HTTP, on threads of their own so that a busy event loop can still be observed.

The routes are one table: path to what answers it.
"""

import enum
import gzip
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from trivec_server.metrics.exposition import CONTENT_TYPE
from trivec_server.metrics.series import Metrics

_PLAIN = "text/plain; charset=utf-8"
_REQUEST_TIMEOUT_S = 10.0
_STOP_POLL_S = 0.1
LOOP_PATIENCE_S = 60.0
"""How long the event loop may leave a beat unanswered before `/v2/health/live` says that it hangs."""


class Readiness(enum.Enum):
    """What `/v2/health/ready` says: 200, 400, 503."""

    READY = enum.auto()
    NOT_READY = enum.auto()
    STOPPING = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """
    Where the probes' answers come from. `readiness` is called on any thread; `call_soon` has the event loop call
    something, from any thread (`loop.call_soon_threadsafe`).
    """

    readiness: Callable[[], Readiness]
    call_soon: Callable[[Callable[[], None]], object]


@dataclass(frozen=True, slots=True)
class Answer:
    """To one request."""

    status: HTTPStatus
    body: bytes = b""
    content_type: str = _PLAIN


Routes = Mapping[str, Callable[[], Answer]]


class Heartbeat:
    """
    Whether the event loop still turns. A probe sends it a beat, and waits for nothing: it is a later probe that finds a
    beat unanswered for too long. So load alone never makes a server look dead.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        *,
        patience_s: float = LOOP_PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call_soon = call_soon
        self._patience_s = patience_s
        self._clock = clock
        self._sent_at: float | None = None

    def is_beating(self) -> bool:
        """
        For any thread; sends a beat unless one is under way.

        Raises:
            RuntimeError: the event loop is closed.
        """
        sent_at = self._sent_at
        if sent_at is not None:
            return self._clock() - sent_at < self._patience_s
        self._sent_at = self._clock()
        try:
            self._call_soon(self._answer)
        except RuntimeError:
            self._sent_at = None
            raise
        return True

    def _answer(self) -> None:
        self._sent_at = None


class MetricsEndpoint:
    """`/metrics` and, if `health` is given, `/v2/health/live` and `/v2/health/ready`; GET and HEAD."""

    def __init__(
        self,
        metrics: Metrics,
        host: str,
        port: int,
        *,
        log_failure: Callable[[str], object],
        health: Health | None = None,
    ) -> None:
        """
        Args:
            metrics: What `/metrics` shows.
            host: The address to bind; empty: all.
            port: 0: any.
            log_failure: Is told, on any thread and while the exception is handled, that a request was answered with
                status 500.
            health: Where the probes' answers come from.

        Raises:
            OSError: the address cannot be bound.
        """
        routes: dict[str, Callable[[], Answer]] = {
            "/metrics": lambda: Answer(HTTPStatus.OK, metrics.exposition(), CONTENT_TYPE)
        }
        if health is not None:
            routes |= health_routes(health)
        self._server = _Server(host, port, routes, log_failure)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_STOP_POLL_S,), name="metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port bound."""
        return self._server.server_port

    def close(self) -> None:
        """Stops answering and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def health_routes(health: Health) -> Routes:
    """Triton's paths and statuses, for probes that cannot speak gRPC."""
    heartbeat = Heartbeat(health.call_soon)

    def live() -> Answer:
        try:
            is_beating = heartbeat.is_beating()
        except RuntimeError:
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"the event loop has ended\n")
        if is_beating:
            return Answer(HTTPStatus.OK)
        reason = f"the event loop has hung for more than {LOOP_PATIENCE_S:.0f} s\n"
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, reason.encode())

    def ready() -> Answer:
        readiness = health.readiness()
        if readiness is Readiness.READY:
            return Answer(HTTPStatus.OK)
        if readiness is Readiness.STOPPING:
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"the server is stopping\n")
        return Answer(HTTPStatus.BAD_REQUEST, b"not ready\n")

    return {"/v2/health/live": live, "/v2/health/ready": ready}


class _Server(ThreadingHTTPServer):
    """Accepts connections, each of them answered once on a thread of its own."""

    def __init__(self, host: str, port: int, routes: Routes, log_failure: Callable[[str], object]) -> None:
        self.routes = routes
        self.log_failure = log_failure
        (self.address_family, _, _, _, address), *_ = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        super().__init__((str(address[0]), port), _Exchange)

    def server_bind(self) -> None:
        """As the library's, less its look-up of this machine's name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is no event."""


class _Exchange(BaseHTTPRequestHandler):
    """One request and its answer."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "Trivec"
    sys_version = ""
    timeout = _REQUEST_TIMEOUT_S
    error_message_format = "%(code)d: %(message)s\n"
    error_content_type = _PLAIN

    def do_GET(self) -> None:
        """Answers with what the path's route gives."""
        path = self.path.partition("?")[0]
        route = self.server.routes.get(path.rstrip("/") or path)
        if route is None:
            known = ", ".join(self.server.routes)
            self._send(Answer(HTTPStatus.NOT_FOUND, f"nothing is here; there are {known}\n".encode()))
        else:
            self._send(self._answer(route, path))

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def _answer(self, route: Callable[[], Answer], path: str) -> Answer:
        try:
            return route()
        except Exception:  # noqa: BLE001 - a probe or scrape is answered, whatever happens
            self.server.log_failure(f"could not answer {path} over HTTP")
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"the server failed to answer; its log says why\n")

    def _send(self, answer: Answer) -> None:
        body = answer.body
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        if body and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        # A client that keeps its connection would keep a thread.
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Scrapes and probes are not logged."""
