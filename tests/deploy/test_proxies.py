"""What goes through Envoy and nginx alike: before real servers, and before bare ones for messages of any size."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import trustme
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.deploy.bare_node import BareNode, Context, bare_node, calling
from tests.deploy.conftest import Node, until
from tests.deploy.proxies import (
    Certificate,
    ProxyConfig,
    ProxyProcess,
    envoy_config,
    nginx_config,
    running_envoy,
    running_nginx,
)
from tests.ports import free_port
from tests.scripted_engine import expected_dense
from tests.small_repository import ids_of

MIB = 1 << 20
TIMEOUT_S = 30
HYBRID = pb.EmbedRequest(texts=["w11 w12"], modes=[pb.MODE_HYBRID])
MANAGEMENT = (
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "LogSettings",
    "TraceSetting",
)


@pytest.fixture(params=["envoy", "nginx"])
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ProxyProcess, BareNode]]:
    """Each proxy, before one node that echoes."""
    with ExitStack() as stack:
        node = stack.enter_context(bare_node(answer_of_size))
        if request.param == "envoy":
            running = running_envoy(envoy_config([node.port], free_port(), free_port(), tmp_path))
        else:
            running = running_nginx(nginx_config([node.port], free_port(), tmp_path))
        yield stack.enter_context(running), node


def answer_of_size(request: bytes, context: Context) -> bytes:
    """As many bytes as the request's first four say."""
    context.set_trailing_metadata((("x-trailing", "kept"),))
    return bytes(int.from_bytes(request[:4], "big"))


def of_size(size: int, answered: int) -> bytes:
    return answered.to_bytes(4, "big") + bytes(size - 4)


def test_a_hybrid_embed(proxy: ProxyProcess) -> None:
    with grpc.insecure_channel(proxy.target) as channel:
        (embedding,) = EmbeddingServiceStub(channel).Embed(HYBRID, timeout=TIMEOUT_S).embeddings
    assert embedding.dense.values == pytest.approx(expected_dense(ids_of("w11 w12")))
    assert embedding.sparse.ids == [11, 12]
    assert embedding.multi_vector.rows == 3


def test_an_embed_stream_of_many_messages(proxy: ProxyProcess) -> None:
    requests = [pb.EmbedStreamRequest(id=str(number), request=HYBRID) for number in range(500)]
    with grpc.insecure_channel(proxy.target) as channel:
        responses = list(EmbeddingServiceStub(channel).EmbedStream(iter(requests), timeout=TIMEOUT_S))
    assert {response.id for response in responses if response.final} == {str(number) for number in range(500)}


def test_an_answer_names_its_node(proxy: ProxyProcess, nodes: list[Node]) -> None:
    with grpc.insecure_channel(proxy.target) as channel:
        _, call = EmbeddingServiceStub(channel).Embed.with_call(HYBRID, timeout=TIMEOUT_S)
        assert dict(call.initial_metadata())["x-trivec-node"] in {f"127.0.0.1:{node.port}" for node in nodes}


def test_the_access_log_has_the_callers_request_id_and_no_text(proxy: ProxyProcess) -> None:
    request_id = f"for-the-log-{time.monotonic_ns()}"
    with grpc.insecure_channel(proxy.target) as channel:
        EmbeddingServiceStub(channel).Embed(
            pb.EmbedRequest(texts=["w987 w654"]), metadata=(("x-request-id", request_id),), timeout=TIMEOUT_S
        )
    until(lambda: request_id in proxy.log, lambda: proxy.log)
    (line,) = [line for line in proxy.log.splitlines() if request_id in line]
    entry = json.loads(line)
    assert entry["method"] == "/trivec.v1.EmbeddingService/Embed"
    assert entry["grpc_status"] in {"OK", "0"}
    assert "w987" not in proxy.log


@pytest.mark.parametrize("method", MANAGEMENT)
def test_what_changes_one_server_is_refused(proxy: ProxyProcess, method: str) -> None:
    with grpc.insecure_channel(proxy.target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}"
        )
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert raised.value.details() == "this changes one server: call that server, not the load balancer"


def test_deadlines_are_passed_on(bare: tuple[ProxyProcess, BareNode]) -> None:
    proxy, node = bare
    with calling(proxy.target) as call:
        call(of_size(4, 1), timeout=77)
    (remaining_s,) = node.remaining_s
    assert remaining_s is not None
    assert 60 < remaining_s < 78


def test_the_largest_messages_pass(bare: tuple[ProxyProcess, BareNode]) -> None:
    proxy, _ = bare
    with calling(proxy.target) as call:
        assert len(call(of_size(16 * MIB, 64 * MIB), timeout=TIMEOUT_S)) == 64 * MIB


def test_trailing_metadata_passes(bare: tuple[ProxyProcess, BareNode]) -> None:
    proxy, _ = bare
    with calling(proxy.target) as call:
        _, answered = call.with_call(of_size(4, 1), timeout=TIMEOUT_S)
        assert ("x-trailing", "kept") in answered.trailing_metadata()


def with_tls(name: str, nodes: list[Node], folder: Path, certificate: Certificate) -> ProxyConfig:
    ports = [node.port for node in nodes]
    if name == "envoy":
        return envoy_config(ports, free_port(), free_port(), folder, tls=certificate)
    return nginx_config(ports, free_port(), folder, tls=certificate)


@pytest.mark.parametrize("name", ["envoy", "nginx"])
def test_the_tls_listener(
    name: str, nodes: list[Node], tmp_path: Path, authority: trustme.CA, certificate: Certificate
) -> None:
    config = with_tls(name, nodes, tmp_path, certificate)
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    with (
        running_envoy(config) if name == "envoy" else running_nginx(config),
        grpc.secure_channel(f"127.0.0.1:{certificate.port}", credentials) as channel,
    ):
        response = EmbeddingServiceStub(channel).Embed(HYBRID, timeout=TIMEOUT_S, wait_for_ready=True)
    assert len(response.embeddings) == 1


def test_without_a_node_calls_are_unavailable(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (tmp_path / "envoy").mkdir()
    (tmp_path / "nginx").mkdir()
    gone = free_port()
    envoy = running_envoy(envoy_config([gone], free_port(), free_port(), tmp_path / "envoy"))
    nginx = running_nginx(nginx_config([gone], free_port(), tmp_path / "nginx"))
    with envoy as first, nginx as second:
        for proxy in (first, second):
            with calling(proxy.target) as call, pytest.raises(grpc.RpcError) as raised:
                call(b"", timeout=TIMEOUT_S)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
