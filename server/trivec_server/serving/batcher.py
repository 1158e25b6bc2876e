"""
The work of one model version between admission and its engines, and the loop around the batcher's decision.

Three kinds of thread meet here and nowhere else, under one lock: the event loop submits requests and discards what
nobody waits for; the engines' threads take batches; the batcher's own thread tokenizes while the engines compute. An
engine that has nothing to compute tokenizes what has arrived itself: a request that finds the server idle, or a fast
engine, then crosses threads once. The decision on a batch is `selection.select`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol

import numpy as np

from trivec_server.backends.interface import TokenBatch
from trivec_server.serving.backlog import Backlog
from trivec_server.serving.selection import BatchLimits, Selection, select
from trivec_server.serving.ticket import Pending, Share, TicketT

_INITIAL_SECONDS_PER_TOKEN = 1e-3
_RATE_SMOOTHING = 0.2
_BUDGET_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Batch(Generic[TicketT]):
    """
    Slices that run together, in the order of `tokens`. `is_retry`: an engine has died with it before. `left_work`:
    there was more to do than went into it.
    """

    slices: Sequence[Pending[TicketT]]
    tokens: TokenBatch
    started_at: float
    is_retry: bool = False
    left_work: bool = False


class Inbox(Protocol[TicketT]):
    """Requests on their way to the queue. Not thread-safe: the batcher's lock guards it."""

    def __bool__(self) -> bool:
        """Whether any waits."""

    def add(self, tickets: Sequence[TicketT]) -> None:
        """Puts requests at the end of the line."""

    def take_round(self) -> Sequence[Share[TicketT]]:
        """The shares of requests to make slices of next."""


class SliceMaker(Protocol[TicketT]):
    """Makes slices for the queue. Used by one thread at a time, outside the batcher's lock."""

    def make(self, shares: Sequence[Share[TicketT]]) -> list[Pending[TicketT]]:
        """The slices of one round. A request that is at fault fails alone."""


class Batcher(Generic[TicketT]):
    """Requests in, batches out. Thread-safe; no method but `take` and `close` waits for work."""

    def __init__(
        self,
        name: str,
        limits: BatchLimits,
        inbox: Inbox[TicketT],
        slice_maker: SliceMaker[TicketT],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._slice_maker = slice_maker
        self._clock = clock
        lock = threading.Lock()
        self._engine_may_work = threading.Condition(lock)
        self._tokenizer_may_work = threading.Condition(lock)
        self._inbox = inbox
        self._queue: list[Pending[TicketT]] = []
        self._backlog = Backlog()
        self._idle_engines = 0
        self._idle_s = 0.0
        self._idle_counted_at = clock()
        self._tokenizing = False
        self._hurrying = False
        self._closing = False
        self._seconds_per_token = _INITIAL_SECONDS_PER_TOKEN
        self._thread = threading.Thread(target=self._tokenize_beside_engines, name=f"tokenizer {name}", daemon=True)

    @property
    def backlog(self) -> Backlog:
        """The work that waits for a batch."""
        return self._backlog

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a batch."""
        return self._backlog.tokens

    @property
    def token_budget(self) -> int:
        """The most tokens in one batch, as of now."""
        return self._limits.token_budget

    @property
    def backlog_s(self) -> float:
        """How long one engine will take for the queue's work, by its recent speed."""
        known = self._backlog.seconds_per_token
        return self._backlog.tokens * (self._seconds_per_token if known is None else known)

    def idle_engine_s(self) -> float:
        """For how long engines have waited for work since the start, all of them together."""
        with self._engine_may_work:
            self._count_idle(0)
            return self._idle_s

    def start(self) -> None:
        """Starts the thread that tokenizes while the engines compute."""
        self._thread.start()

    def submit(self, tickets: Sequence[TicketT]) -> None:
        """Takes requests in."""
        with self._engine_may_work:
            self._inbox.add(tickets)
            self._wake_for_inbox()

    def discard_abandoned(self) -> None:
        """Removes the slices of abandoned tickets at once, so that they count against no limit."""
        with self._engine_may_work:
            kept = [pending for pending in self._queue if not pending.ticket.abandoned]
            if len(kept) < len(self._queue):
                self._replace_queue(kept)

    def take(self) -> Batch[TicketT] | None:
        """Waits for work and takes the next batch; None once the batcher is closed and nothing is left."""
        with self._engine_may_work:
            while True:
                selection = self._select()
                batch = self._apply(selection)
                if batch is not None:
                    self._pass_on()
                    return batch
                if self._inbox and not self._tokenizing:
                    self._tokenize_round()
                    continue
                if self._closing and not self._queue and not self._inbox and not self._tokenizing:
                    self._engine_may_work.notify_all()
                    return None
                wait_s = None if selection.wake_at is None else max(0.0, selection.wake_at - self._clock())
                self._count_idle(1)
                self._engine_may_work.wait(wait_s)
                self._count_idle(-1)

    def take_now(self) -> Batch[TicketT] | None:
        """The next batch if there is one at once, tokenizing what has arrived; None otherwise."""
        with self._engine_may_work:
            if self._inbox and not self._tokenizing and not self._queue:
                self._tokenize_round()
            batch = self._apply(self._select())
            if batch is not None:
                self._pass_on()
            return batch

    def give_back(self, slices: Sequence[Pending[TicketT]]) -> None:
        """Takes slices in again that an engine could not compute, for another one."""
        with self._engine_may_work:
            self._replace_queue([*slices, *self._queue])
            self._engine_may_work.notify_all()

    def lower_token_budget(self, failed_tokens: int) -> int:
        """Lowers the budget after a batch of so many tokens, padding included, did not fit; returns the new one."""
        with self._engine_may_work:
            lower = max(self._limits.least_token_budget, int(failed_tokens * _BUDGET_SHARE))
            if lower < self._limits.token_budget:
                self._limits = replace(self._limits, token_budget=lower)
            return self._limits.token_budget

    def record_speed(self, tokens: int, compute_s: float, *, left_work: bool = False) -> None:
        """Takes the duration of a finished batch into the estimates of the engine's speed."""
        self._seconds_per_token += _RATE_SMOOTHING * (compute_s / tokens - self._seconds_per_token)
        with self._engine_may_work:
            self._backlog.learn(tokens, compute_s, left_work=left_work)

    def hurry(self) -> None:
        """From now on nothing waits for company: this batcher is about to be closed."""
        with self._engine_may_work:
            self._hurrying = True
            self._engine_may_work.notify_all()

    def close(self) -> None:
        """Lets `take` return None once all work is done; what has been submitted is still served."""
        with self._engine_may_work:
            self._closing = True
            self._engine_may_work.notify_all()
            self._tokenizer_may_work.notify_all()
        self._thread.join()

    def _tokenize_beside_engines(self) -> None:
        """The batcher's own thread."""
        with self._engine_may_work:
            while True:
                self._tokenizer_may_work.wait_for(self._is_tokenizer_needed)
                if not self._inbox:
                    return
                self._tokenize_round()

    def _is_tokenizer_needed(self) -> bool:
        if self._tokenizing or (self._inbox and self._idle_engines):
            return False
        return bool(self._inbox) or self._closing

    def _tokenize_round(self) -> None:
        """Tokenizes one round, without the lock; its slices join the queue."""
        shares = self._inbox.take_round()
        self._tokenizing = True
        self._engine_may_work.release()
        try:
            slices = self._slice_maker.make(shares)
        finally:
            self._engine_may_work.acquire()
            self._tokenizing = False
        self._queue.extend(slices)
        self._backlog.add(slices)
        if self._idle_engines:
            self._engine_may_work.notify()
        if self._closing:
            self._tokenizer_may_work.notify_all()
            self._engine_may_work.notify_all()

    def _pass_on(self) -> None:
        """An engine is about to be busy: what is left is for the others."""
        if self._queue and self._idle_engines:
            self._engine_may_work.notify()
        elif self._inbox and not self._tokenizing:
            self._wake_for_inbox()

    def _wake_for_inbox(self) -> None:
        if self._idle_engines:
            self._engine_may_work.notify()
        elif not self._tokenizing:
            self._tokenizer_may_work.notify()

    def _select(self) -> Selection[TicketT]:
        may_grow = not (self._hurrying or self._closing)
        return select(
            self._queue, self._clock(), self._limits, seconds_per_token=self._seconds_per_token, may_grow=may_grow
        )

    def _apply(self, selection: Selection[TicketT]) -> Batch[TicketT] | None:
        """Changes the queue as decided."""
        if not selection.taken and not selection.dropped:
            return None
        started_at = self._clock()
        gone = {id(pending) for pending in selection.dropped} | {id(pending) for pending, _ in selection.taken}
        left = [pending for pending in self._queue if id(pending) not in gone]
        slices = []
        for pending, chosen in selection.taken:
            pending.ticket.started = True
            part, rest = (pending, None) if chosen is None else pending.split(chosen)
            slices.append(part)
            if rest is not None:
                left.append(rest)
        self._replace_queue(left)
        return _form(slices, started_at, left_work=bool(left or self._inbox)) if slices else None

    def _replace_queue(self, queue: list[Pending[TicketT]]) -> None:
        self._queue = queue
        self._backlog.recount(queue)

    def _count_idle(self, change: int) -> None:
        """So many more engines wait for work from now on."""
        now = self._clock()
        self._idle_s += (now - self._idle_counted_at) * self._idle_engines
        self._idle_counted_at = now
        self._idle_engines += change


def halve(batch: Batch[TicketT]) -> tuple[Batch[TicketT], Batch[TicketT]]:
    """Two batches with half of the texts each. The batch has two texts at least."""
    middle = len(batch.tokens.lengths) // 2
    first: list[Pending[TicketT]] = []
    second: list[Pending[TicketT]] = []
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


def apart(batch: Batch[TicketT]) -> list[Batch[TicketT]]:
    """One batch for each slice."""
    return [_form([pending], batch.started_at) for pending in batch.slices]


def _form(slices: list[Pending[TicketT]], started_at: float, *, left_work: bool = False) -> Batch[TicketT]:
    if len(slices) == 1:
        return Batch(slices, TokenBatch(slices[0].token_ids, slices[0].lengths), started_at, left_work=left_work)
    tokens = TokenBatch(
        np.concatenate([pending.token_ids for pending in slices]),
        np.concatenate([pending.lengths for pending in slices]),
    )
    return Batch(slices, tokens, started_at, left_work=left_work)
