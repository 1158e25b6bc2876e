"""Prometheus, Alertmanager and the blackbox exporter as real processes on free ports: what `.prometheus` holds."""

import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import psutil
import yaml

from tests.ending import end

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BINARIES = ROOT / ".prometheus" / "bin"
PATIENCE_S = 60.0
_POLL_S = 0.05
AnswerT = TypeVar("AnswerT")

Series = tuple[Mapping[str, str], float]
"""One series of an instant query's answer: its labels, and its value."""


def tool(name: str, *arguments: str | Path, cwd: Path = ROOT) -> str:
    """Runs one of the programs to its end; what it printed. It must have succeeded."""
    command = [BINARIES / name, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _has_number(found: list[Series]) -> bool:
    return any(math.isfinite(value) for _, value in found)


@dataclass(frozen=True)
class Monitor:
    """A running program with an HTTP interface."""

    address: str
    log_path: Path

    def get(self, path: str, **parameters: str) -> str:
        """The text at a path; an error of the program is one of the test."""
        url = f"http://{self.address}/{path}?{urlencode(parameters)}"
        with urlopen(url, timeout=PATIENCE_S) as response:
            text: str = response.read().decode()
        return text

    def post(self, path: str, content: object) -> None:
        """Sends JSON."""
        request = Request(
            f"http://{self.address}/{path}", json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=PATIENCE_S) as response:  # noqa: S310 - http
            response.read()

    def query(self, promql: str) -> list[Series]:
        """Of Prometheus: the series that answer the query now, with their values."""
        answer = json.loads(self.get("api/v1/query", query=promql))
        result = answer["data"]["result"]
        assert answer["data"]["resultType"] == "vector", promql
        return [(series["metric"], float(series["value"][1])) for series in result]

    def metric_types(self) -> Mapping[str, str]:
        """Of Prometheus: the types of the metrics that it has scraped, by their names."""
        found: dict[str, list[dict[str, str]]] = json.loads(self.get("api/v1/metadata"))["data"]
        return {name: metadata[0]["type"] for name, metadata in found.items()}

    def wait_for_series(self, promql: str, holds: Callable[[list[Series]], bool] = _has_number) -> list[Series]:
        """Of Prometheus: the query's answer once it is as it should be: by default, once it has a number."""
        return self.wait_for(lambda monitor: monitor.query(promql), holds)

    def wait_for(self, ask: Callable[["Monitor"], AnswerT], holds: Callable[[AnswerT], bool] = bool) -> AnswerT:
        """Asks until the answer is as it should be: there is no event that tells of it."""
        ends_at = time.monotonic() + PATIENCE_S
        while not holds(found := ask(self)):
            assert time.monotonic() < ends_at, f"{found}: {self.log_path.read_text(encoding='utf-8')}"
            time.sleep(_POLL_S)
        return found


@contextmanager
def running(name: str, config: Path, *flags: str, ready: str = "-/ready") -> Iterator[Monitor]:
    """A program with a config on a free port; yields once it is ready."""
    log_path = config.with_suffix(".log")
    command = [str(BINARIES / name), f"--config.file={config}", "--web.listen-address=127.0.0.1:0", *flags]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "GOMAXPROCS": "1"})
    try:
        monitor = Monitor(f"127.0.0.1:{_listening_port(process, log_path)}", log_path)
        monitor.wait_for(lambda each: _answers(each, ready))
        yield monitor
    finally:
        end(process, PATIENCE_S)


@contextmanager
def prometheus(config: Path) -> Iterator[Monitor]:
    """Prometheus with a config that lies in a folder of its own."""
    with running("prometheus", config, f"--storage.tsdb.path={config.parent / 'tsdb'}", "--log.level=warn") as monitor:
        yield monitor


@contextmanager
def alertmanager(config: Path) -> Iterator[Monitor]:
    """Alertmanager, alone."""
    flags = (f"--storage.path={config.parent / 'alertmanager'}", "--cluster.listen-address=")
    with running("prometheus-alertmanager", config, *flags) as monitor:
        yield monitor


@contextmanager
def blackbox_exporter(config: Path) -> Iterator[Monitor]:
    """The blackbox exporter."""
    with running("prometheus-blackbox-exporter", config, ready="-/healthy") as monitor:
        yield monitor


def prometheus_config(folder: Path, targets: Mapping[str, list[str]], blackbox: str) -> Path:
    """
    deploy/prometheus/prometheus.yml with these targets for its jobs, an exporter at `blackbox`, and everything each
    second instead of each 15; its rules lie beside it.
    """
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": targets.get(job["job_name"], [])}]
        for relabel in job["relabel_configs"]:
            if "blackbox-exporter:9115" in relabel.get("replacement", ""):
                relabel["replacement"] = blackbox
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": targets.get("alertmanager", [])}]}]
    (folder / "rules").symlink_to(DEPLOY / "prometheus" / "rules")
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _answers(monitor: Monitor, path: str) -> bool:
    try:
        return bool(monitor.get(path))
    except OSError:
        return False


def _listening_port(process: "subprocess.Popen[bytes]", log_path: Path) -> int:
    """None of them tells which port it was given."""
    ends_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_at:
        assert process.poll() is None, log_path.read_text(encoding="utf-8")
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
        time.sleep(_POLL_S)
    raise AssertionError(f"it did not listen: {log_path.read_text(encoding='utf-8')}")
