"""A real Prometheus scrapes a real server: queries written for Triton's names, and for ours, have answers."""

import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.observability import monitoring
from tests.observability.monitoring import BINARIES, Monitor, Series
from tests.serving_process import ServingProcess, serve

REQUESTS = 20
TEXTS = 3
LABELS = {"model": "m3-mini", "version": "1"}
CONFIG = """\
global: {{ scrape_interval: 500ms, scrape_timeout: 500ms }}
scrape_configs:
  - job_name: trivec
    static_configs: [ {{ targets: [ "127.0.0.1:{port}" ] }} ]
"""

TRITON_QUERIES = {
    "requests per second": "sum(rate(nv_inference_request_success[1m]))",
    "inferences per second, by model": "sum by (model) (rate(nv_inference_count[1m]))",
    "mean batch size": "rate(nv_inference_count[1m]) / rate(nv_inference_exec_count[1m])",
    "mean latency in ms": "rate(nv_inference_request_duration_us[1m]) / rate(nv_inference_request_success[1m]) / 1000",
    "mean compute time in ms": (
        "rate(nv_inference_compute_infer_duration_us[1m]) / rate(nv_inference_request_success[1m]) / 1000"
    ),
    "mean queue time": "rate(nv_inference_queue_duration_us[1m]) / rate(nv_inference_request_success[1m])",
    "queue time for an autoscaler": (
        "avg(delta(nv_inference_queue_duration_us[30s]) / (1 + delta(nv_inference_request_success[30s])))"
    ),
    "queue time over compute time": (
        "sum by (model) (rate(nv_inference_queue_duration_us[1m])) / "
        "sum by (model) (rate(nv_inference_compute_infer_duration_us[1m]))"
    ),
    "cache hits per second": "sum(rate(nv_cache_num_hits_per_model[1m]))",
    "cache hit ratio": (
        "sum(nv_cache_num_hits_per_model) / (sum(nv_cache_num_hits_per_model) + sum(nv_cache_num_misses_per_model))"
    ),
    "cache entries": "nv_cache_num_entries",
    "memory": "nv_cpu_memory_used_bytes / nv_cpu_memory_total_bytes",
}
"""What dashboards and autoscalers for Triton ask; each answer here is above zero."""

TRITON_IDLE_QUERIES = {
    "pending requests": "sum by (model, version) (nv_inference_pending_request_count)",
    "failures by reason": "sum by (reason) (rate(nv_inference_request_failure[1m]))",
    "share of failures": (
        "sum(rate(nv_inference_request_failure[1m])) / "
        "(sum(rate(nv_inference_request_success[1m])) + sum(rate(nv_inference_request_failure[1m])))"
    ),
    "CPU": "avg(nv_cpu_utilization)",
}
"""These may be zero."""

OWN_QUERIES = {
    "99th percentile of requests": (
        "histogram_quantile(0.99, sum by (le) (rate(trivec_request_duration_seconds_bucket[1m])))"
    ),
    "median of batches": (
        "histogram_quantile(0.5, sum by (le, model) (rate(trivec_compute_duration_seconds_bucket[1m])))"
    ),
    "median batch size": "histogram_quantile(0.5, rate(trivec_batch_rows_bucket[1m]))",
    "texts per second": "sum(rate(trivec_texts_total[1m]))",
}


@pytest.fixture(scope="module")
def server(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    """Serves m3-mini with a response cache."""
    folder = tmp_path_factory.mktemp("prometheus")
    model, mini = folder / "repository" / "m3-mini", mini_repository / "m3-mini"
    model.mkdir(parents=True)
    (model / "1").symlink_to(mini / "1")
    config = (mini / "config.pbtxt").read_text(encoding="utf-8")
    (model / "config.pbtxt").write_text(f"{config}response_cache {{ enable: true }}\n", encoding="utf-8")
    with serve(folder / "repository") as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(server: ServingProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitor]:
    """
    Has seen the server before its requests, after each has come once, and after each has come a second time: a rate
    needs two values.
    """
    config = tmp_path_factory.mktemp("prometheus") / "prometheus.yml"
    config.write_text(CONFIG.format(port=server.metrics_port), encoding="utf-8")
    with monitoring.prometheus(config) as prometheus:
        prometheus.wait_for_series("up", lambda found: values(found) == [1])
        for round_number in (1, 2):
            send_requests(server.target)
            prometheus.wait_for_series(f"nv_inference_request_success == {round_number * REQUESTS}", bool)
        yield prometheus


def send_requests(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        stub = EmbeddingServiceStub(channel)
        for number in range(REQUESTS):
            stub.Embed(pb.EmbedRequest(texts=[f"text {number} of {part}" for part in range(TEXTS)]))


def values(found: list[Series]) -> list[float]:
    return [value for _, value in found]


@pytest.mark.parametrize(
    "promql", [*TRITON_QUERIES.values(), *OWN_QUERIES.values()], ids=[*TRITON_QUERIES, *OWN_QUERIES]
)
def test_a_query_is_answered(prometheus: Monitor, promql: str) -> None:
    assert all(value > 0 for value in values(prometheus.wait_for_series(promql, bool)))


@pytest.mark.parametrize("promql", TRITON_IDLE_QUERIES.values(), ids=TRITON_IDLE_QUERIES)
def test_a_query_is_answered_when_there_is_nothing_to_tell(prometheus: Monitor, promql: str) -> None:
    assert all(value >= 0 for value in values(prometheus.wait_for_series(promql, bool)))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("nv_inference_request_success", 2 * REQUESTS),
        ("nv_inference_count", REQUESTS * TEXTS),
        ("nv_cache_num_misses_per_model", REQUESTS * TEXTS),
        ("nv_cache_num_hits_per_model", REQUESTS * TEXTS),
    ],
)
def test_a_counter_counts_what_was_sent(prometheus: Monitor, name: str, count: int) -> None:
    ((labels, _),) = prometheus.wait_for_series(name, lambda found: values(found) == [count])
    assert labels == {"__name__": name, **LABELS, "job": "trivec", "instance": labels["instance"]}


def test_prometheus_knows_the_types(prometheus: Monitor) -> None:
    types = prometheus.metric_types()
    assert types["nv_inference_count"] == "counter"
    assert types["nv_inference_request_failure"] == "counter"
    assert types["nv_inference_pending_request_count"] == "gauge"
    assert types["trivec_request_duration_seconds"] == "histogram"


def test_promtool_finds_nothing_wrong_with_our_own_metrics(server: ServingProcess) -> None:
    """Triton's names are Triton's: what promtool has against them is not asked."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=60) as response:
        text = response.read()
    done = subprocess.run([BINARIES / "promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    complaints = done.stderr.decode().splitlines()
    assert not [line for line in complaints if not line.startswith("nv_")], complaints
    assert re.search(r"^trivec_", text.decode(), re.MULTILINE)
