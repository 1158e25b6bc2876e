"""The example for the OpenTelemetry Collector hangs together: there is no package of the collector to run it with."""

from typing import Any

import pytest
import yaml

from tests.observability.monitoring import DEPLOY

CONFIG: dict[str, Any] = yaml.safe_load((DEPLOY / "otel" / "collector.yaml").read_text(encoding="utf-8"))
PIPELINES: dict[str, dict[str, list[str]]] = CONFIG["service"]["pipelines"]


@pytest.mark.parametrize("kind", ["receivers", "processors", "exporters"])
def test_pipelines_use_all_that_is_set_up_and_nothing_else(kind: str) -> None:
    used = {name for pipeline in PIPELINES.values() for name in pipeline[kind]}
    assert used == set(CONFIG[kind])


def test_extensions_are_used() -> None:
    assert set(CONFIG["service"]["extensions"]) == set(CONFIG["extensions"])


def test_memory_is_limited_first_and_spans_are_sent_in_batches() -> None:
    for pipeline in PIPELINES.values():
        assert pipeline["processors"][0] == "memory_limiter"
        assert pipeline["processors"][-1] == "batch"


def test_it_scrapes_what_prometheus_would() -> None:
    (scraped,) = CONFIG["receivers"]["prometheus"]["config"]["scrape_configs"]
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert scraped["static_configs"] == config["scrape_configs"][0]["static_configs"]
