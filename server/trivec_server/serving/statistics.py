"""
Counts and durations of one model version, as Triton's ModelStatistics and `nv_inference_*` metrics define them.

A duration is given per request: each request in a batch is charged with the whole time that its batch took, as Triton
does, so that `ns / count` is what a request went through. Durations are in nanoseconds.
"""

import enum
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class FailReason(enum.Enum):
    """Why a request failed: the `reason` label of nv_inference_request_failure."""

    REJECTED = enum.auto()
    CANCELED = enum.auto()
    BACKEND = enum.auto()
    OTHER = enum.auto()


class StageTimes(NamedTuple):
    """How long the stages of one batch took."""

    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclass(frozen=True, slots=True)
class Total:
    """How often something took place, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def plus(self, ns: int) -> "Total":
        """One more time."""
        return Total(self.count + 1, self.ns + ns)


@dataclass(frozen=True, slots=True)
class ComputeTotals:
    """The stages of a batch: laying its inputs out, the engine, handing its outputs out. Their counts are equal."""

    compute_input: Total = Total()
    compute_infer: Total = Total()
    compute_output: Total = Total()

    def plus(self, stages: StageTimes) -> "ComputeTotals":
        """One more time."""
        return ComputeTotals(
            self.compute_input.plus(stages.input_ns),
            self.compute_infer.plus(stages.infer_ns),
            self.compute_output.plus(stages.output_ns),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsSnapshot:
    """
    Everything counted so far. `inference_count` counts the computed rows of requests that succeeded, `execution_count`
    batches, `batches` them by their rows. `last_inference_ms` is in milliseconds since 1970, 0: never. `failures` holds
    every reason.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Total = Total()
    failures: Mapping[FailReason, Total] = field(default_factory=lambda: {reason: Total() for reason in FailReason})
    queue: Total = Total()
    compute: ComputeTotals = ComputeTotals()
    cache_hit: Total = Total()
    cache_miss: Total = Total()
    batches: Mapping[int, ComputeTotals] = field(default_factory=dict)


class ModelStatistics:
    """Counts for one version for as long as the server runs, whatever is loaded under its number. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_inference_ms = 0
        self._inference_count = 0
        self._execution_count = 0
        self._success = Total()
        self._failures = {reason: Total() for reason in FailReason}
        self._queue = Total()
        self._compute = ComputeTotals()
        self._cache_hit = Total()
        self._cache_miss = Total()
        self._batches: dict[int, ComputeTotals] = {}

    def request_succeeded(self, rows: int, total_ns: int, queue_ns: int, stages: StageTimes | None) -> None:
        """
        A request has its result: `total_ns` after it was admitted, of which `queue_ns` waiting. `rows` were computed;
        `stages` None: none was, all came from the response cache.
        """
        with self._lock:
            self._last_inference_ms = time.time_ns() // 1_000_000
            self._inference_count += rows
            self._success = self._success.plus(total_ns)
            self._queue = self._queue.plus(queue_ns)
            if stages is not None:
                self._compute = self._compute.plus(stages)

    def request_failed(self, reason: FailReason, total_ns: int) -> None:
        """A request ended without a result."""
        with self._lock:
            self._failures[reason] = self._failures[reason].plus(total_ns)

    def batch_executed(self, rows: int, stages: StageTimes) -> None:
        """The engine has computed a batch."""
        with self._lock:
            self._execution_count += 1
            self._batches[rows] = self._batches.get(rows, ComputeTotals()).plus(stages)

    def cache_looked_up(self, *, hit: bool, ns: int) -> None:
        """A row was looked for in the response cache."""
        with self._lock:
            if hit:
                self._cache_hit = self._cache_hit.plus(ns)
            else:
                self._cache_miss = self._cache_miss.plus(ns)

    def snapshot(self) -> StatisticsSnapshot:
        """What has been counted so far, all of one instant."""
        with self._lock:
            return StatisticsSnapshot(
                last_inference_ms=self._last_inference_ms,
                inference_count=self._inference_count,
                execution_count=self._execution_count,
                success=self._success,
                failures=dict(self._failures),
                queue=self._queue,
                compute=self._compute,
                cache_hit=self._cache_hit,
                cache_miss=self._cache_miss,
                batches=dict(self._batches),
            )
