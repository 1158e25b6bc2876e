"""
The Prometheus series of Trivec, all declared here, and what a scrape gets.

One `Metrics` belongs to one server; `Metrics.model` gives the series of one model version with their labels bound, so
that the hot path looks no label up. Durations are in seconds.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from trivec_server.metrics.connections import ConnectionSeries
from trivec_server.metrics.exposition import render
from trivec_server.metrics.hardware import GpuReadings, HostReadings
from trivec_server.metrics.memory import memory_families
from trivec_server.metrics.response_cache import CacheCollector, CacheUsage
from trivec_server.metrics.security import SecurityMetrics
from trivec_server.metrics.statistics import StatisticsSnapshot
from trivec_server.metrics.triton import Source, version_families
from trivec_server.types import ModelVersion

_DURATION_BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKEN_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
_RATIO_BUCKETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
_MODEL_LABELS = ("model", "version")
_ENGINE_LABELS = ("engine", "device", "precision")
_RELOAD_RESULTS = ("success", "failure")


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """The series of one model version."""

    tokenize_duration_s: Histogram
    queue_duration_s: Histogram
    compute_duration_s: Histogram
    batch_rows: Histogram
    batch_tokens: Histogram
    batch_padding_ratio: Histogram
    texts: Counter
    tokens: Counter
    truncated_texts: Counter
    non_finite_rows: Counter
    recomputed_rows: Counter
    engine_restarts: Counter
    running_engines: Gauge
    token_budget: Gauge
    batch_splits: Counter
    batch_failures: Counter
    dropped_requests: Counter
    rejected_requests: Counter
    pending_requests: Gauge
    waiting_requests: Gauge
    queued_tokens: Gauge


class Metrics:
    """All series of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._cache = CacheCollector()
        self.registry.register(self._cache)
        self.security = SecurityMetrics(self.registry)
        self.connections = ConnectionSeries(self.registry)
        self._host = HostReadings()
        self._gpus: GpuReadings | None = None
        self._sources: dict[ModelVersion, Source] = {}
        self._engine_labels: dict[ModelVersion, tuple[str, ...]] = {}
        self._of_versions: list[Counter | Gauge | Histogram] = []
        self._scraping = threading.Lock()
        self._requests = self._counter(
            "trivec_requests", "RPCs (messages, on a stream) finished.", ("method", "model", "code")
        )
        self._request_series: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._request_duration_s = self._histogram(
            "trivec_request_duration_seconds", "From the request's arrival to its answer.", _DURATION_BUCKETS_S,
            ("method", "model"),
        )  # fmt: skip
        self.model_ready = self._gauge("trivec_model_ready", "1 if the version serves, else 0.", _MODEL_LABELS)
        self.version_unfinished = self._gauge(
            "trivec_version_unfinished", "1 while the version is being written or loaded, else 0.", _MODEL_LABELS
        )
        self.model_load_duration_s = self._gauge(
            "trivec_model_load_duration_seconds", "The time the version took to load and check.", _MODEL_LABELS
        )
        self._tokenize = self._duration("tokenize", "Tokenizing what had arrived, for one or more requests.")
        self._queue = self._duration("queue", "From a request's tokens to its last batch's start.")
        self._compute = self._duration("compute", "One batch in the engine.")
        self._batch_rows = self._histogram("trivec_batch_rows", "Texts in a batch.", _ROW_BUCKETS)
        self._batch_tokens = self._histogram("trivec_batch_tokens", "Tokens in a batch, no padding.", _TOKEN_BUCKETS)
        self._padding = self._histogram(
            "trivec_batch_padding_ratio", "Padding tokens of a batch over all its tokens.", _RATIO_BUCKETS
        )
        self._texts = self._counter("trivec_texts", "Texts embedded.")
        self._tokens = self._counter("trivec_tokens", "Tokens embedded.")
        self._truncated = self._counter("trivec_truncated_texts", "Texts that lost tokens to truncation.")
        self._non_finite = self._counter("trivec_non_finite_rows", "Texts refused: the engine gave NaN or infinity.")
        self._recomputed = self._counter(
            "trivec_recomputed_rows", "Texts that came out as NaN or infinity and were computed again in float32."
        )
        self._restarts = self._counter("trivec_engine_restarts", "Engines built anew after they had died.")
        self._running_engines = self._gauge("trivec_running_engines", "Engine instances at work.", _MODEL_LABELS)
        self._token_budget = self._gauge(
            "trivec_batch_token_budget", "The most tokens in one batch; falls when memory runs out.", _MODEL_LABELS
        )
        self._model_info = self._gauge(
            "trivec_model_info", "1, for the engine that runs the version.", (*_MODEL_LABELS, *_ENGINE_LABELS)
        )
        self._splits = self._counter("trivec_batch_splits", "Batches split for lack of memory.")
        self._failures = self._counter("trivec_batch_failures", "Batches that failed in the engine.")
        self._dropped = self._counter("trivec_dropped_requests", "Cancelled or expired before they were computed.")
        self._rejected = self._counter("trivec_rejected_requests", "Refused under load, at once.")
        self._pending_requests = self._gauge("trivec_pending_requests", "Requests under way.", _MODEL_LABELS)
        self._waiting_requests = self._gauge(
            "trivec_waiting_requests", "Requests of which nothing has been computed.", _MODEL_LABELS
        )
        self._queued_tokens = self._gauge("trivec_queued_tokens", "Tokens waiting for a batch.", _MODEL_LABELS)
        self._reloads = self._counter(
            "trivec_model_reloads", "Loads of models that were served already.", ("model", "result")
        )
        self._trace_spans = self._counter(
            "trivec_trace_spans", "Spans sent to the OTLP receiver, not taken by it, or dropped for room.", ("result",)
        )
        self._poll_failures = self._counter(
            "trivec_repository_poll_failures", "Looks at the model repository that failed.", ()
        )
        self._tasks = self._gauge("trivec_event_loop_tasks", "Tasks of the server's event loop that are not done.", ())

    def exposition(self) -> bytes:
        """What a scrape gets, in Prometheus' text format: first Trivec's own series, then Triton's. For any thread."""
        with self._scraping:
            triton = [*version_families(list(self._sources.values())), *self._cache.triton_families()]
            machine = [
                *self._host.families(),
                *memory_families(),
                *(self._gpus.families() if self._gpus is not None else ()),
            ]
            return generate_latest(self.registry) + render([*triton, *machine])

    def request_finished(self, method: str, model: str, code: str, duration_s: float) -> None:
        """Counts a finished request."""
        key = (method, model, code)
        series = self._request_series.get(key)
        if series is None:
            series = self._requests.labels(*key), self._request_duration_s.labels(method, model)
            self._request_series[key] = series
        series[0].inc()
        series[1].observe(duration_s)

    def model_loaded(self, key: ModelVersion, engine: str, device: str, precision: str) -> None:
        """Says which engine runs a version from now on."""
        self._drop_engine(key)
        self._engine_labels[key] = labels = (key.name, str(key.version), engine, device, precision)
        self._model_info.labels(*labels).set(1)

    def watch_statistics(self, key: ModelVersion, counts: Callable[[], StatisticsSnapshot]) -> None:
        """Shows a version's statistics as Triton does, from now on; `counts` is called on any thread."""
        labels = (key.name, str(key.version))
        for result in _RELOAD_RESULTS:
            # From zero: the increase of a counter that begins with its first event is not seen.
            self._reloads.labels(key.name, result)
        self._sources[key] = Source(
            key=key,
            counts=counts,
            waiting_requests=partial(_value, self._waiting_requests.labels(*labels)),
            load_duration_s=partial(_value, self.model_load_duration_s.labels(*labels)),
        )

    def model_unloaded(self, key: ModelVersion) -> None:
        """
        Drops the series that only a version with engines has, and Triton's. Whatever counts goes on where it was if
        the version is loaded again. Not for a version that another one of the same number has replaced.
        """
        self._drop_engine(key)
        self._sources.pop(key, None)
        for gauge in (
            self._pending_requests,
            self._waiting_requests,
            self._queued_tokens,
            self._running_engines,
            self._token_budget,
        ):
            _drop(gauge, key)

    def model_forgotten(self, key: ModelVersion) -> None:
        """Drops every series of a version that the repository does not hold any more."""
        self.model_unloaded(key)
        for family in self._of_versions:
            _drop(family, key)

    def model_reloaded(self, model: str, *, succeeded: bool) -> None:
        """Counts a load of a model that was served already."""
        self._reloads.labels(model, _RELOAD_RESULTS[not succeeded]).inc()

    def repository_poll_failed(self) -> None:
        """Counts a look at the repository that failed as a whole."""
        self._poll_failures.inc()

    def trace_spans(self, result: str) -> Counter:
        """The counter of spans that were `exported`, `failed` or `dropped`."""
        return self._trace_spans.labels(result)

    def watch_cache(self, usage: Callable[[], CacheUsage]) -> None:
        """Shows the response cache from now on; `usage` is called on any thread."""
        self._cache.bind(usage)

    def watch_gpus(self, uuids: Callable[[], Sequence[str]], warn: Callable[[str], None]) -> None:
        """
        Shows the GPUs from the next scrape on.

        Args:
            uuids: Gives the UUIDs of the GPUs that this process may use; called once.
            warn: Told, on the thread that scrapes, why a GPU cannot be shown.
        """
        self._gpus = GpuReadings(uuids, warn)

    def watch_tasks(self, count: Callable[[], int]) -> None:
        """Shows how many tasks the event loop has from the next scrape on; `count` is called on any thread."""
        self._tasks.set_function(count)

    def model(self, key: ModelVersion) -> ModelMetrics:
        """The series of one model version; the same ones for equal keys."""
        labels = (key.name, str(key.version))
        return ModelMetrics(
            tokenize_duration_s=self._tokenize.labels(*labels),
            queue_duration_s=self._queue.labels(*labels),
            compute_duration_s=self._compute.labels(*labels),
            batch_rows=self._batch_rows.labels(*labels),
            batch_tokens=self._batch_tokens.labels(*labels),
            batch_padding_ratio=self._padding.labels(*labels),
            texts=self._texts.labels(*labels),
            tokens=self._tokens.labels(*labels),
            truncated_texts=self._truncated.labels(*labels),
            non_finite_rows=self._non_finite.labels(*labels),
            recomputed_rows=self._recomputed.labels(*labels),
            engine_restarts=self._restarts.labels(*labels),
            running_engines=self._running_engines.labels(*labels),
            token_budget=self._token_budget.labels(*labels),
            batch_splits=self._splits.labels(*labels),
            batch_failures=self._failures.labels(*labels),
            dropped_requests=self._dropped.labels(*labels),
            rejected_requests=self._rejected.labels(*labels),
            pending_requests=self._pending_requests.labels(*labels),
            waiting_requests=self._waiting_requests.labels(*labels),
            queued_tokens=self._queued_tokens.labels(*labels),
        )

    def _drop_engine(self, key: ModelVersion) -> None:
        labels = self._engine_labels.pop(key, None)
        if labels is not None:
            self._model_info.remove(*labels)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = _MODEL_LABELS) -> Counter:
        counter = Counter(name, text, labels, registry=self.registry)
        if labels == _MODEL_LABELS:
            self._of_versions.append(counter)
        return counter

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        gauge = Gauge(name, text, labels, registry=self.registry)
        if labels == _MODEL_LABELS:
            self._of_versions.append(gauge)
        return gauge

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = _MODEL_LABELS
    ) -> Histogram:
        histogram = Histogram(name, text, labels, buckets=buckets, registry=self.registry)
        if labels == _MODEL_LABELS:
            self._of_versions.append(histogram)
        return histogram

    def _duration(self, stage: str, text: str) -> Histogram:
        return self._histogram(f"trivec_{stage}_duration_seconds", text, _DURATION_BUCKETS_S)


def _value(gauge: Gauge) -> float:
    return next(iter(gauge.collect())).samples[0].value


def _drop(family: Counter | Gauge | Histogram, key: ModelVersion) -> None:
    # The version may not have that series.
    with contextlib.suppress(KeyError):
        family.remove(key.name, str(key.version))
