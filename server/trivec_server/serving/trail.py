"""
When the stages of a request took place, for whoever traces its call.

The call that is traced says so by a context variable, which reaches every request that is made on its behalf; no
request of another call pays for more than a look at it.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

_MAX_BATCHES = 64


class BatchNote(NamedTuple):
    """
    A batch with rows of the request: taken from the queue, begun on the engine, computed (instants of
    `time.monotonic`), and its size.
    """

    taken_at: float
    begun_at: float
    computed_at: float
    rows: int
    tokens: int


@dataclass(slots=True)
class Trail:
    """
    One request's way. Instants are of `time.monotonic`; `queued_at` 0: it has not been queued. `batches` are the first
    64 that held rows of it, in the order of their ends; `batch_count` counts all. Engines' threads write, any reads.
    """

    rows: int
    admitted_at: float
    queued_at: float = 0.0
    batch_count: int = 0
    batches: list[BatchNote] = field(default_factory=list)

    def add_batch(self, note: BatchNote) -> None:
        """Notes a batch. Under the ticket's lock."""
        self.batch_count += 1
        if len(self.batches) < _MAX_BATCHES:
            self.batches.append(note)


_trails: ContextVar[list[Trail] | None] = ContextVar("trails", default=None)


def collect_trails() -> list[Trail]:
    """A list that the trails of all requests go into which are made in this context, or in tasks begun in it."""
    trails: list[Trail] = []
    _trails.set(trails)
    return trails


def begin_trail(rows: int, admitted_at: float) -> Trail | None:
    """A new request's trail, if its call is traced."""
    trails = _trails.get()
    if trails is None:
        return None
    trail = Trail(rows, admitted_at)
    trails.append(trail)
    return trail
