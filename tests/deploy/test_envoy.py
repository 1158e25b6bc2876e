"""What Envoy alone does: JSON, a rate limit, retries, nodes that come and go."""

import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import trustme
import yaml
from trivec_client import OverloadedError, RetryPolicy, TrivecClient
from trivec_server.transport.status import REASON_KEY

from tests.deploy.bare_node import Answer, BareNode, Context, bare_node, calling
from tests.deploy.conftest import until
from tests.deploy.name_server import name_server
from tests.deploy.proxies import Certificate, ProxyProcess, envoy_config, running_envoy, set_nodes
from tests.ports import free_port
from tests.scripted_engine import expected_dense
from tests.small_repository import ids_of

TIMEOUT_S = 30


def over_http(proxy: ProxyProcess, path: str, body: object | None = None) -> tuple[int, Any]:
    """The status and the JSON of the answer; a body makes it a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{proxy.target}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http, as made above
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@contextmanager
def before(folder: Path, *answers: Answer) -> Iterator[tuple[ProxyProcess, list[BareNode]]]:
    """Envoy before a bare node for each answer."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(bare_node(answer)) for answer in answers]
        config = envoy_config([node.port for node in nodes], free_port(), free_port(), folder)
        yield stack.enter_context(running_envoy(config)), nodes


def refuse(code: grpc.StatusCode, reason: str = "") -> Answer:
    def answer(_: bytes, context: Context) -> bytes:
        if reason:
            context.set_trailing_metadata(((REASON_KEY, reason),))
        context.abort(code, "scripted")

    return answer


def test_json_over_http_1(envoy: ProxyProcess) -> None:
    status, answer = over_http(envoy, "/v1/embed", {"texts": ["w11 w12"], "modes": ["MODE_HYBRID"]})
    (embedding,) = answer["embeddings"]
    assert status == 200
    assert embedding["dense"]["values"] == pytest.approx(expected_dense(ids_of("w11 w12")))
    assert embedding["sparse"]["ids"] == [11, 12]
    assert embedding["multi_vector"]["rows"] == 3


@pytest.mark.parametrize(
    ("path", "body", "holds"),
    [
        ("/v1/score", {"query": "w11", "passages": ["w11", "w12"]}, "scores"),
        ("/v1/tokenize", {"texts": ["w11"]}, "texts"),
        ("/v1/models", None, "models"),
        ("/v1/models/small", None, "model"),
    ],
)
def test_every_path_of_the_json_interface(envoy: ProxyProcess, path: str, body: object, holds: str) -> None:
    status, answer = over_http(envoy, path, body)
    assert status == 200
    assert answer[holds]


def test_errors_are_json_with_their_details(envoy: ProxyProcess) -> None:
    status, answer = over_http(envoy, "/v1/embed", {"texts": ["w11"], "max_tokens": 1})
    assert (status, answer["code"]) == (400, grpc.StatusCode.INVALID_ARGUMENT.value[0])
    kinds = [detail["@type"].rpartition(".")[2] for detail in answer["details"]]
    assert sorted(kinds) == ["BadRequest", "RequestInfo"]


def test_another_path_is_not_found(envoy: ProxyProcess) -> None:
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"http://{envoy.target}/v1/nothing", timeout=TIMEOUT_S)
    with raised.value as error:
        assert error.code == 404


def test_calls_beyond_the_rate_are_refused_with_a_wait_that_clients_go_by(tmp_path: Path) -> None:
    with bare_node() as node:
        config = envoy_config([node.port], free_port(), free_port(), tmp_path)
        text = config.path.read_text(encoding="utf-8")
        for limit in ("max_tokens: 10000", "tokens_per_fill: 10000"):
            assert limit in text
            text = text.replace(limit, limit.replace("10000", "1"))
        config.path.write_text(text.replace("fill_interval: 1s", "fill_interval: 3600s"), encoding="utf-8")
        with running_envoy(config) as proxy:
            with calling(proxy.target) as call:
                call(b"", timeout=TIMEOUT_S)
            once = RetryPolicy(max_attempts=1, overload_timeout_s=0)
            with TrivecClient(proxy.target, retry=once) as client, pytest.raises(OverloadedError) as raised:
                client.tokenize(["w11"])
    assert raised.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raised.value.retry_after_s == 1
    assert node.calls == 1


def test_a_full_queue_is_tried_at_one_other_node(tmp_path: Path) -> None:
    full = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED)
    with before(tmp_path, full, full, full) as (proxy, nodes), calling(proxy.target) as call:
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", timeout=TIMEOUT_S)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sorted(node.calls for node in nodes) == [0, 1, 1]


@pytest.mark.parametrize(("reason", "attempts"), [("QUEUE_FULL", 2), ("QUEUE_TIMEOUT", 1)])
def test_an_overload_of_all_nodes_by_kserve_is_not_multiplied(tmp_path: Path, reason: str, attempts: int) -> None:
    full = refuse(grpc.StatusCode.UNAVAILABLE, reason)
    with before(tmp_path, full, full, full) as (proxy, nodes), calling(proxy.target) as call:
        for _ in range(10):
            with pytest.raises(grpc.RpcError) as raised:
                call(b"", timeout=TIMEOUT_S)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert reason in str(raised.value.trailing_metadata())
    assert sum(node.calls for node in nodes) == 10 * attempts


@pytest.mark.parametrize("reason", ["", "SHUTTING_DOWN", "MODEL_NOT_READY"])
def test_a_node_that_is_unavailable_costs_no_call(tmp_path: Path, reason: str) -> None:
    away = refuse(grpc.StatusCode.UNAVAILABLE, reason)
    with before(tmp_path, away, away, lambda request, _: request) as (proxy, nodes), calling(proxy.target) as call:
        for number in range(20):
            assert call(b"%d" % number, timeout=TIMEOUT_S) == b"%d" % number
    assert nodes[2].calls == 20


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT])
def test_an_error_of_the_call_itself_is_not_tried_again(tmp_path: Path, code: grpc.StatusCode) -> None:
    with before(tmp_path, refuse(code), refuse(code)) as (proxy, nodes), calling(proxy.target) as call:
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", timeout=TIMEOUT_S)
        assert raised.value.code() is code
    assert sum(node.calls for node in nodes) == 1


def test_a_call_without_a_deadline_gets_one(tmp_path: Path) -> None:
    with before(tmp_path, lambda request, _: request) as (proxy, [node]), calling(proxy.target) as call:
        call(b"")
    (remaining_s,) = node.remaining_s
    assert remaining_s is not None
    assert 800 < remaining_s <= 900


def test_a_certificate_that_comes_or_is_renewed_is_shown_without_a_restart(
    tmp_path: Path, certificate: Certificate
) -> None:
    authority = trustme.CA()
    config = envoy_config([free_port()], free_port(), free_port(), tmp_path, tls=certificate)
    folder = tmp_path / "tls"
    for file in folder.iterdir():
        file.unlink()
    with running_envoy(config) as proxy:
        assert shown_name(certificate.port, authority) is None
        for name in ("first", "second"):
            issued = authority.issue_cert("127.0.0.1", common_name=name)
            issued.private_key_pem.write_to_path(tmp_path / "new.key")
            issued.cert_chain_pems[0].write_to_path(tmp_path / "new.crt")
            (tmp_path / "new.key").replace(folder / "tls.key")
            (tmp_path / "new.crt").replace(folder / "tls.crt")
            until(lambda: shown_name(certificate.port, authority) == name, lambda: proxy.log)  # noqa: B023 - at once


def shown_name(port: int, authority: trustme.CA) -> str | None:
    """The common name of the certificate that a listener shows; None: it shows none."""
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    try:
        with (
            socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection,
            context.wrap_socket(connection, server_hostname="127.0.0.1") as secured,
        ):
            shown = cast("dict[str, Any]", secured.getpeercert())
            return str(dict(field[0] for field in shown["subject"])["commonName"])
    except (ConnectionError, ssl.SSLError):
        return None


def test_nodes_join_and_leave_by_the_file_without_a_reload(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stays, joins, leaves = (stack.enter_context(bare_node()) for _ in range(3))
        config = envoy_config([stays.port, leaves.port], free_port(), free_port(), tmp_path, name="envoy-dynamic.yaml")
        proxy = stack.enter_context(running_envoy(config))
        call = stack.enter_context(calling(proxy.target))

        def calls_reach(node: BareNode) -> bool:
            call(b"", timeout=TIMEOUT_S)
            return node.calls > 0

        until(lambda: calls_reach(leaves), lambda: proxy.log)
        set_nodes(tmp_path, [stays.port, joins.port])
        until(lambda: calls_reach(joins), lambda: proxy.log)
        left_with = leaves.calls
        for _ in range(30):
            call(b"", timeout=TIMEOUT_S)
        assert leaves.calls == left_with
        assert min(stays.calls, joins.calls) > 0


def test_nodes_join_and_leave_by_the_name_without_a_reload(tmp_path: Path) -> None:
    with ExitStack() as stack:
        port = free_port()
        leaves, joins = (stack.enter_context(bare_node(address=f"127.0.0.{last}:{port}")) for last in (2, 3))
        names = stack.enter_context(name_server())
        names.addresses = ["127.0.0.2"]
        config = envoy_config([], free_port(), free_port(), tmp_path, name="envoy-dns.yaml")
        rendered = yaml.safe_load(config.path.read_text(encoding="utf-8"))
        (cluster,) = rendered["static_resources"]["clusters"]
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"][
            "port_value"
        ] = port
        cluster["cluster_type"]["typed_config"] |= resolving_at(names.port)
        config.path.write_text(yaml.safe_dump(rendered), encoding="utf-8")
        proxy = stack.enter_context(running_envoy(config))
        call = stack.enter_context(calling(proxy.target))
        call(b"", timeout=TIMEOUT_S)
        assert leaves.calls == 1
        names.addresses = ["127.0.0.3"]

        def call_reaches_the_other() -> bool:
            call(b"", timeout=TIMEOUT_S)
            return joins.calls > 0

        until(call_reaches_the_other, lambda: proxy.log)
        left_with = leaves.calls
        call(b"", timeout=TIMEOUT_S)
        assert leaves.calls == left_with


def resolving_at(port: int) -> dict[str, Any]:
    """What has Envoy ask the test's name server, at once and often."""
    return {
        "dns_refresh_rate": "0.1s",
        "typed_dns_resolver_config": {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": port}}],
                "use_resolvers_as_fallback": False,
            },
        },
    }
