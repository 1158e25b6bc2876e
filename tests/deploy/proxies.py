"""
The proxies of `deploy/`, as they are shipped but for addresses and places of files, in processes of their own.

    config = envoy_config([9001, 9002, 9003], port=9000, admin_port=9900, directory=tmp_path)
    with running_envoy(config) as envoy: ...
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.ending import end

ROOT = Path(__file__).parents[2]
ENVOY = Path(sys.executable).with_name("envoy")
ENVOY_SCRIPT = ROOT / "deploy" / "envoy" / "envoy.sh"
NGINX = ROOT / ".nginx" / "bin" / "nginx"
PATIENCE_S = 30.0

_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files of what a proxy shows to its callers, and the port that it listens on with TLS."""

    certificate: Path
    private_key: Path
    port: int


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """A rendered configuration. `admin_port` is Envoy's only, else 0."""

    path: Path
    port: int
    admin_port: int = 0


@dataclass(frozen=True)
class ProxyProcess:
    """A proxy that listens. `log_path` has all that it writes, access log included."""

    process: "subprocess.Popen[bytes]"
    config: ProxyConfig
    log_path: Path

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.config.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")


def envoy_config(
    nodes: Sequence[int],
    port: int,
    admin_port: int,
    directory: Path,
    *,
    name: str = "envoy.yaml",
    tls: Certificate | None = None,
) -> ProxyConfig:
    """
    Renders `deploy/envoy/<name>` into `directory`, with the files that it names beside it.

    Args:
        nodes: the gRPC ports of the nodes on 127.0.0.1.
        port: of the listener in plain text.
        admin_port: of Envoy's admin interface.
        directory: exists; holds one configuration.
        name: the file in `deploy/envoy`.
        tls: for the TLS listener; without it there is none.
    """
    shutil.copytree(ROOT / "deploy" / "envoy", directory, dirs_exist_ok=True)
    (directory / "tls" / ".gitignore").unlink()
    for each in directory.glob("*.yaml"):
        each.write_text(each.read_text(encoding="utf-8").replace("/etc/envoy", str(directory)), encoding="utf-8")
    path = directory / name
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["admin"]["address"] = _envoy_address(admin_port)
    plain, secure = config["static_resources"]["listeners"]
    plain["address"] = _envoy_address(port)
    secure["address"] = _envoy_address(tls.port if tls else 0)
    config["static_resources"]["listeners"] = [plain, secure] if tls else [plain]
    (cluster,) = config["static_resources"]["clusters"]
    if cluster.get("type") == "STATIC":
        cluster["load_assignment"]["endpoints"] = _endpoints(nodes)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    set_nodes(directory, nodes)
    if tls:
        shutil.copy(tls.certificate, directory / "tls" / "tls.crt")
        shutil.copy(tls.private_key, directory / "tls" / "tls.key")
    return ProxyConfig(path, port, admin_port)


def _envoy_address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def set_nodes(directory: Path, nodes: Sequence[int]) -> None:
    """Gives an Envoy that was rendered from envoy-dynamic.yaml other nodes, by a new nodes.yaml."""
    path = directory / "nodes.yaml"
    listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    listed["resources"][0]["endpoints"] = _endpoints(nodes)
    written = directory / "nodes.new"
    written.write_text(yaml.safe_dump(listed), encoding="utf-8")
    written.replace(path)


def _endpoints(nodes: Sequence[int]) -> list[dict[str, Any]]:
    return [{"lb_endpoints": [{"endpoint": {"address": _envoy_address(node)}} for node in nodes]}]


def nginx_config(nodes: Sequence[int], port: int, directory: Path, *, tls: Certificate | None = None) -> ProxyConfig:
    """Renders `deploy/nginx/nginx.conf` into `directory`; the arguments are those of `envoy_config`."""
    text = (ROOT / "deploy" / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    lines: list[str] = []
    for line in text.splitlines():
        if found := re.match(r"\s+server 127\.0\.0\.1:8011(.*)", line):
            lines += [f"server 127.0.0.1:{node}{found[1]}" for node in nodes]
        elif not re.match(r"\s+server 127|user |pid |error_log " + ("" if tls else r"|\s+(listen 8443|ssl_)"), line):
            lines.append(line)
    folder = directory.resolve()
    rendered = "\n".join(lines).replace("listen 127.0.0.1:8000", f"listen 127.0.0.1:{port}")
    if tls:
        rendered = (
            rendered.replace("listen 8443", f"listen 127.0.0.1:{tls.port}")
            .replace("/etc/nginx/tls/tls.crt", str(tls.certificate))
            .replace("/etc/nginx/tls/tls.key", str(tls.private_key))
        )
    places = [f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    rendered = rendered.replace("http {", "http {\n" + "\n".join(places), 1)
    path = folder / "nginx.conf"
    path.write_text(f"daemon off;\npid {folder / 'nginx.pid'};\nerror_log stderr warn;\n{rendered}\n", encoding="utf-8")
    return ProxyConfig(path, port)


@contextmanager
def running_envoy(config: ProxyConfig, *, concurrency: int = 1, drain_s: int | None = None) -> Iterator[ProxyProcess]:
    """Envoy until the block ends; yields once it listens. With `drain_s` in the script that drains it."""
    command = [
        *([str(ENVOY)] if drain_s is None else ["bash", str(ENVOY_SCRIPT)]),
        *("-c", str(config.path), "--concurrency", str(concurrency)),
        *("--disable-hot-restart", "--log-level", "warning", "--file-flush-interval-msec", "100"),
    ]
    environment = {
        **os.environ,
        "PATH": f"{ENVOY.parent}:{os.environ['PATH']}",
        "ENVOY_ADMIN_PORT": str(config.admin_port),
        "ENVOY_DRAIN_S": str(drain_s),
    }
    with _running(command, config, environment) as process:
        yield process


@contextmanager
def running_nginx(config: ProxyConfig) -> Iterator[ProxyProcess]:
    """nginx until the block ends; yields once it listens."""
    command = [str(NGINX), "-e", "stderr", "-p", str(config.path.parent), "-c", str(config.path)]
    with _running(command, config) as process:
        yield process


@contextmanager
def _running(
    command: list[str], config: ProxyConfig, environment: dict[str, str] | None = None
) -> Iterator[ProxyProcess]:
    log_path = config.path.with_suffix(".log")
    with log_path.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        _wait_for_port(process, config.port, log_path)
        yield ProxyProcess(process, config, log_path)
    finally:
        end(process, PATIENCE_S)


def _wait_for_port(process: "subprocess.Popen[bytes]", port: int, log_path: Path) -> None:
    """A proxy tells nobody that it listens."""
    ends_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
        except OSError:
            log = log_path.read_text(encoding="utf-8")
            assert process.poll() is None, f"{process.args!r} ended: {log}"
            assert time.monotonic() < ends_at, f"{process.args!r} does not listen: {log}"
            time.sleep(_LOOK_S)
        else:
            return
