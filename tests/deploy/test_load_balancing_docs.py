"""The options that docs/load-balancing.md shows as YAML, each put where the page says and used."""

import re
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import trustme
import yaml

from tests.deploy.bare_node import BareNode, Context, bare_node, calling
from tests.deploy.conftest import until
from tests.deploy.proxies import PATIENCE_S, ROOT, ProxyProcess, envoy_config, running_envoy
from tests.ports import free_port

PAGE = (ROOT / "docs" / "load-balancing.md").read_text(encoding="utf-8")
UPSTREAM_TLS, TRACING, COLLECTOR, REPORTED_LOAD = (
    yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
)
TIMEOUT_S = 30


def changed_envoy(
    stack: ExitStack, folder: Path, nodes: list[BareNode], change: Callable[[dict[str, Any]], None]
) -> ProxyProcess:
    """Envoy with `change` made to what stands under `static_resources`."""
    config = envoy_config([node.port for node in nodes], free_port(), free_port(), folder)
    rendered = yaml.safe_load(config.path.read_text(encoding="utf-8"))
    change(rendered["static_resources"])
    config.path.write_text(yaml.safe_dump(rendered), encoding="utf-8")
    return stack.enter_context(running_envoy(config))


def test_tls_to_the_nodes(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("trivec")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")

    def change(resources: dict[str, Any]) -> None:
        text = yaml.safe_dump(UPSTREAM_TLS).replace("/etc/envoy/tls/ca.crt", str(tmp_path / "authority.pem"))
        resources["clusters"][0] |= yaml.safe_load(text)

    (tmp_path / "envoy").mkdir()
    with ExitStack() as stack:
        node = stack.enter_context(
            bare_node(credentials=(issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes()))
        )
        proxy = changed_envoy(stack, tmp_path / "envoy", [node], change)
        call = stack.enter_context(calling(proxy.target))
        assert call(b"over TLS", timeout=TIMEOUT_S) == b"over TLS"


def test_tracing_to_a_collector(tmp_path: Path) -> None:
    received: list[bytes] = []

    def collect(request: bytes, _: Context) -> bytes:
        received.append(request)
        return b""

    with ExitStack() as stack:
        node, collector = stack.enter_context(bare_node()), stack.enter_context(bare_node(collect))

        def change(resources: dict[str, Any]) -> None:
            (filters,) = resources["listeners"][0]["filter_chains"]
            filters["filters"][0]["typed_config"]["tracing"] = TRACING["tracing"] | {"random_sampling": {"value": 100}}
            text = yaml.safe_dump(COLLECTOR).replace("address: collector", "address: 127.0.0.1")
            resources["clusters"].append(yaml.safe_load(text.replace("4317", str(collector.port))))

        proxy = changed_envoy(stack, tmp_path, [node], change)
        call = stack.enter_context(calling(proxy.target))
        for _ in range(5):
            call(b"", timeout=TIMEOUT_S)
        until(lambda: bool(received), lambda: proxy.log)
    assert "traceparent" in node.metadata[0]
    assert b"trivec.v1.EmbeddingService/Embed" in received[0]


def test_by_reported_load(tmp_path: Path) -> None:
    def reporting(utilization: float) -> Callable[[bytes, Context], bytes]:
        # Of xds.data.orca.v3.OrcaLoadReport: rps_fractional (6) and application_utilization (9).
        report = b"\x31" + struct.pack("<d", 100) + b"\x49" + struct.pack("<d", utilization)

        def answer(_: bytes, context: Context) -> bytes:
            context.set_trailing_metadata((("endpoint-load-metrics-bin", report),))
            return b""

        return answer

    def change(resources: dict[str, Any]) -> None:
        policy = yaml.safe_load(yaml.safe_dump(REPORTED_LOAD))["load_balancing_policy"]
        config = policy["policies"][0]["typed_extension_config"]["typed_config"]
        config |= {"blackout_period": "0s", "weight_update_period": "0.1s"}
        resources["clusters"][0]["load_balancing_policy"] = policy

    with ExitStack() as stack:
        busy, idle = stack.enter_context(bare_node(reporting(0.9))), stack.enter_context(bare_node(reporting(0.1)))
        proxy = changed_envoy(stack, tmp_path, [busy, idle], change)
        call = stack.enter_context(calling(proxy.target))
        ends_at = time.monotonic() + PATIENCE_S
        share = 0.5
        while share < 0.75:
            assert time.monotonic() < ends_at, share
            before = idle.calls
            for _ in range(50):
                call(b"", timeout=TIMEOUT_S)
            share = (idle.calls - before) / 50


def test_every_limit_that_the_page_names_is_in_envoys_file() -> None:
    shipped = (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text(encoding="utf-8")
    for setting in re.findall(r"^\| `(\w+)`", PAGE.partition("### What to adapt")[2], re.MULTILINE):
        assert setting in shipped, setting
