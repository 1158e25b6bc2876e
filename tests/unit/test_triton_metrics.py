"""The metrics under Triton's names, as a real Triton 2.51 and its documentation have them, from our statistics."""

import pytest
from trivec_server.metrics import CacheUsage, Metrics
from trivec_server.metrics.statistics import FailReason, ModelStatistics, StageTimes
from trivec_server.types import ModelVersion

from tests.scraped import Scraped, read_scrape

KEY = ModelVersion("bge-m3", 2)
LABELS = {"model": "bge-m3", "version": "2"}
REASONS = {"REJECTED", "CANCELED", "BACKEND", "OTHER"}

VERSION_FAMILIES = {
    "nv_inference_request_success": "counter",
    "nv_inference_count": "counter",
    "nv_inference_exec_count": "counter",
    "nv_inference_request_duration_us": "counter",
    "nv_inference_queue_duration_us": "counter",
    "nv_inference_compute_input_duration_us": "counter",
    "nv_inference_compute_infer_duration_us": "counter",
    "nv_inference_compute_output_duration_us": "counter",
    "nv_inference_pending_request_count": "gauge",
    "nv_model_load_duration_secs": "gauge",
    "nv_cache_num_hits_per_model": "counter",
    "nv_cache_hit_duration_per_model": "counter",
    "nv_cache_num_misses_per_model": "counter",
    "nv_cache_miss_duration_per_model": "counter",
}
CACHE_FAMILIES = {
    "nv_cache_num_entries": 3,
    "nv_cache_util": 0.25,
    "nv_cache_num_lookups": 9,
    "nv_cache_num_hits": 4,
    "nv_cache_num_misses": 5,
    "nv_cache_num_evictions": 2,
    "nv_cache_lookup_duration": 7,
    "nv_cache_insertion_duration": 8,
}


def scrape(metrics: Metrics) -> Scraped:
    return read_scrape(metrics.exposition().decode())


def loaded(statistics: ModelStatistics, metrics: Metrics | None = None, key: ModelVersion = KEY) -> Metrics:
    """The metrics of a server that has loaded the version."""
    metrics = metrics or Metrics()
    metrics.watch_statistics(key, statistics.snapshot)
    return metrics


@pytest.mark.parametrize(("name", "kind"), VERSION_FAMILIES.items())
def test_a_version_has_every_series_at_zero_from_its_load_on(name: str, kind: str) -> None:
    scraped = scrape(loaded(ModelStatistics()))
    assert scraped.kinds[name] == kind
    assert scraped.labels(name) == [LABELS]
    assert scraped(name, **LABELS) == 0


def test_failures_have_all_four_reasons_from_the_load_on() -> None:
    scraped = scrape(loaded(ModelStatistics()))
    assert scraped.kinds["nv_inference_request_failure"] == "counter"
    labels = scraped.labels("nv_inference_request_failure")
    assert {each.pop("reason") for each in labels} == REASONS
    assert labels == [LABELS] * 4
    assert all(scraped("nv_inference_request_failure", reason=reason, **LABELS) == 0 for reason in REASONS)


def test_a_counter_is_written_without_a_suffix() -> None:
    statistics = ModelStatistics()
    statistics.request_succeeded(3, 1_000, 0, StageTimes())
    text = loaded(statistics, key=ModelVersion("m", 1)).exposition().decode()
    assert '# TYPE nv_inference_count counter\nnv_inference_count{model="m",version="1"} 3\n' in text
    assert '\nnv_inference_request_failure{model="m",reason="BACKEND",version="1"} 0\n' in text
    assert "nv_inference_count_total" not in text


def test_the_values_are_those_of_the_statistics_in_microseconds() -> None:
    statistics = ModelStatistics()
    for _ in range(2):
        statistics.request_succeeded(5, 9_000_999, 1_000_500, StageTimes(100_000, 2_000_000, 300_000))
    statistics.batch_executed(10, StageTimes(100_000, 2_000_000, 300_000))
    statistics.cache_looked_up(hit=True, ns=4_000)
    statistics.cache_looked_up(hit=False, ns=6_000)
    statistics.cache_looked_up(hit=False, ns=6_000)
    scraped = scrape(loaded(statistics))
    assert {name: scraped(name, **LABELS) for name in VERSION_FAMILIES} == {
        "nv_inference_request_success": 2,
        "nv_inference_count": 10,
        "nv_inference_exec_count": 1,
        "nv_inference_request_duration_us": 18_001,
        "nv_inference_queue_duration_us": 2_001,
        "nv_inference_compute_input_duration_us": 200,
        "nv_inference_compute_infer_duration_us": 4_000,
        "nv_inference_compute_output_duration_us": 600,
        "nv_inference_pending_request_count": 0,
        "nv_model_load_duration_secs": 0,
        "nv_cache_num_hits_per_model": 1,
        "nv_cache_hit_duration_per_model": 4,
        "nv_cache_num_misses_per_model": 2,
        "nv_cache_miss_duration_per_model": 12,
    }


@pytest.mark.parametrize("reason", FailReason)
def test_a_failure_is_counted_under_its_reason_alone(reason: FailReason) -> None:
    statistics = ModelStatistics()
    statistics.request_failed(reason, 5_000)
    scraped = scrape(loaded(statistics))
    counted = {each: scraped("nv_inference_request_failure", reason=each, **LABELS) for each in REASONS}
    assert counted == {each: float(each == reason.name) for each in REASONS}
    assert scraped("nv_inference_request_duration_us", **LABELS) == 0


def test_waiting_requests_and_load_time_are_those_of_our_own_series() -> None:
    metrics = loaded(ModelStatistics())
    metrics.model(KEY).waiting_requests.set_function(lambda: 7)
    metrics.model_load_duration_s.labels(*LABELS.values()).set(1.5)
    scraped = scrape(metrics)
    assert scraped("nv_inference_pending_request_count", **LABELS) == 7
    assert scraped("trivec_waiting_requests", **LABELS) == 7
    assert scraped("nv_model_load_duration_secs", **LABELS) == 1.5


def test_no_digit_of_a_large_counter_is_lost() -> None:
    statistics = ModelStatistics()
    statistics.request_succeeded(1, 123_456_789_012_345_678, 0, StageTimes())
    name = "nv_inference_request_duration_us"
    assert f'{name}{{model="bge-m3",version="2"}} 123456789012345\n'.encode() in loaded(statistics).exposition()


def test_a_models_name_may_hold_any_character() -> None:
    name = 'quo"te\\back\nline'
    scraped = scrape(loaded(ModelStatistics(), key=ModelVersion(name, 1)))
    assert scraped("nv_inference_count", model=name, version="1") == 0


def test_each_version_has_its_own_series() -> None:
    first, second = ModelStatistics(), ModelStatistics()
    first.request_succeeded(1, 0, 0, StageTimes())
    second.request_succeeded(4, 0, 0, StageTimes())
    metrics = loaded(second, loaded(first, key=ModelVersion("bge-m3", 1)))
    scraped = scrape(metrics)
    assert scraped("nv_inference_count", model="bge-m3", version="1") == 1
    assert scraped("nv_inference_count", model="bge-m3", version="2") == 4


def test_counters_go_on_where_they_were_after_a_reload() -> None:
    statistics = ModelStatistics()
    metrics = loaded(statistics)
    statistics.request_succeeded(2, 0, 0, StageTimes())
    loaded(statistics, metrics)
    statistics.request_succeeded(2, 0, 0, StageTimes())
    assert scrape(metrics)("nv_inference_count", **LABELS) == 4
    metrics.model_unloaded(KEY)
    loaded(statistics, metrics)
    assert scrape(metrics)("nv_inference_count", **LABELS) == 4


def test_an_unloaded_version_has_no_series_of_tritons() -> None:
    metrics = loaded(ModelStatistics())
    metrics.model_unloaded(KEY)
    scraped = scrape(metrics)
    assert not [name for name, labels in scraped.values if name.startswith("nv_") and labels]


def test_without_a_cache_its_series_are_absent() -> None:
    assert not [name for name in scrape(Metrics()).kinds if "_cache_" in name]


def test_a_caches_series_are_what_it_tells_of_itself() -> None:
    metrics = Metrics()
    metrics.watch_cache(
        lambda: CacheUsage(
            entries=3,
            size_bytes=100,
            capacity_bytes=400,
            hits=4,
            misses=5,
            evictions=2,
            failures=1,
            lookup_ns=7_000,
            insertion_ns=8_000,
        )
    )
    scraped = scrape(metrics)
    assert {name: scraped(name) for name in CACHE_FAMILIES} == CACHE_FAMILIES
    assert all(scraped.kinds[name] == "gauge" for name in CACHE_FAMILIES)
    assert scraped("trivec_cache_entries") == 3
    assert scraped("trivec_cache_bytes") == 100
    assert scraped("trivec_cache_capacity_bytes") == 400
    assert scraped("trivec_cache_hits_total") == 4
    assert scraped("trivec_cache_misses_total") == 5
    assert scraped("trivec_cache_evictions_total") == 2
