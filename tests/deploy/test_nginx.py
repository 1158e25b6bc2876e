"""What nginx refuses by itself."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from trivec_client import OverloadedError, RetryPolicy, TrivecClient

from tests.deploy.bare_node import Context, bare_node, calling
from tests.deploy.conftest import until
from tests.deploy.proxies import ProxyConfig, nginx_config, running_nginx
from tests.ports import free_port

TIMEOUT_S = 30


def limited(node: int, folder: Path, replaced: dict[str, str]) -> ProxyConfig:
    """nginx before a node, with other limits: what the file has, and what takes its place."""
    config = nginx_config([node], free_port(), folder)
    text = config.path.read_text(encoding="utf-8")
    for old, new in replaced.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    config.path.write_text(text, encoding="utf-8")
    return config


def assert_refused(target: str) -> None:
    """With the wait that clients of Trivec go by."""
    once = RetryPolicy(max_attempts=1, overload_timeout_s=0)
    with TrivecClient(target, retry=once) as client, pytest.raises(OverloadedError) as raised:
        client.tokenize(["w11"])
    assert raised.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raised.value.retry_after_s == 1


def test_calls_beyond_the_rate_are_refused_with_a_wait(tmp_path: Path) -> None:
    with bare_node() as node:
        config = limited(node.port, tmp_path, {"rate=10000r/s": "rate=1r/m", " burst=10000 nodelay": ""})
        with running_nginx(config) as proxy, calling(proxy.target) as call:
            call(b"", timeout=TIMEOUT_S)
            assert_refused(proxy.target)
    assert node.calls == 1


@pytest.mark.parametrize("limit", ["limit_conn under_way 8192", "limit_conn under_way_of_one 4096"])
def test_calls_under_way_beyond_the_limit_are_refused_with_a_wait(tmp_path: Path, limit: str) -> None:
    may_answer = threading.Event()

    def answer(request: bytes, _: Context) -> bytes:
        may_answer.wait(TIMEOUT_S)
        return request

    with bare_node(answer) as node:
        config = limited(node.port, tmp_path, {limit: limit.rpartition(" ")[0] + " 1"})
        with (
            running_nginx(config) as proxy,
            calling(proxy.target) as call,
            ThreadPoolExecutor(1) as thread,
        ):
            future = thread.submit(call, b"first", timeout=TIMEOUT_S)
            until(lambda: node.calls == 1, lambda: proxy.log)
            assert_refused(proxy.target)
            may_answer.set()
            assert future.result() == b"first"
            assert call(b"second", timeout=TIMEOUT_S) == b"second"
    assert node.calls == 2


def test_a_caller_may_send_as_many_at_once_as_a_second_brings(tmp_path: Path) -> None:
    with (
        bare_node() as node,
        running_nginx(nginx_config([node.port], free_port(), tmp_path)) as proxy,
        calling(proxy.target) as call,
    ):
        futures = [call.future(b"%d" % number, timeout=TIMEOUT_S) for number in range(500)]
        assert [future.result() for future in futures] == [b"%d" % number for number in range(500)]
