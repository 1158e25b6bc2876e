"""
The batcher's decision: which waiting slices make the next batch. A pure function of the queue, the clock and the
limits; the loop around it is in `batcher.py`.

Who is served first: the lowest priority level; within a level the highest response ratio, (waited + service) /
service, which lets short requests pass a long one but grows for every request that waits, so that none starves
(Hansen, "Operating System Principles", 1973: highest response ratio next).

What is put beside it: slices of its own group only; on an engine that pads, texts of similar length, because a batch
costs rows times its longest row; on one that does not pad, whatever fits.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trivec_server.serving.ticket import Pending, TicketT

_SIMILAR_SHARE = 0.75
_SIMILAR_TOKENS = 16
_FREE_TOKENS = 64
_SHORTEST_TEXT = 2
_NOTHING: NDArray[np.int64] = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """
    What bounds a batch. `hidden_size` weighs the attention term: per token and layer an encoder does 24 H^2 of linear
    work and 4 H L of attention, so a row of L tokens costs L (1 + L / 6H). `preferred_rows`: a batch of so many rows
    waits no longer. `splits`: a request may run in several batches; otherwise one that is too large runs alone. Where
    memory runs out, `token_budget` is lowered, but not below `least_token_budget`.
    """

    token_budget: int
    max_rows: int
    preferred_rows: int
    max_delay_s: float
    pads: bool
    hidden_size: int
    splits: bool = True
    least_token_budget: int = 256

    def row_cost(self, longest: int) -> float:
        """The cost of one row in a batch whose longest row has this many tokens, in tokens."""
        return longest * (1 + longest / (6 * self.hidden_size))


@dataclass(frozen=True, slots=True)
class Selection(Generic[TicketT]):
    """
    The decision. `taken`: slices with the chosen indices of their texts (None: all). `dropped`: slices that nobody
    waits for. `wake_at`: nothing is taken yet; look again at this instant at the latest.
    """

    taken: Sequence[tuple[Pending[TicketT], NDArray[np.int64] | None]] = ()
    dropped: Sequence[Pending[TicketT]] = ()
    wake_at: float | None = None


def select(
    queue: Sequence[Pending[TicketT]], now: float, limits: BatchLimits, *, seconds_per_token: float, may_grow: bool
) -> Selection[TicketT]:
    """Decides on the next batch. `may_grow` False: no more work can arrive, so waiting for more is of no use."""
    dropped = [pending for pending in queue if _is_dead(pending, now)]
    alive = [pending for pending in queue if not _is_dead(pending, now)] if dropped else queue
    if not alive:
        return Selection(dropped=dropped)
    wake_at: float | None = None
    for group in _groups(alive, now, seconds_per_token):
        selection = _select_one(group, now, limits, seconds_per_token, may_grow)
        if selection.wake_at is None:
            return Selection(selection.taken, dropped)
        wake_at = selection.wake_at if wake_at is None else min(wake_at, selection.wake_at)
    return Selection(dropped=dropped, wake_at=wake_at)


def _groups(
    alive: Sequence[Pending[TicketT]], now: float, seconds_per_token: float
) -> Iterator[Sequence[Pending[TicketT]]]:
    """What may run together, the most urgent first: while it waits for company, another group may have its own."""
    if all(pending.group == alive[0].group for pending in alive):
        yield alive
        return
    first = min(alive, key=lambda pending: _urgency(pending, now, seconds_per_token)).group
    yield [pending for pending in alive if pending.group == first]
    others: dict[Hashable, list[Pending[TicketT]]] = {}
    for pending in sorted(alive, key=lambda pending: _urgency(pending, now, seconds_per_token)):
        if pending.group != first:
            others.setdefault(pending.group, []).append(pending)
    yield from others.values()


def _select_one(
    alive: Sequence[Pending[TicketT]], now: float, limits: BatchLimits, seconds_per_token: float, may_grow: bool
) -> Selection[TicketT]:
    """Decides on the next batch of one group."""
    taken, full = _take_all(alive, limits)
    if not taken:
        ordered = sorted(alive, key=lambda pending: _urgency(pending, now, seconds_per_token))
        taken, full = _take_similar(ordered, limits) if limits.pads else _take_in_order(ordered, limits)
    if not full and may_grow and limits.max_delay_s > 0:
        rows = sum(len(pending.rows if chosen is None else chosen) for pending, chosen in taken)
        wake_at = min(pending.enqueued_at for pending in alive) + limits.max_delay_s
        if rows < limits.preferred_rows and now < wake_at:
            return Selection(wake_at=wake_at)
    return Selection(taken)


def _is_dead(pending: Pending[TicketT], now: float) -> bool:
    deadline = pending.ticket.deadline
    return pending.ticket.abandoned or (deadline is not None and deadline <= now)


def _urgency(pending: Pending[TicketT], now: float, seconds_per_token: float) -> tuple[int, bool, float, float]:
    """A sort key, most urgent first. A delayed request waits for those of its level and above, as in Triton."""
    delayed = pending.delay_at is not None and pending.delay_at <= now
    service_s = max(pending.tokens * seconds_per_token, 1e-6)
    ratio = (now - pending.enqueued_at) / service_s
    return pending.ticket.level, delayed, -ratio, pending.enqueued_at


_Taken: TypeAlias = list[tuple[Pending[TicketT], NDArray[np.int64] | None]]


def _take_all(queue: Sequence[Pending[TicketT]], limits: BatchLimits) -> tuple[_Taken[TicketT], bool]:
    """The whole queue, if it fits into one batch and costs no more for it than in several; else nothing."""
    rows = sum(len(pending.rows) for pending in queue)
    if rows > limits.max_rows:
        return [], False
    if limits.pads:
        longest = max(int(pending.lengths.max()) for pending in queue)
        shortest = min(int(pending.lengths.min()) for pending in queue)
        if rows * limits.row_cost(longest) > limits.token_budget and rows > 1:
            return [], False
        if shortest < _shortest_similar(longest) and rows * longest > _FREE_TOKENS:
            return [], False
    elif sum(pending.tokens for pending in queue) > limits.token_budget and rows > 1:
        return [], False
    return [(pending, None) for pending in queue], rows == limits.max_rows


def _take_in_order(ordered: Sequence[Pending[TicketT]], limits: BatchLimits) -> tuple[_Taken[TicketT], bool]:
    """
    Rows in order of urgency until the budget is spent; always at least one. What does not fit into the rest is passed
    over for what does: it is among the first of the next batch.
    """
    taken: _Taken[TicketT] = []
    rows_left, tokens_left = limits.max_rows, limits.token_budget
    for pending in ordered:
        if len(pending.rows) <= rows_left and pending.tokens <= tokens_left:
            taken.append((pending, None))
            rows_left -= len(pending.rows)
            tokens_left -= pending.tokens
        elif not limits.splits:
            if not taken:
                return [(pending, None)], True
        else:
            chosen = _fitting(pending.lengths, rows_left, tokens_left)
            if not len(chosen) and not taken:
                chosen = np.zeros(1, np.int64)
            if len(chosen):
                taken.append((pending, chosen))
                rows_left -= len(chosen)
                tokens_left -= int(pending.lengths[chosen].sum())
        if rows_left <= 0 or tokens_left < (_SHORTEST_TEXT if limits.splits else 1):
            return taken, True
    return taken, any(chosen is not None for _, chosen in taken) or len(taken) < len(ordered)


def _fitting(lengths: NDArray[np.int64], rows_left: int, tokens_left: int) -> NDArray[np.int64]:
    """The indices, ascending, of texts that fit together: each in turn, unless it is too long for what is left."""
    chosen: list[NDArray[np.int64]] = []
    left = np.flatnonzero(lengths <= tokens_left)
    while rows_left > 0 and len(left):
        sums = np.cumsum(lengths[left])
        count = min(int(np.searchsorted(sums, tokens_left, side="right")), rows_left)
        chosen.append(left[:count])
        rows_left -= count
        tokens_left -= int(sums[count - 1])
        left = left[count:]
        left = left[lengths[left] <= tokens_left]
    return np.concatenate(chosen) if chosen else _NOTHING


def _take_similar(ordered: Sequence[Pending[TicketT]], limits: BatchLimits) -> tuple[_Taken[TicketT], bool]:
    """
    The longest text of the most urgent slice, and texts of similar length beside it: first of the same slice, then of
    the others in order of urgency. A batch of up to 64 tokens costs about what one row does, so it is filled up with
    shorter texts.
    """
    longest = int(ordered[0].lengths.max())
    max_rows = max(1, min(limits.max_rows, int(limits.token_budget // limits.row_cost(longest))))
    chosen: dict[int, NDArray[np.int64]] = {}
    rows = _choose(ordered, chosen, _shortest_similar(longest), longest, max_rows)
    if rows < min(max_rows, _FREE_TOKENS // longest):
        rows = _choose(ordered, chosen, 0, longest, min(max_rows, _FREE_TOKENS // longest))
    taken: _Taken[TicketT] = [
        (pending, None if len(chosen[number]) == len(pending.rows) else chosen[number])
        for number, pending in enumerate(ordered)
        if number in chosen
    ]
    return taken, rows >= max_rows


def _choose(
    ordered: Sequence[Pending[TicketT]],
    chosen: dict[int, NDArray[np.int64]],
    shortest: int,
    longest: int,
    max_rows: int,
) -> int:
    """Adds texts of a range of lengths to what is chosen of each slice, the longest first; returns all rows chosen."""
    rows = sum(map(len, chosen.values()))
    for number, pending in enumerate(ordered):
        if rows >= max_rows:
            break
        fits = (pending.lengths >= shortest) & (pending.lengths <= longest)
        before = chosen.get(number)
        if before is not None:
            fits[before] = False
        more = np.flatnonzero(fits)
        if not len(more):
            continue
        more = more[np.argsort(-pending.lengths[more], kind="stable")[: max_rows - rows]]
        chosen[number] = np.sort(more if before is None else np.concatenate((before, more)))
        rows += len(more)
    return rows


def _shortest_similar(longest: int) -> int:
    """The shortest length that may be padded to `longest`."""
    return min(int(longest * _SIMILAR_SHARE), longest - _SIMILAR_TOKENS)
