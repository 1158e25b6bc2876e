"""Requests between admission and the batcher: handed over together, because each hop between threads has its price."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_ItemT = TypeVar("_ItemT")

_GATHER_S = 0.002
_MAX_GAP_S = 4 * _GATHER_S
_GAP_SMOOTHING = 0.05
_COMPANY_S = 0.25


class Outbox(Generic[_ItemT]):
    """
    Gathers requests and hands them over. For the event loop.

    While requests arrive by the hundreds a second, it waits 2 ms for the next ones, because a hop between threads costs
    more than all else that is done for a short text; but not once as many have come as there were under way together
    of late: their callers wait for answers before they send more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, submit: Callable[[Sequence[_ItemT]], None]) -> None:
        self._loop = loop
        self._submit = submit
        self._items: list[_ItemT] = []
        self._last_arrival = 0.0
        self._mean_gap_s = _MAX_GAP_S
        self._company = _Company()
        self._flushing: asyncio.Handle | None = None

    def put(self, item: _ItemT, now: float, under_way: int) -> None:
        """Takes a request that arrived `now`, of `under_way` that have no answer yet, it included."""
        self._items.append(item)
        gap_s = min(now - self._last_arrival, _MAX_GAP_S)
        self._last_arrival = now
        self._mean_gap_s += _GAP_SMOOTHING * (gap_s - self._mean_gap_s)
        if len(self._items) >= self._company.count(under_way, now):
            self.flush()
        elif self._flushing is None:
            if self._mean_gap_s < _GATHER_S:
                self._flushing = self._loop.call_later(_GATHER_S, self.flush)
            else:
                self._flushing = self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hands over what there is."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._items:
            self._submit(self._items)
            self._items = []


class _Company:
    """The most requests that were under way together, in the last quarter of a second or two."""

    def __init__(self) -> None:
        self._since = 0.0
        self._most = 0
        self._most_before = 0

    def count(self, requests: int, now: float) -> int:
        """Takes in how many are under way now."""
        if now - self._since > _COMPANY_S:
            self._since, self._most_before, self._most = now, self._most, 0
        self._most = max(self._most, requests)
        return max(self._most, self._most_before)
