"""The real blackbox exporter asks real servers for their health, with the modules of the example."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.observability.conftest import SecuredServer
from tests.observability.monitoring import DEPLOY, Monitor, blackbox_exporter, tool
from tests.serving_process import ServingProcess, serve

CONFIG = DEPLOY / "blackbox" / "blackbox.yml"
EXPLICIT = ("--model-control-mode", "explicit")


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory, secured_server: SecuredServer) -> Iterator[Monitor]:
    """With the example's modules; the model is m3-mini, the authority that of the test."""
    config = tmp_path_factory.mktemp("blackbox") / "blackbox.yml"
    text = CONFIG.read_text(encoding="utf-8").replace("service: bge-m3", "service: m3-mini")
    ca_file = str(secured_server.folder / "ca.pem")
    config.write_text(text.replace("/etc/blackbox/ca.pem", ca_file), encoding="utf-8")
    with blackbox_exporter(config) as monitor:
        yield monitor


@pytest.fixture(scope="module")
def serving(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with serve(mini_repository, log_path=tmp_path_factory.mktemp("serving") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def not_serving(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    """Up, with no model loaded."""
    with serve(mini_repository, *EXPLICIT, log_path=tmp_path_factory.mktemp("not-serving") / "log") as server:
        yield server


def probe(exporter: Monitor, module: str, target: str) -> dict[str, float]:
    """What a probe measures, by name; labels are left away."""
    lines = exporter.get("probe", module=module, target=target).splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "{" not in line]
    return {name: float(value) for name, value in pairs}


def test_the_config_is_right() -> None:
    tool("prometheus-blackbox-exporter", "--config.check", f"--config.file={CONFIG}")


@pytest.mark.parametrize("module", ["grpc_health", "grpc_health_bge_m3"])
def test_a_server_that_serves_is_found_to_do_so(exporter: Monitor, serving: ServingProcess, module: str) -> None:
    assert probe(exporter, module, serving.target)["probe_success"] == 1


@pytest.mark.parametrize("module", ["grpc_health", "grpc_health_bge_m3"])
def test_a_server_without_a_model_is_found_not_to(exporter: Monitor, not_serving: ServingProcess, module: str) -> None:
    assert probe(exporter, module, not_serving.target)["probe_success"] == 0


def test_a_model_that_there_is_not_is_found_not_to_serve(
    exporter: Monitor, serving: ServingProcess, tmp_path: Path
) -> None:
    modules = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    del modules["modules"]["grpc_health_tls"]
    config = tmp_path / "blackbox.yml"
    config.write_text(yaml.safe_dump(modules), encoding="utf-8")
    with blackbox_exporter(config) as of_bge_m3:
        assert probe(of_bge_m3, "grpc_health_bge_m3", serving.target)["probe_success"] == 0


def test_a_server_with_tls_is_asked_over_tls_and_needs_no_token(
    exporter: Monitor, secured_server: SecuredServer
) -> None:
    found = probe(exporter, "grpc_health_tls", secured_server.serving.target)
    assert found["probe_success"] == 1
    assert found["probe_ssl_earliest_cert_expiry"] > 0


def test_plain_text_does_not_reach_a_server_with_tls(exporter: Monitor, secured_server: SecuredServer) -> None:
    assert probe(exporter, "grpc_health", secured_server.serving.target)["probe_success"] == 0
