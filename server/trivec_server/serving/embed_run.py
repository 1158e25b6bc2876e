"""Batches of texts on an engine for embeddings."""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import (
    Engine,
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
from trivec_server.metrics.statistics import ModelStatistics
from trivec_server.serving.batch_run import BatchRunner, BatchTimes, Begun, Distributed
from trivec_server.serving.batcher import Batch, Batcher
from trivec_server.serving.cache.model_cache import ModelCache
from trivec_server.serving.cache.repeats import Repeats, find_repeats
from trivec_server.serving.cache.row import CachedRow
from trivec_server.serving.device import Device
from trivec_server.serving.encode import lexical_weights
from trivec_server.serving.request import SparseRow, VectorEncoding
from trivec_server.serving.ticket import EmbedTicket, Pending, Ticket
from trivec_server.types import Mode

_log = get_logger(__name__)

EmbedDevice: TypeAlias = Device[EmbedTicket, Engine]

_FEW = 16
"""A request's rows are few if its batch has more than so many times as many."""


@dataclass(frozen=True, slots=True)
class _AtOnce:
    """A batch on an engine that computes one at a time: it is computed when its result is asked for."""

    engine: Engine
    tokens: TokenBatch
    modes: Mode
    half: bool

    def result(self) -> EngineOutput:
        return self.engine.run(self.tokens, self.modes, half=self.half)


@dataclass(frozen=True, slots=True)
class _Repeated:
    """A batch of which only the distinct texts are computed."""

    running: RunningBatch
    repeats: Repeats

    def result(self) -> EngineOutput:
        return self.repeats.expand(self.running.result())


class EmbedRunner(BatchRunner[EmbedTicket]):
    """Runs batches of texts."""

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher[EmbedTicket],
        metrics: ModelMetrics,
        statistics: ModelStatistics,
        loop: asyncio.AbstractEventLoop,
        cache: ModelCache | None = None,
    ) -> None:
        super().__init__(batcher, metrics, statistics, loop)
        self._engine = engine
        self._cache = cache
        self.depth = 2 if isinstance(engine, OverlappingEngine) else 1

    def _start(self, batch: Batch[EmbedTicket]) -> Begun[EmbedTicket]:
        tokens = batch.tokens
        repeats = None if self._cache is None else find_repeats(batch)
        if repeats is not None:
            tokens = repeats.tokens
        begun_at = time.monotonic()
        modes, half = modes_of(batch), _wants_half(batch)
        running: RunningBatch
        if isinstance(self._engine, OverlappingEngine):
            running = self._engine.submit(tokens, modes, half=half)
        else:
            running = _AtOnce(self._engine, tokens, modes, half)
        return Begun(batch, running if repeats is None else _Repeated(running, repeats), begun_at)

    def _distribute(self, batch: Batch[EmbedTicket], output: EngineOutput, times: BatchTimes) -> Distributed:
        bad_rows = _non_finite_rows(batch.tokens, output) if output.non_finite_rows is None else output.non_finite_rows
        sparse = _sparse_rows(batch.tokens, output)
        finished: list[Ticket] = []
        failed: list[tuple[Ticket, TrivecError]] = []
        computed: list[tuple[Pending[EmbedTicket], _Parts]] = []
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
                self._record(ticket, batch, times)
                modes = ticket.task.modes
                parts = _Parts(
                    _own_rows(output.dense, start, end) if Mode.DENSE in modes else None,
                    sparse[start:end] if sparse is not None and Mode.SPARSE in modes else None,
                    list(output.multi_vector[start:end])
                    if output.multi_vector is not None and Mode.MULTI_VECTOR in modes
                    else None,
                )
                if ticket.complete_rows(pending.rows, *parts):
                    finished.append(ticket)
                if self._cache is not None:
                    computed.append((pending, parts))
            start = end
        if self._cache is not None:
            self._keep(computed, self._cache)
        return Distributed(finished, failed)

    def _keep(self, computed: "Sequence[tuple[Pending[EmbedTicket], _Parts]]", cache: ModelCache) -> None:
        """Puts results into the cache before they are given out: whoever has an answer finds it there."""
        try:
            cache.keep(_cached_rows(computed, cache))
        except Exception as error:  # noqa: BLE001 - for lack of memory; nothing is lost by it
            _log.error("the response cache failed: results are not kept", exc_info=error)

    def _observe(self, batch: Batch[EmbedTicket], output: EngineOutput, compute_s: float) -> None:
        super()._observe(batch, output, compute_s)
        rows, tokens = len(batch.tokens.lengths), len(batch.tokens.token_ids)
        self._metrics.texts.inc(rows)
        self._metrics.tokens.inc(tokens)
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.batch_padding_ratio.observe(1 - tokens / self._computed_tokens(batch))
        if output.recomputed_rows:
            self._metrics.recomputed_rows.inc(output.recomputed_rows)
            _log.warning("texts came out as NaN or infinity: computed again in float32", texts=output.recomputed_rows)

    def _computed_tokens(self, batch: Batch[EmbedTicket]) -> int:
        lengths = batch.tokens.lengths
        return len(lengths) * int(lengths.max()) if self._engine.info.pads else len(batch.tokens.token_ids)

    def _too_large(self, pending: Pending[EmbedTicket]) -> TrivecError:
        field = pending.ticket.task.field(int(pending.rows[0]))
        what = f"{field}: {pending.tokens} tokens do not fit into the device's memory"
        return ComputeError(f"{what}; send a shorter text or lower `max_tokens`")


def run_alone(device: EmbedDevice, batch: TokenBatch, modes: Mode) -> EngineOutput:
    """One batch outside the queue on a device that does not serve yet. Blocks."""
    return device.run_once(lambda engine: engine.run(batch, modes))


def modes_of(batch: Batch[EmbedTicket]) -> Mode:
    """The union of what the requests of a batch ask for."""
    modes = batch.slices[0].ticket.task.modes
    for pending in batch.slices:
        if pending.ticket.task.modes is not modes:
            modes |= pending.ticket.task.modes
    return modes


def _wants_half(batch: Batch[EmbedTicket]) -> bool:
    """Whether every request of a batch wants float16."""
    return all(pending.ticket.task.encoding is VectorEncoding.FLOAT16 for pending in batch.slices)


class _Parts(NamedTuple):
    """The results of a slice: `dense` [R, D], and R entries of each other part."""

    dense: Vectors | None
    sparse: list[SparseRow] | None
    multi_vector: list[Vectors] | None


def _cached_rows(
    computed: Sequence[tuple[Pending[EmbedTicket], _Parts]], cache: ModelCache
) -> Iterator[tuple[bytes, CachedRow]]:
    """The results of some slices for the cache, as views."""
    for pending, (dense, sparse, multi_vector) in computed:
        for row, ids in enumerate(pending.sequences()):
            yield (
                cache.key(pending.ticket.task, ids),
                CachedRow(
                    None if dense is None else dense[row],
                    None if sparse is None else sparse[row],
                    None if multi_vector is None else multi_vector[row],
                ),
            )


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
