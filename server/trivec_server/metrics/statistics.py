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


@dataclass(frozen=True, slots=True)
class ComputeTotals:
    """The stages of a batch: laying its inputs out, the engine, handing its outputs out. Their counts are equal."""

    compute_input: Total = Total()
    compute_infer: Total = Total()
    compute_output: Total = Total()


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


class _Sum:
    """A count and a duration that grow; under the lock of their owner."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def total(self) -> Total:
        return Total(self.count, self.ns)


class _ComputeSums:
    """The stages of batches, summed up; under the lock of their owner."""

    __slots__ = ("count", "infer_ns", "input_ns", "output_ns")

    def __init__(self) -> None:
        self.count = 0
        self.input_ns = 0
        self.infer_ns = 0
        self.output_ns = 0

    def add(self, stages: StageTimes) -> None:
        self.count += 1
        self.input_ns += stages.input_ns
        self.infer_ns += stages.infer_ns
        self.output_ns += stages.output_ns

    def totals(self) -> ComputeTotals:
        count = self.count
        return ComputeTotals(Total(count, self.input_ns), Total(count, self.infer_ns), Total(count, self.output_ns))


class ModelStatistics:
    """
    Counts for one version for as long as the server runs, whatever is loaded under its number. Thread-safe.

    Plain numbers are added up and turned into values when someone looks: every request passes here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_inference_s = 0.0
        self._inference_count = 0
        self._execution_count = 0
        self._success = _Sum()
        self._failures = {reason: _Sum() for reason in FailReason}
        self._queue = _Sum()
        self._compute = _ComputeSums()
        self._cache_hit = _Sum()
        self._cache_miss = _Sum()
        self._batches: dict[int, _ComputeSums] = {}

    def request_succeeded(self, rows: int, total_ns: int, queue_ns: int, stages: StageTimes | None) -> None:
        """
        A request has its result: `total_ns` after it was admitted, of which `queue_ns` waiting. `rows` were computed;
        `stages` None: none was, all came from the response cache.
        """
        with self._lock:
            self._last_inference_s = time.time()
            self._inference_count += rows
            self._success.add(total_ns)
            self._queue.add(queue_ns)
            if stages is not None:
                self._compute.add(stages)

    def request_failed(self, reason: FailReason, total_ns: int) -> None:
        """A request ended without a result."""
        with self._lock:
            self._failures[reason].add(total_ns)

    def batch_executed(self, rows: int, stages: StageTimes) -> None:
        """The engine has computed a batch."""
        with self._lock:
            self._execution_count += 1
            batches = self._batches.get(rows)
            if batches is None:
                batches = self._batches[rows] = _ComputeSums()
            batches.add(stages)

    def cache_looked_up(self, *, hit: bool, ns: int) -> None:
        """A row was looked for in the response cache."""
        with self._lock:
            (self._cache_hit if hit else self._cache_miss).add(ns)

    def snapshot(self) -> StatisticsSnapshot:
        """What has been counted so far, all of one instant."""
        with self._lock:
            return StatisticsSnapshot(
                last_inference_ms=int(self._last_inference_s * 1000),
                inference_count=self._inference_count,
                execution_count=self._execution_count,
                success=self._success.total(),
                failures={reason: failures.total() for reason, failures in self._failures.items()},
                queue=self._queue.total(),
                compute=self._compute.totals(),
                cache_hit=self._cache_hit.total(),
                cache_miss=self._cache_miss.total(),
                batches={rows: batches.totals() for rows, batches in self._batches.items()},
            )
