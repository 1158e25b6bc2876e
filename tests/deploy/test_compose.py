"""deploy/compose, as Docker Compose itself reads it."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dockerfile import ROOT, pairs
from tests.deploy.manifests import parse, variables

FILE = ROOT / "deploy" / "compose" / "compose.yaml"
COMPOSE = Path(sys.executable).with_name("docker-compose")
NODES = ("trivec-1", "trivec-2", "trivec-3")
OWN = (*NODES, "pull")


@cache
def compose() -> dict[str, Any]:
    """The file with all profiles, merged, with its defaults filled in."""
    done = subprocess.run(
        [COMPOSE, "--file", FILE, "--profile", "*", "config", "--format", "json"],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )
    assert not done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


NAMES = (*OWN, "envoy", "prometheus", "alertmanager", "blackbox-exporter", "grafana")


def test_these_are_the_services() -> None:
    assert set(services()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_service_has_no_privileges_and_writes_to_volumes_and_memory_only(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service


@pytest.mark.parametrize("name", NAMES)
def test_a_service_s_log_is_rotated(name: str) -> None:
    assert set(services()[name]["logging"]["options"]) == {"max-size", "max-file"}


@pytest.mark.parametrize("name", NAMES)
def test_a_service_s_image_is_one_version(name: str) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+$", services()[name]["image"])


@pytest.mark.parametrize("name", NAMES)
def test_what_a_service_mounts_is_there_and_read_only(name: str) -> None:
    for volume in services()[name].get("volumes", []):
        if volume["type"] == "bind":
            assert Path(volume["source"]).exists()
            assert volume["read_only"] is True
        else:
            assert volume["source"] in compose()["volumes"]


def test_only_the_pull_can_write_models() -> None:
    def mount(name: str) -> dict[str, Any]:
        return next(each for each in services()[name]["volumes"] if each["target"] == "/models")

    assert "read_only" not in mount("pull")
    assert all(mount(name)["read_only"] for name in NODES)


def test_ports_are_published_for_this_machine_only() -> None:
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert ports
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_plain_text_stays_in_a_network_that_leads_nowhere() -> None:
    assert compose()["networks"]["inside"]["internal"] is True
    for name in NODES:
        assert set(services()[name]["networks"]) == {"inside"}


def test_the_image_is_that_of_this_version() -> None:
    assert {services()[name]["image"] for name in OWN} == {
        f"trivec:{pairs('LABEL')['org.opencontainers.image.version']}"
    }
    for name in OWN:
        build = services()[name]["build"]
        assert (Path(build["context"]), build["target"]) == (ROOT, "cpu")


@pytest.mark.parametrize("name", NODES)
def test_a_node_s_variables_are_options_of_the_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = services()[name]["environment"]
    assert set(environment) <= variables()
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    options = parse(["serve"])
    assert options["allow_insecure"] is True
    assert options["drain_pause_s"] + options["drain_grace_s"] < _seconds(services()[name]["stop_grace_period"])


def _seconds(duration: str) -> float:
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert found
    return 60 * int(found[1] or 0) + int(found[2] or 0)


def test_the_pull_is_a_command_that_there_is_and_the_nodes_wait_for_it() -> None:
    assert parse(services()["pull"]["command"])["source"] == "m3-mini"
    for name in NODES:
        assert services()[name]["depends_on"]["pull"]["condition"] == "service_completed_successfully"


def test_prometheus_scrapes_services_that_there_are() -> None:
    config = (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    targets = re.findall(r'"([\w-]+):\d+"', config)
    assert set(NODES) <= set(targets) <= set(services())


def test_envoy_listens_on_the_container_s_addresses_and_is_otherwise_as_the_file_says() -> None:
    (command,) = services()["envoy"]["command"]
    script = re.search(r"sed '([^']+)' /etc/envoy/(\S+)", command)
    assert script
    original = ROOT / "deploy" / "envoy" / script[2]
    changed = subprocess.run(["sed", script[1], original], check=True, capture_output=True, text=True).stdout
    lines = zip(original.read_text(encoding="utf-8").splitlines(), changed.splitlines(), strict=True)
    (difference,) = [pair for pair in lines if pair[0] != pair[1]]
    (published,) = services()["envoy"]["ports"]
    assert f"address: 0.0.0.0, port_value: {published['target']}" in difference[1]


def test_envoy_runs_in_the_script_that_drains_it_and_has_the_time_to() -> None:
    envoy = services()["envoy"]
    (command,) = envoy["command"]
    assert "exec bash /etc/envoy/envoy.sh -c /tmp/envoy.yaml" in command
    assert int(envoy["environment"]["ENVOY_DRAIN_S"]) + 5 <= _seconds(envoy["stop_grace_period"])


def test_envoy_finds_the_nodes_by_a_name_that_all_of_them_have() -> None:
    config = yaml.safe_load((ROOT / "deploy/envoy/envoy-dns.yaml").read_text(encoding="utf-8"))
    (cluster,) = [each for each in config["static_resources"]["clusters"] if each["name"] == "nodes"]
    ((endpoint,),) = [each["lb_endpoints"] for each in cluster["load_assignment"]["endpoints"]]
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert address["port_value"] == parse(["serve"])["grpc_port"]
    for name in NODES:
        assert services()[name]["networks"]["inside"]["aliases"] == [address["address"]]
