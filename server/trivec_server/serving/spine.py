"""
What every request to one model version goes through, whatever it is made of: admission, queue, engines, statistics.

A request is one coroutine that waits for one future; in between it is carried as slices, and each hop between threads
serves all requests that are ready.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, NamedTuple

from trivec_server.errors import (
    ComputeError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    QueueTimeout,
    TrivecError,
    Unavailable,
)
from trivec_server.metrics import ModelMetrics
from trivec_server.metrics.statistics import FailReason, ModelStatistics
from trivec_server.serving.admission import TEXTS, Admission, Units
from trivec_server.serving.batch_run import BatchRunner
from trivec_server.serving.batcher import Batch, Batcher
from trivec_server.serving.device import Device, EngineT
from trivec_server.serving.engine_roster import EngineCounts, EngineRoster
from trivec_server.serving.lease import Lease
from trivec_server.serving.outbox import Outbox
from trivec_server.serving.ticket import Ticket, TicketT
from trivec_server.settings import Limits
from trivec_server.types import BatchingSettings, QueuePolicy, TimeoutAction


class Load(NamedTuple):
    """
    How busy a version is: its engines, the seconds that they have waited for work since the start, all of them
    together, and what waits for them, in tokens and in seconds.
    """

    engines: int
    idle_s: float
    queued_tokens: int
    queue_s: float


class Spine(Generic[TicketT, EngineT]):
    """Queue and engines of one version. Its methods are for the event loop; `start` and `close` end its threads."""

    def __init__(
        self,
        *,
        batcher: Batcher[TicketT],
        devices: Sequence[Device[TicketT, EngineT]],
        make_runner: Callable[[EngineT], BatchRunner[TicketT]],
        batching: BatchingSettings,
        limits: Limits,
        metrics: ModelMetrics,
        statistics: ModelStatistics,
        on_change: Callable[[EngineCounts], None],
        units: Units = TEXTS,
    ) -> None:
        """
        `make_runner` is called on an engine's thread; `on_change` on the event loop, as engines die, are at work again,
        or are given up.
        """
        self._loop = asyncio.get_running_loop()
        self._batcher = batcher
        self._devices = devices
        self._make_runner = make_runner
        self._roster = EngineRoster(len(devices), metrics, on_change)
        self._batching = batching
        self._metrics = metrics
        self._statistics = statistics
        self.admission: Admission[TicketT] = Admission(batcher, limits, metrics, units)
        self.admitted = self.admission.admitted
        self._tickets: set[TicketT] = set()
        self._closing = False
        self._discarding = False
        self._outbox: Outbox[TicketT] = Outbox(self._loop, batcher.submit)
        self._use = Lease()
        metrics.token_budget.set(batcher.token_budget)
        metrics.pending_requests.set_function(lambda: self.admitted.requests)
        metrics.waiting_requests.set_function(self._count_waiting)
        metrics.queued_tokens.set_function(lambda: batcher.queued_tokens)

    def start(self) -> None:
        """Starts the batcher's thread and lets the devices pull batches."""
        self._batcher.start()
        for device in self._devices:
            device.serve(self._batcher, self)

    async def close(self) -> None:
        """Waits until nobody uses the version, refuses new requests, ends the threads and closes the engines."""
        self._batcher.hurry()
        await self._use.over()
        self._closing = True
        self._outbox.flush()
        await asyncio.to_thread(self._batcher.close)
        for device in self._devices:
            await asyncio.to_thread(device.join)

    def in_use(self) -> AbstractContextManager[None]:
        """While it lasts, the version is not closed: for whoever has resolved it and is not done with it."""
        return self._use

    def load(self) -> Load:
        """How busy it is."""
        batcher, engines = self._batcher, self._roster.total
        return Load(engines, batcher.idle_engine_s(), batcher.queued_tokens, batcher.backlog_s / engines)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that this spine lives on."""
        return self._loop

    def make_runner(self, engine: EngineT) -> BatchRunner[TicketT]:
        """What runs batches on an engine. Called on that engine's thread."""
        return self._make_runner(engine)

    def device_lost(self, name: str) -> None:
        """An engine has died and is being built anew. What it had begun is computed again; new requests wait."""
        self._roster.lost(name)

    def device_restored(self, name: str) -> None:
        """An engine is at work again."""
        self._metrics.engine_restarts.inc()
        self._roster.restored(name)

    def device_failed(self, name: str, reason: str) -> None:
        """An engine is gone for good. With the last one, all requests are refused, those under way too."""
        self._roster.failed(name, reason)
        if self._roster.all_failed:
            self._closing = True
            for ticket in list(self._tickets):
                _fail(ticket, Unavailable("the engine of this model has failed; send the request to another server"))

    def take_over(self, batches: Iterable[Batch[TicketT]]) -> bool:
        """Puts a dead engine's batches back into the queue if others serve it. Called on that engine's thread."""
        if self._closing or not self._roster.has_others:
            return False
        self._batcher.give_back([pending for batch in batches for pending in batch.slices])
        return True

    def level_of(self, priority: int) -> int:
        """
        The queue's level for a request's priority, 0 being the model's default.

        Raises:
            InvalidRequest: there is no such level.
        """
        levels = max(1, self._batching.priority_levels)
        if priority > levels:
            raise InvalidRequest("priority", f"is {priority}; this model has levels 1 to {levels}")
        return priority or self._batching.default_priority_level or 1

    def level_or_default(self, priority: int) -> int:
        """The same, but a level that there is not means the model's default, as in Triton."""
        return self.level_of(priority if priority <= self._batching.priority_levels else 0)

    async def run(
        self,
        ticket: TicketT,
        *,
        held_bytes: int,
        timeout_us: int = 0,
        is_continuation: bool = False,
        expected_tokens: int = 0,
    ) -> None:
        """
        Queues the ticket and waits until its results are in. Cancelling it drops what is not computed yet and disturbs
        no other request.

        Args:
            ticket: A new request.
            held_bytes: About what its results take in memory.
            timeout_us: The request's own timeout, 0: none; counts where the model's queue policy allows it.
            is_continuation: A further portion of a request that was admitted: not refused for load.
            expected_tokens: About how many tokens it has; 0: as many as rows.

        Raises:
            Overloaded: a limit on queued work is reached, or the wait would be too long.
            QueueTimeout: the queue's timeout passed.
            DeadlineExceeded: the ticket's deadline passed.
            Unavailable: the model is being unloaded.
            TrivecError: what the stages failed the ticket with.
        """
        try:
            policy = self._batching.priority_queue_policies.get(ticket.level, self._batching.queue_policy)
            self._check_open()
            if not is_continuation:
                self.admission.check_room(ticket, held_bytes)
                self.admission.check_queue(ticket, self._tickets, policy.max_queue_size)
                self.admission.check_wait(ticket, expected_tokens or ticket.rows, self._roster.running)
            await self._run(ticket, held_bytes, policy, timeout_us)
        except BaseException as error:
            self._statistics.request_failed(_fail_reason(error), _elapsed_ns(ticket))
            raise
        self._metrics.queue_duration_s.observe(ticket.queue_s)
        computed = ticket.rows - ticket.cached_rows
        self._statistics.request_succeeded(
            computed, _elapsed_ns(ticket), round(ticket.queue_s * 1e9), ticket.stages if computed else None
        )

    def fail_from_thread(self, ticket: TicketT, error: TrivecError) -> None:
        """Ends a request with an error; for any thread."""
        self._loop.call_soon_threadsafe(_fail, ticket, error)

    async def _run(self, ticket: TicketT, held_bytes: int, policy: QueuePolicy, timeout_us: int) -> None:
        timeout_us = _effective_timeout_us(policy, timeout_us)
        if timeout_us and policy.timeout_action is TimeoutAction.DELAY:
            ticket.delay_s = timeout_us / 1e6
            timeout_us = 0
        self._enter(ticket, held_bytes)
        try:
            self._outbox.put(ticket, ticket.admitted_at, self.admitted.requests)
            if ticket.deadline is None and not timeout_us:
                await ticket.future
            else:
                await self._outcome(ticket, timeout_us)
        finally:
            self._leave(ticket, held_bytes)

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable("the model is being unloaded; send the request again")

    async def _outcome(self, ticket: TicketT, timeout_us: int) -> None:
        """Waits until the ticket is done. The queue's timeout and the deadline end the wait on their own."""
        timer = self._loop.call_later(timeout_us / 1e6, _expire, ticket, timeout_us) if timeout_us else None
        try:
            if ticket.deadline is None:
                await ticket.future
            else:
                async with asyncio.timeout_at(ticket.deadline):
                    await ticket.future
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed before the request was done") from error
        finally:
            if timer is not None:
                timer.cancel()

    def _count_waiting(self) -> int:
        """Requests of which nothing has been computed. For any thread: copying a set is one step."""
        return sum(not ticket.started for ticket in self._tickets.copy())

    def _enter(self, ticket: TicketT, held_bytes: int) -> None:
        self._tickets.add(ticket)
        self.admitted.requests += 1
        self.admitted.rows += ticket.rows
        self.admitted.size_bytes += ticket.size_bytes
        self.admitted.held_bytes += held_bytes

    def _leave(self, ticket: TicketT, held_bytes: int) -> None:
        """Undoes `_enter`; work that is left of a request which did not succeed is dropped at once."""
        self._tickets.discard(ticket)
        self.admitted.requests -= 1
        self.admitted.rows -= ticket.rows
        self.admitted.size_bytes -= ticket.size_bytes
        self.admitted.held_bytes -= held_bytes
        if not ticket.is_complete:
            ticket.abandoned = True
            self._discard_soon()
            if not ticket.started and _has_nobody_waiting(ticket.future):
                self._metrics.dropped_requests.inc()

    def _discard_soon(self) -> None:
        """Takes abandoned work out of the queue, once for all requests that end in this turn of the event loop."""
        if not self._discarding:
            self._discarding = True
            self._loop.call_soon(self._discard)

    def _discard(self) -> None:
        self._discarding = False
        self._batcher.discard_abandoned()


def _effective_timeout_us(policy: QueuePolicy, asked_us: int) -> int:
    """A request may shorten its wait, where the policy allows it; unlike in Triton also where there is no default."""
    if not (policy.allow_timeout_override and asked_us):
        return policy.timeout_us
    return min(asked_us, policy.timeout_us or asked_us)


def _elapsed_ns(ticket: Ticket) -> int:
    return round((time.monotonic() - ticket.admitted_at) * 1e9)


def _fail_reason(error: BaseException) -> FailReason:
    if isinstance(error, Overloaded | QueueTimeout):
        return FailReason.REJECTED
    if isinstance(error, asyncio.CancelledError | DeadlineExceeded):
        return FailReason.CANCELED
    return FailReason.BACKEND if isinstance(error, ComputeError) else FailReason.OTHER


def _has_nobody_waiting(future: "asyncio.Future[None]") -> bool:
    """Whether a future ended by cancellation, deadline or timeout, and not by a fault."""
    return not future.done() or future.cancelled() or isinstance(future.exception(), DeadlineExceeded)


def _fail(ticket: Ticket, error: TrivecError) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(error)


def _expire(ticket: Ticket, timeout_us: int) -> None:
    """The queue's timeout: concerns only a request of which nothing has been computed."""
    if not ticket.started:
        _fail(ticket, QueueTimeout(f"waited longer than the queue's timeout of {timeout_us} us"))
