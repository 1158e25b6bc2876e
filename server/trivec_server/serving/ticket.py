"""A request under way inside the server, and the slices of it that wait for a batch."""

import asyncio
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import Vectors
from trivec_server.metrics.statistics import StageTimes
from trivec_server.serving.cache.row import CachedRow
from trivec_server.serving.request import EmbedResult, EmbedTask, SparseRow, Timings
from trivec_server.serving.trail import BatchNote, begin_trail
from trivec_server.types import Mode

_NO_STAGES = StageTimes()


class Ticket:
    """
    One admitted request, whatever it is made of.

    The event loop makes it and awaits `future`. `abandoned` is set when nobody awaits the result any more: every stage
    drops an abandoned ticket's work when it meets it. `rows` is what a batch counts: texts, or a tensor's rows;
    `cached_rows` of them need not be computed.
    Instants are of `time.monotonic`.
    """

    __slots__ = (
        "_lock",
        "_queue_s",
        "_remaining",
        "_stages",
        "abandoned",
        "admitted_at",
        "cached_rows",
        "deadline",
        "delay_s",
        "future",
        "level",
        "queued_at",
        "request_id",
        "rows",
        "size_bytes",
        "started",
        "trail",
    )

    def __init__(
        self,
        *,
        request_id: str,
        rows: int,
        size_bytes: int,
        deadline: float | None,
        level: int,
        future: asyncio.Future[None],
    ) -> None:
        self.request_id = request_id
        self.rows = rows
        self.size_bytes = size_bytes
        self.deadline = deadline
        self.level = level
        self.future = future
        self.abandoned = False
        self.started = False
        self.delay_s: float | None = None
        self.admitted_at = time.monotonic()
        self.queued_at = 0.0
        self.cached_rows = 0
        self._lock = threading.Lock()
        self._queue_s = 0.0
        self._stages = _NO_STAGES
        self._remaining = rows
        self.trail = begin_trail(rows, self.admitted_at)

    def enter_queue(self, now: float) -> None:
        """Notes that rows of this request wait for a batch from now on."""
        self.queued_at = now
        if self.trail is not None:
            self.trail.queued_at = now

    def record_batch(self, started_at: float, stages: StageTimes, note: BatchNote | None = None) -> None:
        """Notes when a batch with rows of this request began, and how long its stages took. The longest count."""
        with self._lock:
            self._queue_s = max(self._queue_s, started_at - self.queued_at)
            if stages.infer_ns >= self._stages.infer_ns:
                self._stages = stages
            if note is not None and self.trail is not None:
                self.trail.add_batch(note)

    def count_done(self, rows: int) -> bool:
        """So many more rows have their results; under the ticket's lock. True if they were the last ones."""
        self._remaining -= rows
        return self._remaining == 0

    @property
    def is_complete(self) -> bool:
        """Whether every row's result is in."""
        return self._remaining == 0

    @property
    def queue_s(self) -> float:
        """From the queue to the start of the last batch."""
        return max(0.0, self._queue_s)

    @property
    def stages(self) -> StageTimes:
        """The stages of the batch that took longest."""
        return self._stages


class EmbedTicket(Ticket):
    """
    Texts to be embedded. Whichever thread tokenizes fills `lengths`, `truncated` and their sums; the engines' threads
    fill in the results, under the ticket's own lock since its rows may run on several engines at once.
    """

    __slots__ = ("_dense", "_multi_vector", "_sparse", "lengths", "task", "tokens", "truncated", "truncated_count")

    def __init__(self, task: EmbedTask, level: int, future: asyncio.Future[None]) -> None:
        rows = task.text_count
        super().__init__(
            request_id=task.request_id,
            rows=rows,
            size_bytes=task.size_bytes,
            deadline=task.deadline,
            level=level,
            future=future,
        )
        self.task = task
        self.lengths: NDArray[np.int64] = np.zeros(rows, np.int64)
        self.truncated: NDArray[np.bool_] = np.zeros(rows, np.bool_)
        self.tokens = 0
        self.truncated_count = 0
        self._dense: Vectors | None = None
        self._sparse: list[SparseRow | None] | None = [None] * rows if Mode.SPARSE in task.modes else None
        self._multi_vector: list[Vectors | None] | None = [None] * rows if Mode.MULTI_VECTOR in task.modes else None

    def complete_rows(
        self,
        rows: NDArray[np.int64],
        dense: Vectors | None,
        sparse: Sequence[SparseRow] | None,
        multi_vector: Sequence[Vectors] | None,
    ) -> bool:
        """Takes in the results of some rows (positions in the request, [R]). True if they were the last ones."""
        with self._lock:
            if dense is not None:
                self._place_dense(rows, dense)
            if sparse is not None and self._sparse is not None:
                for row, weights in zip(rows.tolist(), sparse, strict=True):
                    self._sparse[row] = weights
            if multi_vector is not None and self._multi_vector is not None:
                for row, vectors in zip(rows.tolist(), multi_vector, strict=True):
                    self._multi_vector[row] = vectors
            return self.count_done(len(rows))

    def _place_dense(self, rows: NDArray[np.int64], dense: Vectors) -> None:
        if len(rows) == self.rows:
            # All rows in one batch, in order: the batch's own memory serves.
            self._dense = dense
            return
        if self._dense is None:
            self._dense = np.empty((self.rows, dense.shape[1]), dense.dtype)
        self._dense[rows] = dense

    def complete_cached(self, rows: NDArray[np.int64], cached: Sequence[CachedRow]) -> bool:
        """Takes in rows that need not be computed. True if they were the last ones."""
        self.cached_rows += len(rows)
        dense = [row.dense for row in cached if row.dense is not None]
        sparse = [row.sparse for row in cached if row.sparse is not None]
        multi_vector = [row.multi_vector for row in cached if row.multi_vector is not None]
        return self.complete_rows(rows, np.stack(dense) if dense else None, sparse or None, multi_vector or None)

    def result(self) -> EmbedResult:
        """The whole result. Only after `complete_rows` said that the last rows are in."""
        return EmbedResult(
            lengths=self.lengths,
            truncated=self.truncated,
            token_count=self.tokens,
            truncated_count=self.truncated_count,
            dense=self._dense,
            sparse=None if self._sparse is None else [row for row in self._sparse if row is not None],
            multi_vector=None
            if self._multi_vector is None
            else [vectors for vectors in self._multi_vector if vectors is not None],
            timings=Timings(
                tokenize_us=round((self.queued_at - self.admitted_at) * 1e6),
                queue_us=round(self.queue_s * 1e6),
                compute_us=self.stages.infer_ns // 1000,
            ),
        )


TicketT = TypeVar("TicketT", bound=Ticket)


@dataclass(frozen=True, slots=True)
class Share(Generic[TicketT]):
    """The part of a ticket that one round makes a slice of: rows `start` to `end`."""

    ticket: TicketT
    start: int
    end: int


@dataclass(slots=True, eq=False)
class Pending(Generic[TicketT]):
    """
    A slice of a request that waits for a batch: R texts, flat. `token_ids` int64 [N], `lengths` int64 [R] sums to N,
    `rows` int64 [R] are the texts' positions in the request. Where rows of tensors are queued, each counts as one
    token. Only slices of equal `group` run together. Instants are of `time.monotonic`; None: never.
    """

    ticket: TicketT
    token_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    rows: NDArray[np.int64]
    enqueued_at: float
    delay_at: float | None = None
    group: Hashable = None
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = len(self.token_ids)

    def sequences(self) -> list[bytes]:
        """Each text's token ids, as the bytes of int64."""
        ends = np.cumsum(self.lengths).tolist()
        return [
            self.token_ids[end - length : end].tobytes()
            for end, length in zip(ends, self.lengths.tolist(), strict=True)
        ]

    def split(self, chosen: NDArray[np.int64]) -> tuple["Pending[TicketT]", "Pending[TicketT] | None"]:
        """The slice of the chosen indices [K], ascending, and the slice of the others (None if all were chosen)."""
        if len(chosen) == len(self.lengths):
            return self, None
        left = np.ones(len(self.lengths), np.bool_)
        left[chosen] = False
        return self._subset(chosen), self._subset(np.flatnonzero(left))

    def _subset(self, indices: NDArray[np.int64]) -> "Pending[TicketT]":
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        pieces = [self.token_ids[starts[i] : ends[i]] for i in indices.tolist()]
        return Pending(
            self.ticket,
            np.concatenate(pieces),
            self.lengths[indices],
            self.rows[indices],
            self.enqueued_at,
            self.delay_at,
            self.group,
        )
