"""Two servers, and both proxies before them, for all tests that change nothing about them."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.deploy.proxies import (
    PATIENCE_S,
    Certificate,
    ProxyProcess,
    envoy_config,
    nginx_config,
    running_envoy,
    running_nginx,
)
from tests.ports import free_port
from tests.small_repository import make_repository
from tests.wire.scripted_process import ScriptedProcess, scripted_process


@dataclass(frozen=True)
class Node:
    """A real server with the scripted engine."""

    server: ScriptedProcess
    port: int


@pytest.fixture(scope="package")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="package")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of 127.0.0.1, with a port for it."""
    folder = tmp_path_factory.mktemp("certificate")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(folder / "tls.key")
    for part in issued.cert_chain_pems:
        part.write_to_path(folder / "tls.crt", append=True)
    return Certificate(folder / "tls.crt", folder / "tls.key", free_port())


@pytest.fixture(scope="package")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    with ExitStack() as stack:
        yield start_nodes(stack, tmp_path_factory.mktemp("nodes"), 2)


def start_nodes(stack: ExitStack, folder: Path, count: int) -> list[Node]:
    """So many servers, until the stack is closed."""
    started = []
    for number in range(count):
        (folder / str(number)).mkdir()
        repository = make_repository(folder / str(number) / "repository")
        started.append(stack.enter_context(scripted_process(repository)))
    return [Node(server, int(server.expect("loaded")[0])) for server in started]


@pytest.fixture(scope="package")
def envoy(nodes: list[Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    config = envoy_config([node.port for node in nodes], free_port(), free_port(), tmp_path_factory.mktemp("envoy"))
    with running_envoy(config) as process:
        yield process


@pytest.fixture(scope="package")
def nginx(nodes: list[Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    config = nginx_config([node.port for node in nodes], free_port(), tmp_path_factory.mktemp("nginx"))
    with running_nginx(config) as process:
        yield process


@pytest.fixture(params=["envoy", "nginx"])
def proxy(request: pytest.FixtureRequest) -> ProxyProcess:
    """Each of the two."""
    process: ProxyProcess = request.getfixturevalue(request.param)
    return process


def until(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Waits for a condition that no event tells of."""
    ends_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_at, otherwise()
        time.sleep(0.02)
