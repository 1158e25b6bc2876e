"""Batches on an engine: each request gets its rows or its error, whatever becomes of its neighbours."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import (
    Engine,
    EngineLost,
    EngineOutput,
    LexicalRows,
    OverlappingEngine,
    RunningBatch,
    TokenBatch,
    Vectors,
)
from trivec_server.errors import ComputeError, TrivecError
from trivec_server.logs import get_logger
from trivec_server.metrics import ModelMetrics
from trivec_server.serving.batcher import Batch, Batcher, halve
from trivec_server.serving.encode import lexical_weights
from trivec_server.serving.request import SparseRow
from trivec_server.serving.ticket import Ticket
from trivec_server.types import Mode

_log = get_logger(__name__)

_FEW = 16
"""A request's rows are few if its batch has more than so many times as many."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch under way on the engine."""

    batch: Batch
    running: RunningBatch
    begun_at: float


@dataclass(frozen=True, slots=True)
class _AtOnce:
    """A batch on an engine that computes one at a time: it is computed when its result is asked for."""

    engine: Engine
    batch: Batch

    def result(self) -> EngineOutput:
        return self.engine.run(self.batch.tokens, self.batch.modes, half=self.batch.half)


@dataclass(frozen=True, slots=True)
class _Faulty:
    """A batch that could not be begun."""

    fault: Exception

    def result(self) -> EngineOutput:
        raise self.fault


class BatchRunner:
    """Runs batches on one engine, on the thread that owns it. EngineLost is the caller's; other faults end here."""

    def __init__(
        self, engine: Engine, batcher: Batcher, metrics: ModelMetrics, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._engine = engine
        self._batcher = batcher
        self._metrics = metrics
        self._loop = loop
        self._free_since = 0.0

    @property
    def depth(self) -> int:
        """How many batches may be under way at once."""
        return 2 if isinstance(self._engine, OverlappingEngine) else 1

    def begin(self, batch: Batch) -> Begun:
        """
        Begins a batch. A fault is kept for `finish`, since results are collected in order.

        Raises:
            EngineLost: the engine must be built anew; the batch is not computed.
        """
        begun_at = time.monotonic()
        if not isinstance(self._engine, OverlappingEngine):
            return Begun(batch, _AtOnce(self._engine, batch), begun_at)
        try:
            return Begun(batch, self._engine.submit(batch.tokens, batch.modes, half=batch.half), begun_at)
        except EngineLost:
            raise
        except Exception as error:  # noqa: BLE001 - `finish` raises it
            return Begun(batch, _Faulty(error), begun_at)

    def finish(self, begun: Begun) -> Sequence[Batch]:
        """
        Waits for a batch and gives each request its part or its error. A failure concerns the requests in it and no
        others. Returns what is to be run in its place: two halves, if it did not fit into memory.

        Raises:
            EngineLost: the engine must be built anew; the batch is not computed.
        """
        batch = begun.batch
        try:
            output = begun.running.result()
            now = time.monotonic()
            compute_s = now - max(begun.begun_at, self._free_since)
            self._free_since = now
            self._observe(batch, output, compute_s)
            finished, failed = self._distribute(batch, output, compute_s)
        except EngineLost:
            raise
        except MemoryError:
            return self._split(batch)
        except Exception as error:  # noqa: BLE001 - concerns this batch only; the thread goes on
            request_ids = [pending.ticket.task.request_id for pending in batch.slices]
            _log.error("batch failed", request_ids=request_ids, texts=len(batch.tokens.lengths), exc_info=error)
            internal = ComputeError("the engine failed on this batch")
            self.fail(batch, error if isinstance(error, TrivecError) else internal)
            return ()
        if finished or failed:
            _deliver(self._loop, finished, failed)
        return ()

    def fail(self, batch: Batch, failure: TrivecError) -> None:
        """Gives every request of the batch the same error."""
        self._metrics.batch_failures.inc()
        _deliver(self._loop, (), [(pending.ticket, failure) for pending in batch.slices])

    def _split(self, batch: Batch) -> Sequence[Batch]:
        """A batch that does not fit into memory in halves, down to single texts; the next ones are smaller at once."""
        texts, tokens = len(batch.tokens.lengths), len(batch.tokens.token_ids)
        if texts > 1:
            budget = self._batcher.lower_token_budget(self._computed_tokens(batch))
            self._metrics.batch_splits.inc()
            self._metrics.token_budget.set(budget)
            _log.warning("batch split for lack of memory", texts=texts, tokens=tokens, token_budget_now=budget)
            return [replace(half, is_retry=batch.is_retry) for half in halve(batch)]
        pending = batch.slices[0]
        task = pending.ticket.task
        _log.error("text too large for the device's memory", request_ids=[task.request_id], tokens=tokens)
        what = f"{task.field(int(pending.rows[0]))}: {tokens} tokens do not fit into the device's memory"
        self.fail(batch, ComputeError(f"{what}; send a shorter text or lower `max_tokens`"))
        return ()

    def _distribute(
        self, batch: Batch, output: EngineOutput, compute_s: float
    ) -> tuple[list[Ticket], list[tuple[Ticket, TrivecError]]]:
        """Gives each slice its rows; returns the requests that are complete and those that failed."""
        bad_rows = _non_finite_rows(batch.tokens, output) if output.non_finite_rows is None else output.non_finite_rows
        sparse = _sparse_rows(batch.tokens, output)
        finished: list[Ticket] = []
        failed: list[tuple[Ticket, TrivecError]] = []
        start = 0
        for pending in batch.slices:
            end = start + len(pending.rows)
            ticket = pending.ticket
            bad = bad_rows[(bad_rows >= start) & (bad_rows < end)] - start if len(bad_rows) else bad_rows
            if len(bad):
                self._metrics.non_finite_rows.inc(len(bad))
                field = ticket.task.field(int(pending.rows[bad[0]]))
                failed.append((ticket, ComputeError(f"{field}: the model gave numbers that are not finite")))
            else:
                ticket.record_batch(batch.started_at, compute_s)
                modes = ticket.task.modes
                is_complete = ticket.complete_rows(
                    pending.rows,
                    _own_rows(output.dense, start, end) if Mode.DENSE in modes else None,
                    sparse[start:end] if sparse is not None and Mode.SPARSE in modes else None,
                    list(output.multi_vector[start:end])
                    if output.multi_vector is not None and Mode.MULTI_VECTOR in modes
                    else None,
                )
                if is_complete:
                    finished.append(ticket)
            start = end
        return finished, failed

    def _observe(self, batch: Batch, output: EngineOutput, compute_s: float) -> None:
        rows, tokens = len(batch.tokens.lengths), len(batch.tokens.token_ids)
        self._batcher.record_speed(tokens, compute_s)
        self._metrics.compute_duration_s.observe(compute_s)
        self._metrics.texts.inc(rows)
        self._metrics.tokens.inc(tokens)
        self._metrics.batch_rows.observe(rows)
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.batch_padding_ratio.observe(1 - tokens / self._computed_tokens(batch))
        if output.recomputed_rows:
            self._metrics.recomputed_rows.inc(output.recomputed_rows)
            _log.warning("texts came out as NaN or infinity: computed again in float32", texts=output.recomputed_rows)

    def _computed_tokens(self, batch: Batch) -> int:
        """The tokens of a batch, padding included where the engine pads."""
        lengths = batch.tokens.lengths
        return len(lengths) * int(lengths.max()) if self._engine.info.pads else len(batch.tokens.token_ids)


def _deliver(
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


def _own_rows(rows: Vectors | None, start: int, end: int) -> Vectors | None:
    """Some rows of a batch, as a copy where they are few: a view would keep the whole batch in memory."""
    if rows is None:
        return None
    return rows[start:end].copy() if (end - start) * _FEW < len(rows) else rows[start:end]


def _sparse_rows(tokens: TokenBatch, output: EngineOutput) -> list[SparseRow] | None:
    if output.lexical is not None:
        return _cut(output.lexical)
    if output.token_weights is None:
        return None
    return lexical_weights(tokens.token_ids, output.token_weights, tokens.lengths)


def _cut(lexical: LexicalRows) -> list[SparseRow]:
    bounds = lexical.bounds.tolist()
    return [SparseRow(lexical.ids[start:end], lexical.weights[start:end]) for start, end in pairwise(bounds)]


_NO_ROWS: NDArray[np.int64] = np.empty(0, np.int64)


def _is_finite(output: EngineOutput) -> bool:
    """Whether all numbers are finite: for nearly every batch, the only question. A sum of squares is one fast pass."""
    parts = [part for part in (output.dense, output.token_weights, *(output.multi_vector or ())) if part is not None]
    return math.isfinite(sum(float(np.vdot(part, part)) for part in parts))


def _non_finite_rows(tokens: TokenBatch, output: EngineOutput) -> NDArray[np.int64]:
    """The rows of a batch, ascending, in which any part holds NaN or infinity. A sum is finite iff its terms are."""
    # An overflow would be found too, as it should: unit rows cannot overflow.
    with np.errstate(all="ignore"):
        if _is_finite(output):
            return _NO_ROWS
        bad = np.zeros(len(tokens.lengths), np.bool_)
        if output.dense is not None:
            bad |= ~np.isfinite(output.dense.sum(axis=1))
        if output.token_weights is not None:
            starts = np.cumsum(tokens.lengths) - tokens.lengths
            bad |= ~np.isfinite(np.add.reduceat(output.token_weights, starts))
        if output.multi_vector is not None:
            bad |= ~np.isfinite(np.array([vectors.sum() for vectors in output.multi_vector]))
    return np.flatnonzero(bad)
