"""
What one port bears of its clients: calls under way, calls whose request does not arrive, and answers left unread.

gRPC gives a unary handler its request when it is whole, however long that takes; here the handler reads it, so that a
client which sends a byte at a time is answered when its time is over. Nothing ends a call whose answer is not read but
the client, its deadline, or the end of its connection: so a connection that leaves much unread is given no more.
"""

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from trivec_server.errors import DeadlineExceeded, InvalidRequest, Overloaded
from trivec_server.metrics import Metrics
from trivec_server.settings import Limits

if TYPE_CHECKING:
    from trivec_server.transport.calls import Context

_LOOKS = 4
"""How often in a client's time the calls are looked at."""
_RETRY_AFTER_S = 1.0
_LEAST_TIME_S = 1.0
"""So long a request may be on its way, however many calls there are."""
_END_S = 0.1
_LARGE_BYTES = 64 * 1024
"""Smaller answers are bounded by their number."""


class Reception:
    """For the event loop."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._series = metrics.connections
        self._calls = 0
        self._reading: dict[asyncio.Task[object], float] = {}
        self._late: set[asyncio.Task[object]] = set()
        self._unread: dict[str, int] = {}
        self._looking: asyncio.TimerHandle | None = None

    def enter(self, context: "Context") -> None:
        """
        A call begins. Where there are too many, one gives way whose request does not arrive.

        Raises:
            Overloaded: there are too many, or its connection leaves too much unread.
        """
        if self._calls >= self._limits.max_concurrent_calls and not self._make_room():
            self._series.refused("calls")
            raise Overloaded(
                f"overloaded: {self._calls} calls are under way; the limit is {self._limits.max_concurrent_calls}; "
                "send the request again later",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._unread and self._unread.get(context.peer(), 0) > self._limits.max_unread_bytes:
            self._series.refused("unread")
            raise Overloaded(
                f"this connection leaves {self._unread[context.peer()]:,} bytes of answers unread; the limit is "
                f"{self._limits.max_unread_bytes:,}; read them first",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._calls += 1

    def leave(self) -> None:
        """A call that has entered is over, but for its answer's way to the client."""
        self._calls -= 1

    async def read(self, context: "Context") -> bytes:
        """
        The request of a unary call.

        Raises:
            DeadlineExceeded: it did not arrive in time.
            InvalidRequest: there is none.
        """
        task = _this_task()
        self._reading[task] = time.monotonic()
        if self._looking is None:
            self._look_later()
        try:
            raw: object = await context.read()
            if not isinstance(raw, bytes):
                # Too large, or cancelled: this task will hear of it in a moment.
                await asyncio.sleep(_END_S)
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            self._series.refused("slow")
            waited_s = time.monotonic() - self._reading[task]
            raise DeadlineExceeded(f"the request was not whole after {waited_s:.1f} s") from None
        finally:
            del self._reading[task]
            self._late.discard(task)
        if not isinstance(raw, bytes):
            raise InvalidRequest("request", "is missing")
        return raw

    def answer(self, context: "Context", size_bytes: int) -> None:
        """So large an answer is on its way, until this task ends."""
        if size_bytes >= _LARGE_BYTES:
            peer = context.peer()
            self._unread[peer] = self._unread.get(peer, 0) + size_bytes
            _this_task().add_done_callback(partial(self._answered, peer, size_bytes))

    def _make_room(self) -> bool:
        """Ends the call whose request has been on its way for longest, unless that is not long."""
        for task, since in self._reading.items():
            if task not in self._late:
                if time.monotonic() - since < _LEAST_TIME_S:
                    return False
                self._end(task)
                return True
        return False

    def _end(self, task: asyncio.Task[object]) -> None:
        self._late.add(task)
        task.cancel()

    def _answered(self, peer: str, size_bytes: int, _: object) -> None:
        left = self._unread[peer] - size_bytes
        if left:
            self._unread[peer] = left
        else:
            del self._unread[peer]

    def _look_later(self) -> None:
        delay_s = self._limits.request_timeout_s / _LOOKS
        self._looking = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """Ends the calls whose request has been on its way for too long."""
        self._looking = None
        if self._reading:
            self._look_later()
        latest = time.monotonic() - self._limits.request_timeout_s
        for task, since in self._reading.items():
            if since <= latest and task not in self._late:
                self._end(task)


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a call runs in a task")
    return task
