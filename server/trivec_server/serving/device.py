"""The thread that owns one engine instance: builds it, feeds it batches, hands results back, closes it."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import Engine, EngineInfo, EngineOutput, TokenBatch
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


class DeviceOwner(Protocol):
    """What a device tells of: results on the event loop, and its own end if it fails."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where results are delivered."""

    def device_failed(self) -> None:
        """Called on the event loop if the device's thread ends by an error."""


class Device:
    """
    One engine instance on its own thread. `start` builds the engine there and waits for it; `serve` lets it pull
    batches until the batcher is closed; `join` waits for its end.
    """

    def __init__(self, name: str, build: Callable[[], Engine]) -> None:
        self._build = build
        self._built: Future[EngineInfo] = Future()
        self._work: Future[tuple[Batcher, ModelMetrics, DeviceOwner]] = Future()
        self._checks: list[tuple[TokenBatch, Mode, Future[EngineOutput]]] = []
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> EngineInfo:
        """
        Builds the engine on its thread. Blocks.

        Raises:
            LoadError: the engine cannot be built.
        """
        self._thread.start()
        return self._built.result()

    def run_once(self, batch: TokenBatch, modes: Mode) -> EngineOutput:
        """One batch outside the queue, before `serve`: for the self-check and warm-up. Blocks."""
        result: Future[EngineOutput] = Future()
        with self._wake:
            self._checks.append((batch, modes, result))
            self._wake.notify()
        return result.result()

    def serve(self, batcher: Batcher, metrics: ModelMetrics, owner: "DeviceOwner") -> None:
        """Begins to pull batches; results are delivered on the owner's event loop."""
        with self._wake:
            self._work.set_result((batcher, metrics, owner))
            self._wake.notify()

    def close(self) -> None:
        """Ends a device that never served. Blocks until the engine is closed."""
        with self._wake:
            self._work.cancel()
            self._wake.notify()
        self._thread.join()

    def join(self) -> None:
        """Waits until the batcher is closed and drained and the engine is closed."""
        self._thread.join()

    def _run(self) -> None:
        try:
            engine = self._build()
        except BaseException as error:  # noqa: BLE001 - `start` raises it where it is awaited
            self._built.set_exception(error)
            return
        self._built.set_result(engine.info)
        try:
            self._run_checks(engine)
            if not self._work.cancelled():
                self._serve(engine, *self._work.result())
        finally:
            engine.close()

    def _serve(self, engine: Engine, batcher: Batcher, metrics: ModelMetrics, owner: "DeviceOwner") -> None:
        runner = _BatchRunner(engine, batcher, metrics, owner.loop)
        try:
            while (batch := batcher.take()) is not None:
                runner.run(batch)
                # Held references would keep the last results alive while this thread waits.
                del batch
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody would serve this queue any more
            _log.error("engine thread failed", exc_info=error)
            owner.loop.call_soon_threadsafe(owner.device_failed)

    def _run_checks(self, engine: Engine) -> None:
        """Runs single batches until `serve` or `close` is called."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._checks or self._work.done())
                if not self._checks:
                    return
                batch, modes, result = self._checks.pop(0)
            try:
                result.set_result(engine.run(batch, modes))
            except Exception as error:  # noqa: BLE001 - `run_once` raises it where it is awaited
                result.set_exception(error)


class _BatchRunner:
    """Runs batches on an engine and gives each request its part or its error."""

    def __init__(
        self, engine: Engine, batcher: Batcher, metrics: ModelMetrics, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._engine = engine
        self._batcher = batcher
        self._metrics = metrics
        self._loop = loop

    def run(self, batch: Batch) -> None:
        """One batch. A failure concerns the requests in it and no others; this thread goes on."""
        started_at = time.monotonic()
        try:
            try:
                output = self._engine.run(batch.tokens, batch.modes)
            except MemoryError:
                self._run_smaller(batch)
                return
            compute_s = time.monotonic() - started_at
            self._observe(batch, compute_s)
            finished, failed = self._distribute(batch, output, compute_s)
        except Exception as error:  # noqa: BLE001 - concerns this batch only; the thread goes on
            request_ids = [pending.ticket.task.request_id for pending in batch.slices]
            _log.exception("batch failed", request_ids=request_ids, texts=len(batch.tokens.lengths))
            failure = error if isinstance(error, TrivecError) else ComputeError("the engine failed on this batch")
            self._fail(batch, failure)
            return
        if finished or failed:
            _deliver(self._loop, finished, failed)

    def _run_smaller(self, batch: Batch) -> None:
        """Runs a batch that does not fit into memory in halves, each on its own, down to single texts."""
        texts, tokens = len(batch.tokens.lengths), len(batch.tokens.token_ids)
        if texts > 1:
            self._metrics.batch_splits.inc()
            _log.warning("batch split for lack of memory", texts=texts, tokens=tokens)
            for half in halve(batch):
                self.run(half)
            return
        pending = batch.slices[0]
        task = pending.ticket.task
        _log.error("text too large for the device's memory", request_ids=[task.request_id], tokens=tokens)
        what = f"{task.field(int(pending.rows[0]))}: {tokens} tokens do not fit into the device's memory"
        self._fail(batch, ComputeError(f"{what}; send a shorter text or lower `max_tokens`"))

    def _fail(self, batch: Batch, failure: TrivecError) -> None:
        self._metrics.batch_failures.inc()
        _deliver(self._loop, (), [(pending.ticket, failure) for pending in batch.slices])

    def _distribute(
        self, batch: Batch, output: EngineOutput, compute_s: float
    ) -> tuple[list[Ticket], list[tuple[Ticket, TrivecError]]]:
        """Gives each slice its rows; returns the requests that are complete and those that failed."""
        bad_rows = _non_finite_rows(batch.tokens, output)
        weights = output.token_weights
        sparse: list[SparseRow] | None = None
        if weights is not None:
            sparse = lexical_weights(batch.tokens.token_ids, weights, batch.tokens.lengths)
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

    def _observe(self, batch: Batch, compute_s: float) -> None:
        rows, tokens = len(batch.tokens.lengths), len(batch.tokens.token_ids)
        self._batcher.record_speed(tokens, compute_s)
        self._metrics.compute_duration_s.observe(compute_s)
        self._metrics.texts.inc(rows)
        self._metrics.tokens.inc(tokens)
        self._metrics.batch_rows.observe(rows)
        self._metrics.batch_tokens.observe(tokens)
        padded = rows * int(batch.tokens.lengths.max()) if self._engine.info.pads else tokens
        self._metrics.batch_padding_ratio.observe(1 - tokens / padded)


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


def _own_rows(rows: NDArray[np.float32] | None, start: int, end: int) -> NDArray[np.float32] | None:
    """Some rows of a batch, as a copy where they are few: a view would keep the whole batch in memory."""
    if rows is None:
        return None
    return rows[start:end].copy() if (end - start) * _FEW < len(rows) else rows[start:end]


_NO_ROWS: NDArray[np.int64] = np.empty(0, np.int64)


def _is_finite(output: EngineOutput) -> bool:
    """Whether all numbers are finite: for nearly every batch, the only question. A sum of squares is one fast pass."""
    parts = [part for part in (output.dense, output.token_weights, *(output.multi_vector or ())) if part is not None]
    return math.isfinite(sum(float(np.vdot(part, part)) for part in parts))


def _non_finite_rows(tokens: TokenBatch, output: EngineOutput) -> NDArray[np.int64]:
    """The rows of a batch, ascending, in which any part holds NaN or infinity. A sum is finite iff its terms are."""
    if _is_finite(output):
        return _NO_ROWS
    bad = np.zeros(len(tokens.lengths), np.bool_)
    # An overflow would be found too, as it should: unit rows cannot overflow.
    with np.errstate(all="ignore"):
        if output.dense is not None:
            bad |= ~np.isfinite(output.dense.sum(axis=1))
        if output.token_weights is not None:
            starts = np.cumsum(tokens.lengths) - tokens.lengths
            bad |= ~np.isfinite(np.add.reduceat(output.token_weights, starts))
        if output.multi_vector is not None:
            bad |= ~np.isfinite(np.array([vectors.sum() for vectors in output.multi_vector]))
    return np.flatnonzero(bad)
