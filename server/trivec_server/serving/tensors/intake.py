"""Requests of tensors between admission and the queue: each row counts as one token."""

import time
from collections import deque
from collections.abc import Hashable, Sequence

import numpy as np

from trivec_server.serving.tensors.request import TensorTask
from trivec_server.serving.tensors.ticket import TensorTicket
from trivec_server.serving.ticket import Pending, Share
from trivec_server.types import TensorSpec

_SMALL = 16
"""Padding up to so many elements in a dimension costs next to nothing."""


class TensorInbox:
    """Requests that are not in the queue yet. Not thread-safe: the batcher's lock guards it."""

    def __init__(self) -> None:
        self._waiting: deque[TensorTicket] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, tickets: Sequence[TensorTicket]) -> None:
        """Puts requests at the end of the line."""
        self._waiting.extend(tickets)

    def take_round(self) -> list[Share[TensorTicket]]:
        """All that wait, each as a whole."""
        shares = [Share(ticket, 0, ticket.rows) for ticket in self._waiting if not ticket.abandoned]
        self._waiting.clear()
        return shares


class RowSliceMaker:
    """Makes one slice of each request, and says which of them may run together."""

    def __init__(self, inputs: Sequence[TensorSpec], *, joins_requests: bool) -> None:
        """`joins_requests` False: each request is a batch of its own."""
        self._ragged = frozenset(spec.name for spec in inputs if spec.allow_ragged)
        self._joins_requests = joins_requests

    def make(self, shares: Sequence[Share[TensorTicket]]) -> list[Pending[TensorTicket]]:
        """The slices of one round."""
        now = time.monotonic()
        slices = []
        for share in shares:
            ticket = share.ticket
            ticket.enter_queue(now)
            rows = np.arange(ticket.rows)
            delay_at = None if ticket.delay_s is None else now + ticket.delay_s
            ones = np.ones(ticket.rows, np.int64)
            slices.append(Pending(ticket, rows, ones, rows, now, delay_at, self._group(ticket.task)))
        return slices

    def _group(self, task: TensorTask) -> Hashable:
        """
        Requests of equal shapes run together, and those that differ only where an input may be ragged and are of
        similar size there: padding one to the other doubles it at most, in each dimension.
        """
        if not self._joins_requests:
            return object()
        return tuple(
            (name, tuple(map(_magnitude, array.shape[1:])) if name in self._ragged else array.shape[1:])
            for name, array in sorted(task.inputs.items())
        )


def _magnitude(size: int) -> int:
    """Equal for sizes between two powers of two; all small sizes are alike."""
    return max(size, _SMALL).bit_length()
