"""A real Prometheus server in a process of its own, which scrapes one target: what `.prometheus` holds."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlencode
from urllib.request import urlopen

import psutil

BINARIES = Path(__file__).parents[2] / ".prometheus" / "bin"
PATIENCE_S = 60.0
_POLL_S = 0.05
_CONFIG = """\
global: {{ scrape_interval: 500ms, scrape_timeout: 500ms }}
scrape_configs:
  - job_name: trivec
    static_configs: [ {{ targets: [ "127.0.0.1:{port}" ] }} ]
"""


class Series(TypedDict):
    """One series of an instant query's answer: the value is an instant and a number as text."""

    metric: dict[str, str]
    value: tuple[float, str]


@dataclass(frozen=True)
class PrometheusProcess:
    """A running Prometheus."""

    process: "subprocess.Popen[bytes]"
    url: str
    log_path: Path

    def query(self, promql: str) -> list[Series]:
        """The series that answer the query now."""
        answer: dict[str, list[Series]] = self._get("query", query=promql)
        return answer["result"]

    def types(self) -> dict[str, str]:
        """The types of the metrics scraped, by their names."""
        metadata: dict[str, list[dict[str, str]]] = self._get("metadata")
        return {name: found[0]["type"] for name, found in metadata.items()}

    def wait_for(self, promql: str, holds: Callable[[list[Series]], bool]) -> list[Series]:
        """Asks until the answer is as it should be: there is no event that tells of a scrape."""
        ends_at = time.monotonic() + PATIENCE_S
        while not holds(found := self.query(promql)):
            log = self.log_path.read_text(encoding="utf-8")
            assert time.monotonic() < ends_at, f"after {PATIENCE_S} s {promql} is {found}: {log}"
            time.sleep(_POLL_S)
        return found

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(url, timeout=PATIENCE_S) as response:  # noqa: S310 - http, as made above
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]


@contextmanager
def scraping(port: int, folder: Path) -> Iterator[PrometheusProcess]:
    """Prometheus on a free port, scraping `/metrics` at this port of this machine; yields once it has done so."""
    config, log_path = folder / "prometheus.yml", folder / "prometheus.log"
    config.write_text(_CONFIG.format(port=port), encoding="utf-8")
    command = [
        str(BINARIES / "prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        "--web.listen-address=127.0.0.1:0",
        "--log.level=warn",
    ]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "GOMAXPROCS": "1"})
    try:
        server = PrometheusProcess(process, f"http://127.0.0.1:{_listening_port(process, log_path)}", log_path)
        server.wait_for("up", lambda found: [series["value"][1] for series in found] == ["1"])
        yield server
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listening_port(process: "subprocess.Popen[bytes]", log_path: Path) -> int:
    """Prometheus tells nobody which port it was given."""
    ends_at = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_at:
        assert process.poll() is None, f"prometheus ended: {log_path.read_text(encoding='utf-8')}"
        for connection in psutil.Process(process.pid).net_connections("tcp4"):
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
        time.sleep(_POLL_S)
    raise AssertionError(f"prometheus did not listen: {log_path.read_text(encoding='utf-8')}")
