"""The series of the response cache: ours, and those that Triton's cache of its own has."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trivec_server.metrics.exposition import Family, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUsage:
    """
    What the cache of this process holds, and what was asked of it since the server started. `lookup_ns` and
    `insertion_ns` are the time that all lookups and insertions took. `failures` are of a cache in another process:
    calls that it did not answer, rows that were not written, damaged rows.
    """

    entries: int
    size_bytes: int
    capacity_bytes: int
    hits: int
    misses: int
    evictions: int
    failures: int
    lookup_ns: int
    insertion_ns: int


class CacheCollector(Collector):
    """`trivec_cache_*`; nothing before a cache is bound."""

    def __init__(self) -> None:
        self._read: Callable[[], CacheUsage] | None = None

    def bind(self, read: Callable[[], CacheUsage]) -> None:
        """From now on, a scrape calls `read`, on any thread."""
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Ours, for prometheus_client."""
        if self._read is None:
            return
        usage = self._read()
        yield GaugeMetricFamily("trivec_cache_entries", "Embeddings in the response cache.", usage.entries)
        yield GaugeMetricFamily("trivec_cache_bytes", "Memory that the response cache takes.", usage.size_bytes)
        yield GaugeMetricFamily("trivec_cache_capacity_bytes", "The most it may take.", usage.capacity_bytes)
        yield CounterMetricFamily("trivec_cache_hits", "Embeddings found in the response cache.", usage.hits)
        yield CounterMetricFamily("trivec_cache_misses", "Embeddings not found in it.", usage.misses)
        yield CounterMetricFamily("trivec_cache_evictions", "Embeddings put out of it for room.", usage.evictions)
        yield CounterMetricFamily(
            "trivec_cache_failures",
            "Calls that the cache's server did not answer, rows that were not written, damaged rows.",
            usage.failures,
        )

    def triton_families(self) -> Iterator[Family]:
        """Triton's `nv_cache_*` of the whole cache; gauges there, though most of them only grow."""
        if self._read is None:
            return
        usage = self._read()
        yield _gauge("nv_cache_num_entries", "Entries in the response cache.", usage.entries)
        used = usage.size_bytes / usage.capacity_bytes if usage.capacity_bytes else 0.0
        yield _gauge("nv_cache_util", "The share of the response cache's memory in use, 0 to 1.", used)
        yield _gauge("nv_cache_num_lookups", "Lookups in the response cache.", usage.hits + usage.misses)
        yield _gauge("nv_cache_num_hits", "Hits of the response cache.", usage.hits)
        yield _gauge("nv_cache_num_misses", "Misses of the response cache.", usage.misses)
        yield _gauge("nv_cache_num_evictions", "Entries put out of the response cache for room.", usage.evictions)
        yield _gauge("nv_cache_lookup_duration", "Time that lookups took, in microseconds.", usage.lookup_ns // 1000)
        yield _gauge(
            "nv_cache_insertion_duration", "Time that insertions took, in microseconds.", usage.insertion_ns // 1000
        )


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(name, "gauge", text, [Sample({}, value)])
