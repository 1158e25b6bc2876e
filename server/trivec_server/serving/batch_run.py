"""Batches on an engine: each request gets its rows or its error, whatever becomes of its neighbours."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol

from trivec_server.backends.interface import EngineLost
from trivec_server.errors import ComputeError, InvalidTensor, TrivecError
from trivec_server.logs import get_logger
from trivec_server.metrics import ModelMetrics
from trivec_server.metrics.statistics import ModelStatistics, StageTimes
from trivec_server.serving.batcher import Batch, Batcher, apart, halve
from trivec_server.serving.ticket import Pending, Ticket, TicketT
from trivec_server.serving.trail import BatchNote

_log = get_logger(__name__)


class Running(Protocol):
    """A batch under way: `result` waits for it, or computes it."""

    def result(self) -> Any:
        """What the engine gives for the batch."""


@dataclass(frozen=True, slots=True)
class Begun(Generic[TicketT]):
    """A batch under way on the engine."""

    batch: Batch[TicketT]
    running: Running
    begun_at: float


@dataclass(frozen=True, slots=True)
class _Faulty:
    """A batch that could not be begun."""

    fault: BaseException

    def result(self) -> Any:
        raise self.fault


class Distributed(NamedTuple):
    """What became of the requests in a batch: the ones that are complete now, and the ones that failed."""

    finished: list[Ticket]
    failed: list[tuple[Ticket, TrivecError]]


class BatchTimes(NamedTuple):
    """When a batch was begun on the engine and when its results were there (of `time.monotonic`)."""

    begun_at: float
    computed_at: float
    compute_s: float

    def stages(self, batch: Batch[Any]) -> StageTimes:
        """The stages up to this moment."""
        return StageTimes(
            round((self.begun_at - batch.started_at) * 1e9),
            round(self.compute_s * 1e9),
            round((time.monotonic() - self.computed_at) * 1e9),
        )


class BatchRunner(ABC, Generic[TicketT]):
    """
    Runs batches on one engine, on the thread that owns it. EngineLost is the caller's; other faults end here.

    A kind of engine says how a batch is begun on it, and how its results are handed out.
    """

    depth = 1
    """How many batches may be under way at once."""

    def __init__(
        self,
        batcher: Batcher[TicketT],
        metrics: ModelMetrics,
        statistics: ModelStatistics,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._batcher = batcher
        self._metrics = metrics
        self._statistics = statistics
        self._loop = loop
        self._free_since = 0.0

    @abstractmethod
    def _start(self, batch: Batch[TicketT]) -> Begun[TicketT]:
        """Lays a batch's inputs out and begins it on the engine. Raises as the engine does."""

    @abstractmethod
    def _distribute(self, batch: Batch[TicketT], output: Any, times: BatchTimes) -> Distributed:
        """Gives each slice its rows."""

    @abstractmethod
    def _computed_tokens(self, batch: Batch[TicketT]) -> int:
        """The tokens of a batch, padding included where the engine pads."""

    @abstractmethod
    def _too_large(self, pending: Pending[TicketT]) -> TrivecError:
        """The error of a single row that does not fit into the device's memory."""

    def begin(self, batch: Batch[TicketT]) -> Begun[TicketT]:
        """
        Begins a batch. A fault is kept for `finish`, since results are collected in order.

        Raises:
            EngineLost: the engine must be built anew; the batch is not computed.
        """
        try:
            return self._start(batch)
        except EngineLost:
            raise
        except BaseException as error:  # noqa: BLE001 - `finish` raises it
            return Begun(batch, _Faulty(error), time.monotonic())

    def finish(self, begun: Begun[TicketT]) -> Sequence[Batch[TicketT]]:
        """
        Waits for a batch and gives each request its part or its error. A failure concerns the requests in it and no
        others. Returns what is to be run in its place: two halves, if it did not fit into memory; each request by
        itself, if one of them may be at fault.

        Raises:
            EngineLost: the engine must be built anew; the batch is not computed.
        """
        batch = begun.batch
        begun_at = max(begun.begun_at, self._free_since)
        try:
            output = begun.running.result()
        except EngineLost:
            raise
        except MemoryError:
            return self._split(batch)
        except Exception as error:  # noqa: BLE001 - concerns this batch only; the thread goes on
            if len(batch.slices) > 1 and self._may_be_one_requests_fault(error):
                return [replace(part, is_retry=batch.is_retry) for part in apart(batch)]
            self._fail_with(batch, error)
            return ()
        now = time.monotonic()
        self._free_since = now
        times = BatchTimes(begun_at, now, now - begun_at)
        try:
            self._observe(batch, output, times.compute_s)
            finished, failed = self._distribute(batch, output, times)
        except Exception as error:  # noqa: BLE001 - concerns this batch only
            self._fail_with(batch, error)
            return ()
        self._statistics.batch_executed(len(batch.tokens.lengths), times.stages(batch))
        if finished or failed:
            deliver(self._loop, finished, failed)
        return ()

    def fail(self, batch: Batch[TicketT], failure: TrivecError) -> None:
        """Gives every request of the batch the same error."""
        self._metrics.batch_failures.inc()
        deliver(self._loop, (), [(pending.ticket, failure) for pending in batch.slices])

    def _may_be_one_requests_fault(self, error: Exception) -> bool:
        """Whether the others of a batch might be computed without one of its requests."""
        return False

    def _fail_with(self, batch: Batch[TicketT], error: Exception) -> None:
        if isinstance(error, InvalidTensor):
            # Not the engine's failure.
            deliver(self._loop, (), [(pending.ticket, error) for pending in batch.slices])
            return
        request_ids = [pending.ticket.request_id for pending in batch.slices]
        rows = len(batch.tokens.lengths)
        if isinstance(error, TrivecError):
            _log.error("batch failed", request_ids=request_ids, rows=rows, reason=str(error))
            self.fail(batch, error)
        else:
            _log.error("batch failed", request_ids=request_ids, rows=rows, exc_info=error)
            self.fail(batch, ComputeError("the engine failed on this batch"))

    def _record(self, ticket: TicketT, batch: Batch[TicketT], times: BatchTimes) -> None:
        """Tells a request of its batch."""
        note = None
        if ticket.trail is not None:
            tokens = batch.tokens
            sizes = len(tokens.lengths), len(tokens.token_ids)
            note = BatchNote(batch.started_at, times.begun_at, times.computed_at, *sizes)
        ticket.record_batch(batch.started_at, times.stages(batch), note)

    def _observe(self, batch: Batch[TicketT], output: Any, compute_s: float) -> None:
        rows, tokens = len(batch.tokens.lengths), len(batch.tokens.token_ids)
        self._batcher.record_speed(tokens, compute_s, left_work=batch.left_work)
        self._metrics.compute_duration_s.observe(compute_s)
        self._metrics.batch_rows.observe(rows)

    def _split(self, batch: Batch[TicketT]) -> Sequence[Batch[TicketT]]:
        """A batch that does not fit into memory in halves, down to single rows; the next ones are smaller at once."""
        rows, tokens = len(batch.tokens.lengths), len(batch.tokens.token_ids)
        if rows > 1:
            budget = self._batcher.lower_token_budget(self._computed_tokens(batch))
            self._metrics.batch_splits.inc()
            self._metrics.token_budget.set(budget)
            _log.warning("batch split for lack of memory", rows=rows, tokens=tokens, token_budget_now=budget)
            return [replace(half, is_retry=batch.is_retry) for half in halve(batch)]
        pending = batch.slices[0]
        _log.error("too large for the device's memory", request_ids=[pending.ticket.request_id], tokens=tokens)
        self.fail(batch, self._too_large(pending))
        return ()


def deliver(
    loop: asyncio.AbstractEventLoop, finished: Sequence[Ticket], failed: Sequence[tuple[Ticket, TrivecError]]
) -> None:
    """Wakes the awaiting requests: one hop to the event loop per batch."""
    try:
        loop.call_soon_threadsafe(_resolve, finished, failed)
    except RuntimeError:
        # The loop is closed: a forced stop. Nobody awaits the results.
        _log.warning("results dropped: the server has stopped", requests=len(finished) + len(failed))


def _resolve(finished: Sequence[Ticket], failed: Sequence[tuple[Ticket, TrivecError]]) -> None:
    for ticket in finished:
        if not ticket.future.done():
            ticket.future.set_result(None)
    for ticket, error in failed:
        ticket.abandoned = True
        if not ticket.future.done():
            ticket.future.set_exception(error)
