"""The rules for Prometheus: each alert fires and does not, is explained, and reads series that a server has."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.conftest import SecuredServer
from tests.observability.monitoring import DEPLOY, ROOT, Monitor, tool
from tests.observability.promql import metric_names
from tests.observability.scrape import scrape
from tests.observability.test_dashboards import NEEDS_A_GPU, QUERIES

PROMETHEUS = DEPLOY / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TEST_FILES = sorted((PROMETHEUS / "tests").glob("*.yml"))
FROM_ELSEWHERE = {"up", "probe_success", "ALERTS"}
"""Of Prometheus itself and of the blackbox exporter."""


def rules(kind: str) -> list[Mapping[str, Any]]:
    """All rules with that key: `alert` or `record`."""
    groups = [group for path in RULE_FILES for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


ALERTS = {rule["alert"]: rule for rule in rules("alert")}
RECORDED = {rule["record"] for rule in rules("record")}


def test_promtool_finds_nothing_wrong() -> None:
    tool("promtool", "check", "rules", *RULE_FILES)
    tool("promtool", "check", "config", PROMETHEUS / "prometheus.yml")


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    printed = tool("promtool", "test", "rules", *TEST_FILES)
    assert printed.count("SUCCESS") == len(TEST_FILES)


def test_every_alert_is_tested_both_ways() -> None:
    fires: set[str] = set()
    is_quiet: set[str] = set()
    for path in TEST_FILES:
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for expected in test["alert_rule_test"]:
                (fires if expected["exp_alerts"] else is_quiet).add(expected["alertname"])
    assert fires == is_quiet == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["description"]
    page, _, heading = alert["annotations"]["runbook_url"].partition("#")
    assert (ROOT / Path(*page.split("/")[-2:])).exists()
    assert heading == name.lower()


def test_every_alert_has_its_heading_and_no_heading_is_of_none() -> None:
    document = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (Trivec\w+)$", document, re.MULTILINE) == list(ALERTS)


def test_rules_and_dashboards_read_only_what_a_server_has(secured_server: SecuredServer) -> None:
    """Series of GPUs excepted: docs/metrics.md has their names."""
    scraped = scrape(secured_server.serving.metrics_port)
    exposed = {name for name, _ in scraped.values} | set(scraped.kinds) | FROM_ELSEWHERE | RECORDED
    exposed |= {f"{name}{end}" for name in scraped.kinds for end in ("_total", "_bucket", "_sum", "_count")}
    exprs = [rule["expr"] for kind in ("alert", "record") for rule in rules(kind)] + [query.expr for query in QUERIES]
    read = set().union(*map(metric_names, exprs))
    documented = re.findall(r"`(nv_gpu_\w+)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"))
    assert {name for name in read if name.startswith(NEEDS_A_GPU)} <= set(documented)
    assert not {name for name in read - exposed if not name.startswith(NEEDS_A_GPU)}


def test_names_are_found_in_promql() -> None:
    promql = 'sum by (instance) (rate(trivec_x_total{model="nv_y"}[5m])) / job_model:trivec_z:rate5m > on () up'
    assert metric_names(promql) == {"trivec_x_total", "job_model:trivec_z:rate5m", "up"}


def test_a_real_prometheus_takes_the_rules(prometheus_of_load: Monitor) -> None:
    """Recorded series have values, and no rule has failed."""
    for name in sorted(RECORDED):
        prometheus_of_load.wait_for_series(name)
    rules_health = re.findall(r'"health":"(\w+)"', prometheus_of_load.get("api/v1/rules"))
    assert set(rules_health) == {"ok"}


def test_a_server_at_work_sets_off_no_alert_that_fires_at_once(prometheus_of_load: Monitor) -> None:
    prometheus_of_load.wait_for_series("job_model:trivec_requests:rate5m")
    firing = {labels["alertname"] for labels, _ in prometheus_of_load.query('ALERTS{alertstate="firing"}')}
    assert not firing
