"""The server with the arguments of a rendered pod, and the probes of that pod asked as the kubelet asks them."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.manifests import CHART, Manifest, pod_of, rendered, rendered_with, server_of
from tests.serving_process import ServingProcess, serve

VALUES = CHART / "ci" / "demo-values.yaml"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
PATIENCE_S = 30.0
REPLACED = ("serve", "--model-repository", "--grpc-port", "--metrics-port", "--drain-pause-s")


@pytest.fixture(scope="module")
def pod(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    """A process with the arguments of the server's container, but for ports, directory and the pause of the drain."""
    with serve(mini_repository, *flags(), log_path=tmp_path_factory.mktemp("pod") / "log") as process:
        yield process


def flags() -> list[str]:
    return [each for each in server_of(rendered(VALUES))["args"] if each.partition("=")[0] not in REPLACED]


def probes(name: str) -> Manifest:
    """The container with probes of demo-values.yaml (which name a model), or of the defaults, or over HTTP."""
    if name == "demo":
        return server_of(rendered(VALUES))
    return server_of(rendered_with(probes={"protocol": name}))


def answer(process: ServingProcess, probe: Manifest) -> bool:
    """What the kubelet would take from a probe."""
    timeout_s = probe["timeoutSeconds"]
    if "grpc" in probe:
        target = f"127.0.0.1:{process.target.rpartition(':')[2]}"
        with grpc.insecure_channel(target) as channel:
            asked = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
            try:
                found = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=timeout_s)
            except grpc.RpcError:
                return False
            return bool(found.status == health_pb2.HealthCheckResponse.SERVING)
    url = f"http://127.0.0.1:{process.metrics_port}{probe['httpGet']['path']}"
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return bool(200 <= response.status < 400)
    except urllib.error.HTTPError:
        return False


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", ["demo", "grpc", "http"])
def test_a_pod_that_serves_answers_its_probes(pod: ServingProcess, name: str, probe: str) -> None:
    container = probes(name)
    assert ("httpGet" in container[probe]) is (name == "http")
    assert answer(pod, container[probe])


def test_a_pod_that_drains_is_not_ready_and_is_let_live(mini_repository: Path, tmp_path: Path) -> None:
    # The second signal, at the end of the block, ends the pause.
    with serve(mini_repository, *flags(), f"--drain-pause-s={PATIENCE_S}", log_path=tmp_path / "log") as process:
        process.process.send_signal(signal.SIGTERM)
        for container in map(probes, ("grpc", "http", "demo")):
            give_up_at = time.monotonic() + PATIENCE_S
            while answer(process, container["readinessProbe"]) and time.monotonic() < give_up_at:
                pass
            assert not answer(process, container["readinessProbe"])
            assert answer(process, container["livenessProbe"])


def test_a_name_that_health_does_not_know_is_a_failed_probe(pod: ServingProcess) -> None:
    container = server_of(rendered_with(probes={"readinessService": "absent"}))
    assert not answer(pod, container["readinessProbe"])


def test_the_pull_fills_an_empty_volume_once_and_finds_it_full_then(tmp_path: Path) -> None:
    [container] = pod_of(rendered(VALUES))["initContainers"]
    command = [each.replace("/models", str(tmp_path)) for each in (*container["command"], *container["args"])]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = [
        subprocess.run(
            command, env={**os.environ, "PATH": path}, capture_output=True, encoding="utf-8", check=True, timeout=120
        )
        for _ in range(2)
    ]
    version = tmp_path / "m3-mini" / "1"
    assert f"{version} is ready" in said[0].stderr
    assert said[1].stdout == f"{version} is there already\n"
    # What the server's container mounts, so it must be there.
    assert (version / "manifest.json").exists()
    assert (tmp_path / "m3-mini" / "config.pbtxt").exists()
