"""The three ways to the nodes: behind Envoy, behind nginx, and by a client that balances by itself."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.cluster.nodes import Node
from tests.deploy.proxies import envoy_config, nginx_config, running_envoy, running_nginx
from tests.ports import free_ports

WAYS = ("envoy", "client", "nginx")


@contextmanager
def open_way(way: str, nodes: Sequence[Node], folder: Path) -> Iterator[list[str]]:
    """The targets to call, until the block ends. Proxies run with the configurations that `deploy/` ships."""
    if way == "client":
        yield [node.target for node in nodes]
        return
    ports = [node.grpc_port for node in nodes]
    port, admin_port = free_ports(2)
    directory = Path(mkdtemp(prefix=f"{way}-", dir=folder))
    if way == "envoy":
        with running_envoy(envoy_config(ports, port, admin_port, directory)) as proxy:
            yield [proxy.target]
    else:
        with running_nginx(nginx_config(ports, port, directory)) as proxy:
            yield [proxy.target]
