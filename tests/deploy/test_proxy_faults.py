"""Nodes that die, hang and drain behind a proxy, with calls under way on them."""

import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.deploy.bare_node import BareNode, Context, bare_node, calling
from tests.deploy.conftest import Node, start_nodes, until
from tests.deploy.proxies import (
    PATIENCE_S,
    ProxyProcess,
    envoy_config,
    nginx_config,
    running_envoy,
    running_nginx,
)
from tests.ports import free_port

CALLS = 16
DEADLINE_S = 10
REQUEST = pb.EmbedRequest(texts=["w11 w12"])


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Node]:
    """A server to harm, which holds every call that reaches it."""
    with ExitStack() as stack:
        (node,) = start_nodes(stack, tmp_path, 1)
        node.server.tell("hold")
        node.server.expect("obeyed")
        yield node


@contextmanager
def calls_under_way(proxy: ProxyProcess, node: Node) -> Iterator[list["Future[pb.EmbedResponse]"]]:
    """Calls of which at least one has reached this node."""
    with (
        grpc.insecure_channel(proxy.target, options=[("grpc.enable_retries", 0)]) as channel,
        ThreadPoolExecutor(CALLS) as threads,
    ):
        stub = EmbeddingServiceStub(channel)
        futures = [threads.submit(stub.Embed, REQUEST, timeout=DEADLINE_S) for _ in range(CALLS)]
        node.server.expect("entered")
        yield futures


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_envoy_answers_the_calls_on_a_node_that_dies_or_hangs(
    fragile: Node, nodes: list[Node], tmp_path: Path, fault: signal.Signals
) -> None:
    config = envoy_config([fragile.port, nodes[0].port], free_port(), free_port(), rendered_into(tmp_path))
    with running_envoy(config) as proxy, calls_under_way(proxy, fragile) as futures:
        fragile.server.signal(fault)
        assert all(len(future.result().embeddings) == 1 for future in futures)


def test_nginx_says_unavailable_for_the_calls_on_a_node_that_dies_and_answers_all_others(
    fragile: Node, nodes: list[Node], tmp_path: Path
) -> None:
    config = nginx_config([fragile.port, nodes[0].port], free_port(), rendered_into(tmp_path))
    with running_nginx(config) as proxy, calls_under_way(proxy, fragile) as futures:
        fragile.server.signal(signal.SIGKILL)
        errors = [error for future in futures if (error := future.exception())]
        assert 1 <= len(errors) < CALLS
        for error in errors:
            assert isinstance(error, grpc.RpcError)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(proxy.target) as channel:
            for _ in range(CALLS):
                assert len(EmbeddingServiceStub(channel).Embed(REQUEST, timeout=DEADLINE_S).embeddings) == 1


def test_what_a_stream_has_asked_a_node_that_drains_is_answered(fragile: Node, tmp_path: Path) -> None:
    """Envoy takes the node out, and leaves alone what is under way on it; the node then ends the stream."""
    config = envoy_config([fragile.port], free_port(), free_port(), rendered_into(tmp_path))
    is_over = threading.Event()

    def requests() -> Iterator[pb.EmbedStreamRequest]:
        yield pb.EmbedStreamRequest(id="only", request=REQUEST)
        is_over.wait()

    with running_envoy(config) as proxy, grpc.insecure_channel(proxy.target) as channel:
        responses = EmbeddingServiceStub(channel).EmbedStream(requests(), timeout=60)
        fragile.server.expect("entered")
        fragile.server.signal(signal.SIGTERM)
        until(lambda: "failed_active_hc" in envoys_view_of_nodes(proxy), lambda: envoys_view_of_nodes(proxy))
        fragile.server.tell("release")
        response = next(responses)
        assert (response.id, response.final) == ("only", True)
        with pytest.raises(grpc.RpcError, match="the server is shutting down; send the rest on a new stream"):
            next(responses)
        is_over.set()


@pytest.mark.parametrize("order", [signal.SIGHUP, signal.SIGQUIT])
def test_nginx_finishes_what_is_under_way_when_it_reloads_or_quits(tmp_path: Path, order: signal.Signals) -> None:
    with (
        held_node() as (node, may_answer),
        running_nginx(nginx_config([node.port], free_port(), rendered_into(tmp_path))) as proxy,
        call_under_way(proxy, node) as future,
    ):
        before = worker_pids(proxy)
        proxy.process.send_signal(order)
        until(lambda: worker_pids(proxy) != before or not accepts(proxy), lambda: proxy.log)
        may_answer.set()
        assert future.result() == b"kept"


def test_envoy_finishes_what_is_under_way_when_its_script_is_told_to_stop(tmp_path: Path) -> None:
    """And ends then, long before the script's limit."""
    with held_node() as (node, may_answer):
        config = envoy_config([node.port], free_port(), free_port(), rendered_into(tmp_path))
        with running_envoy(config, drain_s=3600) as proxy, call_under_way(proxy, node) as future:
            proxy.process.send_signal(signal.SIGTERM)
            until(lambda: not accepts(proxy), lambda: proxy.log)
            may_answer.set()
            assert future.result() == b"kept"
            assert proxy.process.wait(PATIENCE_S) == 0


def test_envoy_ends_by_its_script_s_limit_whatever_is_under_way(tmp_path: Path) -> None:
    with held_node() as (node, _):
        config = envoy_config([node.port], free_port(), free_port(), rendered_into(tmp_path))
        with running_envoy(config, drain_s=1) as proxy, call_under_way(proxy, node) as future:
            proxy.process.send_signal(signal.SIGTERM)
            assert proxy.process.wait(PATIENCE_S) == 0
            with pytest.raises(grpc.RpcError):
                future.result()


def test_the_script_ends_with_envoy(tmp_path: Path) -> None:
    config = envoy_config([free_port()], free_port(), free_port(), rendered_into(tmp_path))
    with running_envoy(config, drain_s=3600) as proxy:
        (envoy,) = psutil.Process(proxy.process.pid).children()
        envoy.kill()
        assert proxy.process.wait(PATIENCE_S) == 128 + signal.SIGKILL


@contextmanager
def held_node() -> Iterator[tuple[BareNode, threading.Event]]:
    """A node that answers only once it may."""
    may_answer = threading.Event()

    def answer(request: bytes, _: Context) -> bytes:
        may_answer.wait(DEADLINE_S)
        return request

    with bare_node(answer) as node:
        yield node, may_answer


@contextmanager
def call_under_way(proxy: ProxyProcess, node: BareNode) -> Iterator["Future[bytes]"]:
    """A call that the node has, and answers as it is."""
    with calling(proxy.target) as call, ThreadPoolExecutor(1) as thread:
        future = thread.submit(call, b"kept", timeout=DEADLINE_S)
        until(lambda: node.calls > 0, lambda: proxy.log)
        yield future


def worker_pids(proxy: ProxyProcess) -> set[int]:
    return {child.pid for child in psutil.Process(proxy.process.pid).children()}


def accepts(proxy: ProxyProcess) -> bool:
    try:
        socket.create_connection(("127.0.0.1", proxy.config.port), DEADLINE_S).close()
    except ConnectionError:
        return False
    return True


def rendered_into(folder: Path) -> Path:
    """A folder of its own for a proxy."""
    (folder / "proxy").mkdir()
    return folder / "proxy"


def envoys_view_of_nodes(proxy: ProxyProcess) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{proxy.config.admin_port}/clusters", timeout=30) as answer:
        text: str = answer.read().decode()
        return text
