"""A request under way inside the server, and the slices of it that wait for a batch."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import Vectors
from trivec_server.serving.request import EmbedResult, EmbedTask, SparseRow, Timings
from trivec_server.types import Mode


class Ticket:
    """
    One admitted request.

    The event loop makes it and awaits `future`. Whichever thread tokenizes fills `lengths`, `truncated` and their sums;
    the engines' threads fill in the results, under the ticket's own lock since its rows may run on several engines at
    once.
    `abandoned` is set when nobody awaits the result any more: every stage drops an abandoned ticket's work when it
    meets it.
    """

    __slots__ = (
        "_compute_s",
        "_dense",
        "_lock",
        "_multi_vector",
        "_queue_s",
        "_remaining",
        "_sparse",
        "abandoned",
        "admitted_at",
        "delay_s",
        "future",
        "lengths",
        "level",
        "started",
        "task",
        "tokenized_at",
        "tokens",
        "truncated",
        "truncated_count",
    )

    def __init__(self, task: EmbedTask, level: int, future: asyncio.Future[None]) -> None:
        self.task = task
        self.level = level
        self.future = future
        self.abandoned = False
        self.started = False
        self.delay_s: float | None = None
        self.lengths: NDArray[np.int64] = np.zeros(task.text_count, np.int64)
        self.truncated: NDArray[np.bool_] = np.zeros(task.text_count, np.bool_)
        self.tokens = 0
        self.truncated_count = 0
        self.tokenized_at = 0.0
        self._lock = threading.Lock()
        self.admitted_at = time.monotonic()
        self._queue_s = 0.0
        self._compute_s = 0.0
        self._remaining = task.text_count
        self._dense: Vectors | None = None
        self._sparse: list[SparseRow | None] | None = [None] * task.text_count if Mode.SPARSE in task.modes else None
        self._multi_vector: list[Vectors | None] | None = (
            [None] * task.text_count if Mode.MULTI_VECTOR in task.modes else None
        )

    def complete_rows(
        self,
        rows: NDArray[np.int64],
        dense: Vectors | None,
        sparse: list[SparseRow] | None,
        multi_vector: list[Vectors] | None,
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
            self._remaining -= len(rows)
            return self._remaining == 0

    def _place_dense(self, rows: NDArray[np.int64], dense: Vectors) -> None:
        if len(rows) == self.task.text_count:
            # All rows in one batch, in order: the batch's own memory serves.
            self._dense = dense
            return
        if self._dense is None:
            self._dense = np.empty((self.task.text_count, dense.shape[1]), dense.dtype)
        self._dense[rows] = dense

    def record_batch(self, started_at: float, compute_s: float) -> None:
        """Notes when a batch with rows of this request began, and how long it took."""
        with self._lock:
            self._queue_s = max(self._queue_s, started_at - self.tokenized_at)
            self._compute_s = max(self._compute_s, compute_s)

    @property
    def is_complete(self) -> bool:
        """Whether every row's result is in."""
        return self._remaining == 0

    @property
    def tokenize_s(self) -> float:
        """From admission to the last token."""
        return self.tokenized_at - self.admitted_at

    @property
    def queue_s(self) -> float:
        """From the last token to the start of the last batch."""
        return max(0.0, self._queue_s)

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
                tokenize_us=round(self.tokenize_s * 1e6),
                queue_us=round(self.queue_s * 1e6),
                compute_us=round(self._compute_s * 1e6),
            ),
        )


@dataclass(slots=True, eq=False)
class Pending:
    """
    A slice of a request that waits for a batch: R texts, flat. `token_ids` int64 [N], `lengths` int64 [R] sums to N,
    `rows` int64 [R] are the texts' positions in the request. Instants are of `time.monotonic`; None: never.
    """

    ticket: Ticket
    token_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    rows: NDArray[np.int64]
    enqueued_at: float
    delay_at: float | None = None
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = len(self.token_ids)

    def split(self, chosen: NDArray[np.int64]) -> tuple["Pending", "Pending | None"]:
        """The slice of the chosen indices [K], ascending, and the slice of the others (None if all were chosen)."""
        if len(chosen) == len(self.lengths):
            return self, None
        left = np.ones(len(self.lengths), np.bool_)
        left[chosen] = False
        return self._subset(chosen), self._subset(np.flatnonzero(left))

    def _subset(self, indices: NDArray[np.int64]) -> "Pending":
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
        )
