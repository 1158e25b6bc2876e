"""
`grpc.health.v1.Health`: Check and Watch, which need no credentials and are outside the limits on calls, so that probes
are answered by a server that refuses all else. They have limits of their own.

A watcher is told the latest status once it takes it: nobody waits for one that does not read.
"""

import asyncio
from collections import Counter, defaultdict
from typing import NoReturn, TypeAlias

import grpc
from grpc_health.v1 import health_pb2

from trivec_server.errors import InvalidRequest, NotFound, Overloaded, TrivecError
from trivec_server.metrics import Metrics
from trivec_server.settings import Limits
from trivec_server.transport.calls import Context, abort
from trivec_server.transport.parse import parse_message
from trivec_server.transport.reception import Reception
from trivec_server.transport.status import status_of

Status: TypeAlias = health_pb2.HealthCheckResponse.ServingStatus

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
LIVE = "live"
"""
The name that is SERVING for as long as it can be asked, whatever becomes of models and while the server drains: a probe
of it that fails means that the process is stuck or gone. It is no model's, even if one is called so.
"""
HEALTH_SERVICE_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_MAX_REQUEST_BYTES = 4096
"""A name is far shorter."""
_SHARE_OF_CONNECTION = 4
"""One connection has at most this part of the watches: a proxy brings those of many clients."""
_RETRY_AFTER_S = 1.0


class Health:
    """The status of each name, and who watches it. For the event loop; several servers may share it."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._statuses: dict[str, Status] = {LIVE: SERVING}
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._watches = 0
        self._watches_of: Counter[str] = Counter()
        self._max_watches = limits.max_concurrent_calls
        self._series = metrics.connections
        # Calls wait here for their request alone, so that the limit is one on those that do not send it.
        self._reception = Reception(limits, metrics)
        self._draining = False
        self._ending = False

    def handler(self) -> grpc.GenericRpcHandler:
        """The service's methods, on raw bytes."""
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check),
            "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE_NAME, handlers)

    def set(self, name: str, status: Status) -> None:
        """A name's status from now on, unless the server drains. `LIVE` stays as it is."""
        if not self._draining and name != LIVE:
            self._change(name, status)

    def enter_drain(self) -> None:
        """Every name but `LIVE` is NOT_SERVING from now on."""
        self._draining = True
        for name in self._statuses.keys() - {LIVE}:
            self._change(name, NOT_SERVING)

    def end_watches(self) -> None:
        """Ends all watches, with status OK: clients then watch another server."""
        self._ending = True
        for watchers in self._watchers.values():
            for changed in watchers:
                changed.set()

    def _change(self, name: str, status: Status) -> None:
        self._statuses[name] = status
        for changed in self._watchers.get(name, ()):
            changed.set()

    async def _check(self, _: object, context: Context) -> bytes:
        name = await self._read_name(context)
        status = self._statuses.get(name)
        if status is None:
            await _refuse(context, NotFound(f"{name!r} is neither a service, a model nor a model's version here"))
        return _answer(status)

    async def _watch(self, _: object, context: Context) -> None:
        name = await self._read_name(context)
        peer = context.peer()
        try:
            self._check_room(peer)
        except TrivecError as error:
            await _refuse(context, error)
        changed = asyncio.Event()
        self._watchers[name].add(changed)
        self._watches += 1
        self._watches_of[peer] += 1
        try:
            await self._tell(name, changed, context)
        finally:
            self._forget(name, changed, peer)

    async def _tell(self, name: str, changed: asyncio.Event, context: Context) -> None:
        told: Status | None = None
        while not self._ending:
            changed.clear()
            status = self._statuses.get(name, _UNKNOWN)
            if status != told:
                told = status
                await context.write(_answer(status))
            else:
                await changed.wait()

    def _forget(self, name: str, changed: asyncio.Event, peer: str) -> None:
        self._watchers[name].discard(changed)
        if not self._watchers[name]:
            del self._watchers[name]
        self._watches -= 1
        self._watches_of[peer] -= 1
        if not self._watches_of[peer]:
            del self._watches_of[peer]

    def _check_room(self, peer: str) -> None:
        """
        Raises:
            Overloaded: there are too many watches, in all or on the connection.
        """
        of_connection, most = self._watches_of[peer], max(1, self._max_watches // _SHARE_OF_CONNECTION)
        if self._watches >= self._max_watches:
            reason = f"health is watched {self._max_watches} times, which is the limit"
        elif of_connection >= most:
            reason = f"this connection watches health {most} times, which is the limit for one"
        else:
            return
        self._series.refused("watches")
        raise Overloaded(f"{reason}; end a watch, or use Check", retry_after_s=_RETRY_AFTER_S)

    async def _read_name(self, context: Context) -> str:
        """The name that a call asks for; one that cannot be read is refused."""
        try:
            self._reception.enter(context)
            try:
                raw = await self._reception.read(context)
            finally:
                self._reception.leave()
            if len(raw) > _MAX_REQUEST_BYTES:
                raise InvalidRequest("service", f"has {len(raw)} bytes; at most {_MAX_REQUEST_BYTES} are allowed")
            name: str = parse_message(raw, health_pb2.HealthCheckRequest).service
        except TrivecError as error:
            await _refuse(context, error)
        return name


def _answer(status: Status) -> bytes:
    answer: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return answer


async def _refuse(context: Context, error: TrivecError) -> NoReturn:
    await abort(context, status_of(error, ""), "")
