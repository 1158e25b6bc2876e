"""The files of deploy/envoy and deploy/nginx by themselves."""

import importlib.util
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.proxies import ENVOY, NGINX, ROOT, Certificate, envoy_config, nginx_config

ENVOY_FILES = ("envoy.yaml", "envoy-dynamic.yaml", "envoy-dns.yaml")
NODES = (8011, 8021, 8031)


@pytest.mark.parametrize("name", ENVOY_FILES)
@pytest.mark.parametrize("has_tls", [False, True])
def test_envoy_takes_the_file_without_a_warning(
    tmp_path: Path, certificate: Certificate, name: str, has_tls: bool
) -> None:
    config = envoy_config(NODES, 8000, 9901, tmp_path, name=name, tls=certificate if has_tls else None)
    done = subprocess.run(
        [ENVOY, "--mode", "validate", "--log-level", "warning", "-c", config.path],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("has_tls", [False, True])
def test_nginx_takes_the_file(tmp_path: Path, certificate: Certificate, has_tls: bool) -> None:
    config = nginx_config(NODES, 8000, tmp_path, tls=certificate if has_tls else None)
    done = subprocess.run(
        [NGINX, "-t", "-q", "-e", "stderr", "-p", tmp_path, "-c", config.path],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_envoys_files_differ_only_in_where_the_nodes_are_from() -> None:
    same = {
        (ROOT / "deploy" / "envoy" / name).read_text(encoding="utf-8").partition("      # The nodes")[0]
        for name in ENVOY_FILES
    }
    assert len(same) == 1


def test_every_file_has_the_same_three_nodes() -> None:
    envoy = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text(encoding="utf-8"))
    dynamic = yaml.safe_load((ROOT / "deploy/envoy/nodes.yaml").read_text(encoding="utf-8"))
    nginx = (ROOT / "deploy/nginx/nginx.conf").read_text(encoding="utf-8")
    assert (
        envoy["static_resources"]["clusters"][0]["load_assignment"]["endpoints"] == dynamic["resources"][0]["endpoints"]
    )
    assert [port for port in NODES if f"server 127.0.0.1:{port} " in nginx] == list(NODES)


def test_the_descriptor_of_the_json_interface_is_that_of_the_stubs() -> None:
    tool = ROOT / "tools" / "write_transcoder_descriptor.py"
    spec = importlib.util.spec_from_file_location(tool.stem, tool)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    committed = (ROOT / "deploy" / "envoy" / "embedding.pb").read_bytes()
    assert committed == module.transcoder_descriptor(), "run `make transcoder`"
