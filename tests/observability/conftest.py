"""One real server with everything on that has series, under load, and a real Prometheus that has seen it work."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.observability.monitoring import Monitor, blackbox_exporter, prometheus, prometheus_config
from tests.observability.otlp_receiver import receiving
from tests.serving_process import ServingProcess, serve

TOKEN = "a-token-of-the-tests-and-of-nobody-else"  # noqa: S105 - made up
ACCESS_FILE = """\
[[identity]]
name = "loader"
token_sha256 = "{digest}"
scopes = ["infer"]
"""


@dataclass(frozen=True)
class SecuredServer:
    """A server with TLS and an access file."""

    serving: ServingProcess
    authority: trustme.CA
    folder: Path

    def channel(self) -> grpc.Channel:
        """A channel that trusts it."""
        credentials = grpc.ssl_channel_credentials(self.authority.cert_pem.bytes())
        return grpc.secure_channel(self.serving.target, credentials)


@pytest.fixture(scope="package")
def secured_server(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServer]:
    """Serves m3-mini with a response cache, TLS, an access file and traces."""
    folder = tmp_path_factory.mktemp("secured")
    model, mini = folder / "repository" / "m3-mini", mini_repository / "m3-mini"
    model.mkdir(parents=True)
    (model / "1").symlink_to(mini / "1")
    config = (mini / "config.pbtxt").read_text(encoding="utf-8")
    (model / "config.pbtxt").write_text(f"{config}response_cache {{ enable: true }}\n", encoding="utf-8")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "server.pem").write_bytes(b"".join(part.bytes() for part in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(folder / "ca.pem")
    access = ACCESS_FILE.format(digest=hashlib.sha256(TOKEN.encode()).hexdigest())
    (folder / "access.toml").write_text(access, encoding="utf-8")
    (folder / "access.toml").chmod(0o600)
    flags = (
        *("--tls-certificate", str(folder / "server.pem"), "--tls-private-key", str(folder / "key.pem")),
        *("--access-file", str(folder / "access.toml"), "--model-control-mode", "poll"),
    )
    with receiving() as receiver, serve(folder / "repository", *flags, "--otlp-endpoint", receiver.endpoint) as serving:
        yield SecuredServer(serving, authority, folder)


@pytest.fixture(scope="package")
def prometheus_of_load(secured_server: SecuredServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitor]:
    """The example's Prometheus, with its rules; the server works all the while."""
    folder = tmp_path_factory.mktemp("prometheus-of-load")
    (folder / "blackbox.yml").write_text(
        f"modules: {{grpc_health: {{prober: grpc, grpc: {{tls: true, tls_config: {{ca_file: "
        f"{secured_server.folder / 'ca.pem'}}}}}}}}}\n",
        encoding="utf-8",
    )
    serving = secured_server.serving
    with blackbox_exporter(folder / "blackbox.yml") as blackbox:
        targets = {"trivec": [f"127.0.0.1:{serving.metrics_port}"], "grpc-health": [serving.target]}
        with prometheus(prometheus_config(folder, targets, blackbox.address)) as monitor, _load(secured_server):
            yield monitor


class _load:  # noqa: N801 - used as a function
    """Calls of all kinds, again and again, until the block ends."""

    def __init__(self, server: SecuredServer) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        with self._server.channel() as channel:
            stub = EmbeddingServiceStub(channel)
            number = 0
            while not self._over.wait(0.05):
                number += 1
                # The first is computed anew each time, the second is in the response cache.
                request = pb.EmbedRequest(texts=[f"text {number}", "always the same"])
                stub.Embed(request, metadata=metadata)
                list(stub.EmbedStream(iter([pb.EmbedStreamRequest(request=request)]), metadata=metadata))
                _refused(stub, request)


def _refused(stub: EmbeddingServiceStub, request: pb.EmbedRequest) -> None:
    """A call without a token."""
    with pytest.raises(grpc.RpcError):
        stub.Embed(request)
