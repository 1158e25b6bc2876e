"""
Triton's series of a model version: the names, labels, types and units of its `/metrics`.

Nothing is counted here: a scrape reads what the versions' statistics have counted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trivec_server.metrics.exposition import Family, Sample
from trivec_server.metrics.statistics import StatisticsSnapshot, Total
from trivec_server.types import ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a version's values come from; for any thread."""

    key: ModelVersion
    counts: Callable[[], StatisticsSnapshot]
    waiting_requests: Callable[[], float]
    load_duration_s: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Reading:
    """A version's values, all of one instant."""

    labels: Mapping[str, str]
    counts: StatisticsSnapshot
    waiting_requests: float
    load_duration_s: float


_COUNTERS: tuple[tuple[str, str, Callable[[StatisticsSnapshot], int]], ...] = (
    ("nv_inference_request_success", "Requests that succeeded.", lambda counts: counts.success.count),
    ("nv_inference_count", "Rows (texts) inferred; not those from the cache.", lambda counts: counts.inference_count),
    ("nv_inference_exec_count", "Batches run.", lambda counts: counts.execution_count),
    (
        "nv_inference_request_duration_us",
        "Time that successful requests took in all, in microseconds.",
        lambda counts: _us(counts.success),
    ),
    (
        "nv_inference_queue_duration_us",
        "Time that successful requests waited, in microseconds.",
        lambda counts: _us(counts.queue),
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Time that successful requests' batches took to lay out, in microseconds.",
        lambda counts: _us(counts.compute.compute_input),
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Time that successful requests' batches took in the engine, in microseconds.",
        lambda counts: _us(counts.compute.compute_infer),
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Time that successful requests' batches took to hand out, in microseconds.",
        lambda counts: _us(counts.compute.compute_output),
    ),
    ("nv_cache_num_hits_per_model", "Hits of the response cache.", lambda counts: counts.cache_hit.count),
    (
        "nv_cache_hit_duration_per_model",
        "Time that hits of the response cache took, in microseconds.",
        lambda counts: _us(counts.cache_hit),
    ),
    ("nv_cache_num_misses_per_model", "Misses of the response cache.", lambda counts: counts.cache_miss.count),
    (
        "nv_cache_miss_duration_per_model",
        "Time that misses of the response cache took, in microseconds.",
        lambda counts: _us(counts.cache_miss),
    ),
)


def version_families(sources: Sequence[Source]) -> Iterator[Family]:
    """Triton's families of these versions."""
    readings = [
        _Reading(
            {"model": source.key.name, "version": str(source.key.version)},
            source.counts(),
            source.waiting_requests(),
            source.load_duration_s(),
        )
        for source in sources
    ]
    for name, text, value in _COUNTERS:
        yield Family(name, "counter", text, [Sample(each.labels, value(each.counts)) for each in readings])
    yield Family("nv_inference_request_failure", "counter", "Requests that failed.", list(_failures(readings)))
    yield Family(
        "nv_inference_pending_request_count",
        "gauge",
        "Requests that wait: nothing of them has been computed.",
        [Sample(each.labels, each.waiting_requests) for each in readings],
    )
    yield Family(
        "nv_model_load_duration_secs",
        "gauge",
        "The time the version took to load, in seconds.",
        [Sample(each.labels, each.load_duration_s) for each in readings],
    )


def _failures(readings: Sequence[_Reading]) -> Iterator[Sample]:
    for reading in readings:
        for reason, failed in reading.counts.failures.items():
            yield Sample({**reading.labels, "reason": reason.name}, failed.count)


def _us(total: Total) -> int:
    return total.ns // 1000
