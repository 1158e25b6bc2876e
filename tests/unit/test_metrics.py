"""Trivec's own series as models come, go and are replaced."""

import re
from pathlib import Path

from trivec_server.metrics import CacheUsage, Metrics
from trivec_server.metrics.statistics import ModelStatistics
from trivec_server.types import ModelVersion

from tests.scraped import Scraped, read_scrape

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
KEY = ModelVersion("small", 1)
LABELS = {"model": "small", "version": "1"}
ENGINE_GAUGES = (
    "trivec_pending_requests",
    "trivec_waiting_requests",
    "trivec_queued_tokens",
    "trivec_running_engines",
    "trivec_batch_token_budget",
)


def scrape(metrics: Metrics) -> Scraped:
    return read_scrape(metrics.exposition().decode())


def test_every_series_is_documented() -> None:
    metrics = Metrics()
    metrics.watch_statistics(KEY, ModelStatistics().snapshot)
    metrics.watch_cache(
        lambda: CacheUsage(
            entries=0,
            size_bytes=0,
            capacity_bytes=0,
            hits=0,
            misses=0,
            evictions=0,
            failures=0,
            lookup_ns=0,
            insertion_ns=0,
        )
    )
    documented = set(re.findall(r"`((?:nv|trivec)_\w+)`", DOCUMENT.read_text(encoding="utf-8")))
    names = {name for name in scrape(metrics).kinds if name.startswith(("nv_", "trivec_")) and "_created" not in name}
    assert not names - documented


def test_the_engine_of_a_version_that_was_loaded_again_is_the_newest() -> None:
    metrics = Metrics()
    metrics.model_loaded(KEY, "onnxruntime", "cpu", "float32")
    metrics.model_loaded(KEY, "openvino", "cpu", "bfloat16")
    (labels,) = scrape(metrics).labels("trivec_model_info")
    assert labels == {**LABELS, "engine": "openvino", "device": "cpu", "precision": "bfloat16"}


def test_an_unloaded_version_keeps_its_counters_and_loses_what_only_engines_have() -> None:
    metrics = Metrics()
    metrics.model_loaded(KEY, "onnxruntime", "cpu", "float32")
    metrics.model_ready.labels(*LABELS.values()).set(1)
    model = metrics.model(KEY)
    model.texts.inc(5)
    model.pending_requests.set_function(lambda: 3)
    metrics.model_ready.labels(*LABELS.values()).set(0)
    metrics.model_unloaded(KEY)
    scraped = scrape(metrics)
    assert scraped("trivec_texts_total", **LABELS) == 5
    assert scraped("trivec_model_ready", **LABELS) == 0
    assert not scraped.labels("trivec_model_info")
    assert not [name for name in ENGINE_GAUGES if scraped.labels(name)]


def test_a_gauge_of_a_version_that_was_loaded_again_is_the_newest_pipelines() -> None:
    metrics = Metrics()
    metrics.model(KEY).pending_requests.set_function(lambda: 3)
    metrics.model(KEY).pending_requests.set_function(lambda: 5)
    assert scrape(metrics)("trivec_pending_requests", **LABELS) == 5


def test_of_a_version_that_is_gone_from_the_repository_nothing_is_left() -> None:
    metrics = Metrics()
    metrics.model_loaded(KEY, "onnxruntime", "cpu", "float32")
    metrics.model(KEY).compute_duration_s.observe(1)
    metrics.model(ModelVersion("small", 2)).texts.inc()
    metrics.model_forgotten(KEY)
    scraped = scrape(metrics)
    assert not [labels for _, labels in scraped.values if {*LABELS.items()} <= {*labels}]
    assert scraped("trivec_texts_total", model="small", version="2") == 1


def test_a_version_that_never_loaded_can_be_forgotten() -> None:
    metrics = Metrics()
    metrics.model_unloaded(KEY)
    metrics.model_forgotten(KEY)
    assert not [name for name, labels in scrape(metrics).values if ("model", "small") in labels]


def test_reloads_and_failed_polls_are_counted() -> None:
    metrics = Metrics()
    metrics.model_reloaded("small", succeeded=True)
    metrics.model_reloaded("small", succeeded=False)
    metrics.model_reloaded("small", succeeded=False)
    metrics.repository_poll_failed()
    scraped = scrape(metrics)
    assert scraped("trivec_model_reloads_total", model="small", result="success") == 1
    assert scraped("trivec_model_reloads_total", model="small", result="failure") == 2
    assert scraped("trivec_repository_poll_failures_total") == 1
