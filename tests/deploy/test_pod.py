"""The server with the arguments of a rendered pod, and the probes of that pod asked as the kubelet asks them."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.manifests import CHART, Manifest, pod_of, rendered, server_of
from tests.serving_process import ServingProcess, serve

VALUES = CHART / "ci" / "demo-values.yaml"
REPLACED = ("serve", "--model-repository", "--grpc-port", "--metrics-port", "--drain-pause-s")


@pytest.fixture(scope="module")
def pod(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Manifest, ServingProcess]]:
    """The server's container, and a process with its arguments but for ports, directory and the pause of the drain."""
    container = server_of(rendered(VALUES))
    flags = [each for each in container["args"] if each.partition("=")[0] not in REPLACED]
    with serve(mini_repository, *flags, log_path=tmp_path_factory.mktemp("pod") / "log") as process:
        yield container, process


def answer(pod: tuple[Manifest, ServingProcess], probe: str) -> bool:
    """What the kubelet would take from a probe."""
    container, process = pod
    if "grpc" in container[probe]:
        target = f"127.0.0.1:{process.target.rpartition(':')[2]}"
        with grpc.insecure_channel(target) as channel:
            service = container[probe]["grpc"].get("service", "")
            asked = health_pb2.HealthCheckRequest(service=service)
            found = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=container[probe]["timeoutSeconds"])
            return bool(found.status == health_pb2.HealthCheckResponse.SERVING)
    url = f"http://127.0.0.1:{process.metrics_port}{container[probe]['httpGet']['path']}"
    try:
        with urllib.request.urlopen(url, timeout=container[probe]["timeoutSeconds"]) as response:
            return bool(200 <= response.status < 400)
    except urllib.error.HTTPError:
        return False


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_pod_that_serves_answers_its_probes(pod: tuple[Manifest, ServingProcess], probe: str) -> None:
    assert answer(pod, probe)


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
