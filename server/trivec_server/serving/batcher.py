"""
The queue of one model version, and the loop around the batcher's decision.

Three kinds of thread meet here and nowhere else, under one lock: the tokenizer's puts slices in, the engines' take
batches out, the event loop's discards what nobody waits for. The decision itself is `selection.select`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trivec_server.backends.interface import TokenBatch
from trivec_server.metrics import ModelMetrics
from trivec_server.serving.selection import BatchLimits, Selection, select
from trivec_server.serving.ticket import Pending
from trivec_server.types import Mode

_INITIAL_SECONDS_PER_TOKEN = 1e-3
_RATE_SMOOTHING = 0.2


@dataclass(frozen=True, slots=True)
class Batch:
    """Slices that run together: `slices` in the order of `tokens`, `modes` the union of what they ask for."""

    slices: Sequence[Pending]
    tokens: TokenBatch
    modes: Mode
    started_at: float


class Batcher:
    """A queue of slices that engines pull batches from. Thread-safe; no method but `take` blocks."""

    def __init__(
        self, limits: BatchLimits, metrics: ModelMetrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: list[Pending] = []
        self._queued_tokens = 0
        self._closing = False
        self._seconds_per_token = _INITIAL_SECONDS_PER_TOKEN

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a batch."""
        return self._queued_tokens

    @property
    def backlog_s(self) -> float:
        """How long the queue's work will take, by the engine's recent speed."""
        return self._queued_tokens * self._seconds_per_token

    def put(self, slices: Sequence[Pending]) -> None:
        """Adds slices to the queue."""
        with self._changed:
            self._queue.extend(slices)
            self._set_queued_tokens(self._queued_tokens + sum(pending.tokens for pending in slices))
            self._changed.notify()

    def discard_abandoned(self) -> None:
        """Removes the slices of abandoned tickets at once, so that they count against no limit."""
        with self._changed:
            kept = [pending for pending in self._queue if not pending.ticket.abandoned]
            self._drop(len(self._queue) - len(kept))
            self._replace_queue(kept)

    def take(self) -> Batch | None:
        """Waits for work and takes the next batch; None once the batcher is closed and its queue is empty."""
        with self._changed:
            while True:
                selection = select(
                    self._queue,
                    self._clock(),
                    self._limits,
                    seconds_per_token=self._seconds_per_token,
                    may_grow=not self._closing,
                )
                batch = self._apply(selection)
                if batch is not None:
                    if self._queue:
                        self._changed.notify()
                    return batch
                if self._closing and not self._queue:
                    self._changed.notify_all()
                    return None
                wait_s = None if selection.wake_at is None else max(0.0, selection.wake_at - self._clock())
                self._changed.wait(wait_s)

    def record_speed(self, tokens: int, compute_s: float) -> None:
        """Takes the duration of a finished batch into the estimate of the engine's speed."""
        with self._changed:
            self._seconds_per_token += _RATE_SMOOTHING * (compute_s / tokens - self._seconds_per_token)

    def close(self) -> None:
        """Lets `take` return None once the queue is empty. What is queued is still served."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _apply(self, selection: Selection) -> Batch | None:
        """Changes the queue as decided."""
        if not selection.taken:
            if selection.dropped:
                gone = set(map(id, selection.dropped))
                self._drop(len(gone))
                self._replace_queue([pending for pending in self._queue if id(pending) not in gone])
            return None
        started_at = self._clock()
        gone = set(map(id, selection.dropped)) | {id(pending) for pending, _ in selection.taken}
        left = [pending for pending in self._queue if id(pending) not in gone]
        slices = []
        for pending, chosen in selection.taken:
            pending.ticket.started = True
            part, rest = (pending, None) if chosen is None else pending.split(chosen)
            slices.append(part)
            if rest is not None:
                left.append(rest)
        self._drop(len(selection.dropped))
        self._replace_queue(left)
        return _form(slices, started_at)

    def _replace_queue(self, queue: list[Pending]) -> None:
        self._queue = queue
        self._set_queued_tokens(sum(pending.tokens for pending in queue))

    def _set_queued_tokens(self, tokens: int) -> None:
        self._queued_tokens = tokens
        self._metrics.queued_tokens.set(tokens)

    def _drop(self, count: int) -> None:
        if count:
            self._metrics.dropped_requests.inc(count)


def halve(batch: Batch) -> tuple[Batch, Batch]:
    """Two batches with half of the texts each. The batch has two texts at least."""
    middle = len(batch.tokens.lengths) // 2
    first: list[Pending] = []
    second: list[Pending] = []
    seen = 0
    for pending in batch.slices:
        ahead = middle - seen
        seen += len(pending.rows)
        if 0 < ahead < len(pending.rows):
            part, rest = pending.split(np.arange(ahead))
            first.append(part)
            second.extend([] if rest is None else [rest])
        else:
            (first if ahead > 0 else second).append(pending)
    return _form(first, batch.started_at), _form(second, batch.started_at)


def _form(slices: list[Pending], started_at: float) -> Batch:
    modes = slices[0].ticket.task.modes
    if len(slices) == 1:
        return Batch(slices, TokenBatch(slices[0].token_ids, slices[0].lengths), modes, started_at)
    for pending in slices:
        modes |= pending.ticket.task.modes
    tokens = TokenBatch(
        np.concatenate([pending.token_ids for pending in slices]),
        np.concatenate([pending.lengths for pending in slices]),
    )
    return Batch(slices, tokens, modes, started_at)
