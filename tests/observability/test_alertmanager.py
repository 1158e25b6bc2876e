"""A real Alertmanager sends alerts where the example says, and keeps quiet about what another one explains."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.observability.monitoring import DEPLOY, Monitor, alertmanager, tool
from tests.observability.test_rules import ALERTS

CONFIG = DEPLOY / "alertmanager" / "alertmanager.yml"
INHIBITED = {
    ("TrivecEngineDown", "trivec-1"): "TrivecNodeDown",
    ("TrivecNotServing", "trivec-1"): "TrivecNodeDown",
    ("TrivecNodeDown", "trivec-1"): None,
    ("TrivecEngineDown", "trivec-2"): None,
    ("TrivecNotServing", "trivec-3"): "TrivecNoModelReady",
    ("TrivecNoModelReady", "trivec-3"): None,
    ("TrivecQueueGrowing", "trivec-4"): "TrivecOverloaded",
    ("TrivecOverloaded", "trivec-4"): None,
    ("TrivecCertificateEnding", "trivec-5"): "TrivecCertificateEndsSoon",
    ("TrivecCertificateEndsSoon", "trivec-5"): None,
    ("TrivecLatencyHigh", ""): None,
}
"""Alerts that are all firing, by node, and the one that explains each."""


def test_amtool_finds_nothing_wrong() -> None:
    assert "SUCCESS" in tool("amtool", "check-config", CONFIG)


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "page"), ("warning", "ticket"), ("info", "notes")])
def test_an_alert_goes_to_whom_its_severity_says(severity: str, receiver: str) -> None:
    labels = (f"severity={severity}", "alertname=TrivecNodeDown", "instance=trivec-1")
    assert tool("amtool", "config", "routes", "test", f"--config.file={CONFIG}", *labels).strip() == receiver


def test_an_alert_of_unknown_severity_is_not_lost() -> None:
    routed = tool("amtool", "config", "routes", "test", f"--config.file={CONFIG}", "alertname=Other")
    assert routed.strip() == "ticket"


@pytest.fixture(scope="module")
def firing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], set[str]]]:
    """Each alert with the names of those that inhibit it, in a real Alertmanager."""
    config = tmp_path_factory.mktemp("alertmanager") / "alertmanager.yml"
    config.write_bytes(CONFIG.read_bytes())
    with alertmanager(config) as monitor:
        monitor.post("api/v2/alerts", [_alert(name, instance) for name, instance in INHIBITED])
        yield monitor.wait_for(_inhibitions, lambda found: len(found) == len(INHIBITED))


def _alert(name: str, instance: str) -> dict[str, dict[str, str]]:
    return {
        "labels": {
            "alertname": name,
            "instance": instance,
            "model": "bge-m3",
            "certificate": "server",
            "severity": ALERTS[name]["labels"]["severity"],
        }
    }


def _inhibitions(monitor: Monitor) -> dict[tuple[str, str], set[str]]:
    found = json.loads(monitor.get("api/v2/alerts"))
    names = {alert["fingerprint"]: alert["labels"]["alertname"] for alert in found}
    return {
        (alert["labels"]["alertname"], alert["labels"].get("instance", "")): {
            names[fingerprint] for fingerprint in alert["status"]["inhibitedBy"]
        }
        for alert in found
        if alert["status"]["state"] != "unprocessed"
    }


@pytest.mark.parametrize(("alert", "explained_by"), INHIBITED.items(), ids=str)
def test_an_alert_that_another_one_explains_is_not_sent(
    firing: dict[tuple[str, str], set[str]], alert: tuple[str, str], explained_by: str | None
) -> None:
    assert firing[alert] == ({explained_by} if explained_by else set())


def test_every_alert_that_is_named_here_exists() -> None:
    named = set(re.findall(r"Trivec[A-Z]\w+", CONFIG.read_text(encoding="utf-8")))
    assert named <= set(ALERTS)
