"""
The client of several servers: which of them gets a call, and where a call goes that one of them failed.

Each test holds for both clients. The servers are scripted, their connections and gRPC's balancing real.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from trivec_client import (
    AsyncTrivecClient,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
    ServingStatus,
    Tls,
    TrivecClient,
    UnavailableError,
)
from trivec_client.retry import HEDGE_RESERVE

from tests.rpc.client_calls import KINDS, AnyClient, Kind, connect
from tests.rpc.jumping_clock import AsyncJumpingClock, JumpingClock
from tests.rpc.running_server import until
from tests.rpc.scripted_server import (
    SERVICE,
    TLS_NAME,
    Ending,
    Failure,
    Load,
    Script,
    dense_of,
    overloaded,
    rows_of,
    serve,
    unavailable,
    write_authority,
)

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
STREAMED = {"return_colbert_vecs": True}


@dataclass
class Cluster:
    scripts: list[Script]
    targets: list[str]

    @property
    def calls(self) -> list[int]:
        """Calls to Embed, EmbedStream and Score that each server has got."""
        return [len(script.requests) for script in self.scripts]

    def forget(self) -> None:
        for script in self.scripts:
            script.requests.clear()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as servers:
        scripts = [Script() for _ in range(3)]
        yield Cluster(scripts, [await servers.enter_async_context(serve(script)) for script in scripts])


@pytest.fixture
def clock(kind: Kind) -> JumpingClock:
    return AsyncJumpingClock() if kind == "asyncio" else JumpingClock()


@pytest.fixture
async def client(kind: Kind, cluster: Cluster, clock: JumpingClock) -> AsyncIterator[AnyClient]:
    async with connect(kind, cluster.targets, clock=clock) as connected:
        await use_all(connected, cluster)
        yield connected


async def use_all(client: AnyClient, cluster: Cluster) -> None:
    """Calls until every server has been reached: before, those that are connected share the calls."""

    async def again() -> None:
        while not all(cluster.calls):
            await client.call("encode", "a")

    async with asyncio.timeout(30):
        await again()
    cluster.forget()


async def encode_all(client: AnyClient, count: int) -> None:
    for number in range(count):
        output = await client.call("encode", f"text {number}")
        np.testing.assert_array_equal(output["dense_vecs"], dense_of(f"text {number}"))


async def test_round_robin_gives_every_server_the_same_number_of_calls(client: AnyClient, cluster: Cluster) -> None:
    await encode_all(client, 30)
    assert cluster.calls == [10, 10, 10]


async def test_the_requests_of_one_call_are_spread_too(client: AnyClient, cluster: Cluster) -> None:
    output = await client.call("encode", [f"text {number}" for number in range(30)], batch_size=1)
    np.testing.assert_array_equal(output["dense_vecs"], [dense_of(f"text {number}") for number in range(30)])
    assert sum(cluster.calls) == 30
    assert min(cluster.calls) > 0


async def test_a_server_that_is_not_serving_gets_no_calls_until_it_is(client: AnyClient, cluster: Cluster) -> None:
    left_out = cluster.scripts[1]
    await left_out.health.set(SERVICE, NOT_SERVING)

    async def shares(count: int) -> bool:
        """Whether so many servers get calls, each the same number."""
        cluster.forget()
        await encode_all(client, 6)
        return sorted(cluster.calls)[-count:] == [6 // count] * count

    async with asyncio.timeout(30):
        while not await shares(2):
            pass
        await encode_all(client, 20)
        assert left_out.requests == []
        await left_out.health.set(SERVICE, SERVING)
        while not await shares(3):
            pass


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, SERVICE),
        ({"model": "scripted"}, "scripted"),
        ({"model": "scripted", "model_version": 1}, "scripted/1"),
        ({"model": "scripted", "health_service": ""}, ""),
    ],
)
async def test_health_is_asked_of_what_the_client_calls(
    kind: Kind, cluster: Cluster, settings: dict[str, object], name: str
) -> None:
    for script in cluster.scripts[1:]:
        await script.health.set(name, NOT_SERVING)
    await cluster.scripts[0].health.set(name, SERVING)
    async with connect(kind, cluster.targets, **settings) as client:
        await encode_all(client, 9)
    assert cluster.calls == [9, 0, 0]


async def test_where_no_server_serves_the_error_says_what_is_not_served(
    kind: Kind, cluster: Cluster, clock: JumpingClock
) -> None:
    async with connect(kind, cluster.targets, model="absent", clock=clock) as client:
        with pytest.raises(UnavailableError, match=r"backend unhealthy; no server says SERVING of 'absent'"):
            await client.call("encode", "a")


@pytest.mark.parametrize("flags", [{}, STREAMED])
async def test_what_one_server_fails_another_answers(
    client: AnyClient, cluster: Cluster, flags: dict[str, bool]
) -> None:
    for failing in cluster.scripts:
        cluster.forget()
        failing.failures.append(unavailable())
        for _ in range(3):
            output = await client.call("encode", "a text", **flags)
            np.testing.assert_array_equal(output["dense_vecs"], dense_of("a text"))
        assert sum(cluster.calls) == 4


async def test_a_unary_call_goes_to_another_server_without_a_wait(
    client: AnyClient, cluster: Cluster, clock: JumpingClock
) -> None:
    cluster.scripts[0].failures.extend([unavailable()] * 5)
    await encode_all(client, 15)
    assert len(cluster.scripts[0].failures) == 0
    assert clock.waits_s == []


@pytest.mark.parametrize("failure", [unavailable(after_messages=2), Ending(after_messages=1)])
async def test_a_stream_that_breaks_is_answered_whole_by_another_server(
    client: AnyClient, cluster: Cluster, failure: Failure | Ending
) -> None:
    for script in cluster.scripts[:2]:
        script.failures.append(failure)
    for text in ("a text", "another", "a third"):
        output = await client.call("encode", text, **STREAMED)
        np.testing.assert_array_equal(output["colbert_vecs"], rows_of(text))
    assert sum(cluster.calls) == 5


@pytest.mark.parametrize(("flags", "sends"), [({}, 6), (STREAMED, 5)])
async def test_resends_of_grpc_and_of_the_client_do_not_multiply(
    client: AnyClient, cluster: Cluster, flags: dict[str, bool], sends: int
) -> None:
    for script in cluster.scripts:
        script.failures.extend([unavailable()] * 30)
    with pytest.raises(UnavailableError):
        await client.call("encode", "a", **flags)
    assert sum(cluster.calls) == sends


async def test_one_attempt_means_one(kind: Kind, cluster: Cluster) -> None:
    for script in cluster.scripts:
        script.failures.append(unavailable())
    async with connect(kind, cluster.targets, retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(UnavailableError):
            await client.call("encode", "a")
    assert sum(cluster.calls) == 1


async def test_another_server_is_tried_before_an_overloaded_one_is_waited_for(
    client: AnyClient, cluster: Cluster, clock: JumpingClock
) -> None:
    cluster.scripts[0].failures.extend([overloaded(60)] * 4)
    await encode_all(client, 12)
    assert len(cluster.scripts[0].failures) == 0
    assert sum(clock.waits_s) == 0


async def test_a_cluster_that_is_overloaded_is_waited_for(
    client: AnyClient, cluster: Cluster, clock: JumpingClock
) -> None:
    for script in cluster.scripts:
        script.failures.append(overloaded(2))
    await encode_all(client, 1)
    assert clock.waits_s == pytest.approx([0, 2, 2])


async def test_without_time_for_overload_no_other_server_is_tried(kind: Kind, cluster: Cluster) -> None:
    for script in cluster.scripts:
        script.failures.append(overloaded(2))
    async with connect(kind, cluster.targets, retry=RetryPolicy(overload_timeout_s=0)) as client:
        with pytest.raises(OverloadedError):
            await client.call("encode", "a")
    assert sum(cluster.calls) == 1


@pytest.mark.parametrize("flags", [{}, STREAMED])
async def test_a_request_that_a_server_does_not_answer_is_sent_to_another_too(
    kind: Kind, cluster: Cluster, flags: dict[str, bool]
) -> None:
    cluster.scripts[0].gate.clear()
    async with connect(kind, cluster.targets, retry=RetryPolicy(hedging_delay_s=0.25), timeout_s=30) as client:
        for number in range(6):
            output = await client.call("encode", f"text {number}", **flags)
            np.testing.assert_array_equal(output["dense_vecs"], dense_of(f"text {number}"))
        await cluster.scripts[0].until_running(0)
    assert cluster.scripts[0].cancelled == len(cluster.scripts[0].requests) > 0


async def test_a_slow_server_is_waited_for_where_no_hedging_is_asked_for(client: AnyClient, cluster: Cluster) -> None:
    for script in cluster.scripts:
        script.gate.clear()
    encoding = asyncio.create_task(client.call("encode", "a"))
    await until(lambda: sum(cluster.calls) == 1)
    for script in cluster.scripts:
        script.gate.set()
    np.testing.assert_array_equal((await encoding)["dense_vecs"], dense_of("a"))
    assert sum(cluster.calls) == 1


async def test_the_first_answer_counts_whichever_send_it_answers(kind: Kind, cluster: Cluster) -> None:
    for script in cluster.scripts:
        script.gate.clear()
    async with connect(kind, cluster.targets, retry=RetryPolicy(hedging_delay_s=0.05), timeout_s=30) as client:
        encoding = asyncio.create_task(client.call("encode", "a"))
        await until(lambda: sum(cluster.calls) >= 2)
        first = next(script for script in cluster.scripts if script.requests)
        first.gate.set()
        np.testing.assert_array_equal((await encoding)["dense_vecs"], dense_of("a"))


async def test_hedges_count_as_attempts_and_what_is_under_way_is_still_waited_for(kind: Kind, cluster: Cluster) -> None:
    for script in cluster.scripts:
        script.gate.clear()
    retry = RetryPolicy(max_attempts=3, hedging_delay_s=0.05)
    async with connect(kind, cluster.targets, retry=retry, timeout_s=60) as client:
        encoding = asyncio.create_task(client.call("encode", "a"))
        await until(lambda: sum(cluster.calls) == 3)
        for script in cluster.scripts:
            script.gate.set()
        np.testing.assert_array_equal((await encoding)["dense_vecs"], dense_of("a"))
    assert sum(cluster.calls) == 3


@pytest.mark.parametrize("overload_timeout_s", [300, 0])
async def test_a_refused_hedge_leaves_the_send_under_way_alone(
    kind: Kind, cluster: Cluster, overload_timeout_s: float
) -> None:
    for script in cluster.scripts:
        script.gate.clear()
    retry = RetryPolicy(hedging_delay_s=0.5, max_attempts=2, overload_timeout_s=overload_timeout_s)
    async with connect(kind, cluster.targets, retry=retry, timeout_s=60) as client:
        encoding = asyncio.create_task(client.call("encode", "a"))
        await until(lambda: sum(cluster.calls) == 1)
        for script in cluster.scripts:
            script.failures.append(overloaded(1))
        await until(lambda: sum(cluster.calls) == 2)
        for script in cluster.scripts:
            script.gate.set()
        np.testing.assert_array_equal((await encoding)["dense_vecs"], dense_of("a"))


async def test_a_refused_hedge_is_followed_by_another_after_the_wait_the_server_asks_for(
    kind: Kind, cluster: Cluster
) -> None:
    """Else a request would be left to the server that is silent."""
    cluster.scripts[0].gate.clear()
    async with connect(kind, cluster.targets, retry=RetryPolicy(hedging_delay_s=0.05), timeout_s=30) as client:
        for number in range(3):
            for script in cluster.scripts[1:]:
                script.failures.append(overloaded(0.1))
            output = await client.call("encode", f"text {number}")
            np.testing.assert_array_equal(output["dense_vecs"], dense_of(f"text {number}"))


async def test_a_fault_of_the_request_is_not_waited_out(kind: Kind, cluster: Cluster) -> None:
    cluster.scripts[0].gate.clear()
    for script in cluster.scripts[1:]:
        script.failures += [Failure(grpc.StatusCode.INVALID_ARGUMENT, "no")] * 6
    async with connect(kind, cluster.targets, retry=RetryPolicy(hedging_delay_s=0.05), timeout_s=30) as client:
        for _ in range(3):
            with pytest.raises(InvalidRequestError):
                await client.call("encode", "a")


async def test_servers_that_all_do_not_answer_get_few_hedges_and_no_request_is_lost(
    kind: Kind, cluster: Cluster
) -> None:
    for script in cluster.scripts:
        script.gate.clear()
    retry = RetryPolicy(max_attempts=1000, hedging_delay_s=0.01)
    async with connect(kind, cluster.targets, retry=retry, timeout_s=60) as client:
        texts = [f"text {number}" for number in range(4)]
        encoding = asyncio.create_task(client.call("encode", texts, batch_size=1))
        await until(lambda: sum(cluster.calls) >= len(texts) + 20)
        for script in cluster.scripts:
            script.gate.set()
        np.testing.assert_array_equal((await encoding)["dense_vecs"], [dense_of(text) for text in texts])
    assert sum(cluster.calls) < len(texts) + HEDGE_RESERVE


async def test_the_less_a_server_is_loaded_the_more_calls_it_gets(kind: Kind, cluster: Cluster) -> None:
    for script, utilization in zip(cluster.scripts, (0.1, 0.1, 0.4), strict=True):
        script.load = Load(utilization, 100)

    async with connect(kind, cluster.targets, balancing="least_loaded") as client:

        async def busy_server_gets_less() -> bool:
            cluster.forget()
            await encode_all(client, 27)
            first, second, busy = cluster.calls
            return busy <= 4 and abs(first - second) <= 2

        async with asyncio.timeout(30):
            while not await busy_server_gets_less():
                pass


async def test_without_load_reports_least_loaded_is_round_robin(kind: Kind, cluster: Cluster) -> None:
    async with connect(kind, cluster.targets, balancing="least_loaded") as client:
        await use_all(client, cluster)
        await encode_all(client, 30)
    assert max(cluster.calls) - min(cluster.calls) <= 1


async def test_a_server_that_goes_and_comes_back_gets_calls_again(kind: Kind, cluster: Cluster) -> None:
    fourth = Script()
    async with serve(fourth) as target:
        connecting = connect(kind, [*cluster.targets, target])
        client = await connecting.__aenter__()
        await use_all(client, Cluster([*cluster.scripts, fourth], []))
    await encode_all(client, 8)
    assert fourth.requests == []
    async with serve(fourth, port=int(target.rpartition(":")[2])), asyncio.timeout(30):
        while not fourth.requests:
            await encode_all(client, 1)
        await connecting.__aexit__(None, None, None)


async def test_health_and_models_are_those_of_a_server_that_serves(client: AnyClient, cluster: Cluster) -> None:
    assert await client.call("health") is ServingStatus.SERVING
    assert [model.name for model in await client.call("list_models", ready_only=True)] == ["scripted"]


async def test_hosts_in_a_list_are_looked_up(kind: Kind, cluster: Cluster) -> None:
    ports = [target.rpartition(":")[2] for target in cluster.targets]
    async with connect(kind, [f"localhost:{ports[0]}", *cluster.targets[1:]]) as client:
        await use_all(client, cluster)


async def test_addresses_of_both_families_stand_in_one_list(kind: Kind, cluster: Cluster) -> None:
    sixth = Script()
    async with serve(sixth, host="[::1]") as target, connect(kind, [*cluster.targets, target]) as client:
        await use_all(client, Cluster([*cluster.scripts, sixth], []))


async def test_a_host_that_is_not_known_is_named(kind: Kind, cluster: Cluster) -> None:
    with pytest.raises(OSError, match=r"^target nowhere\.invalid:1: "):
        async with connect(kind, [*cluster.targets, "nowhere.invalid:1"]) as client:
            await client.call("encode", "a")


async def test_all_addresses_of_a_dns_name_are_balanced(kind: Kind, cluster: Cluster) -> None:
    port = int(cluster.targets[0].rpartition(":")[2])
    two = Cluster([cluster.scripts[0], Script()], [])
    async with serve(two.scripts[1], host="[::1]", port=port), connect(kind, f"dns:///localhost:{port}") as client:
        await use_all(client, two)
        await encode_all(client, 20)
        assert two.calls == [10, 10]


async def test_a_list_in_grpcs_own_form_is_balanced(kind: Kind, cluster: Cluster) -> None:
    async with connect(kind, f"ipv4:{','.join(cluster.targets)}") as client:
        await use_all(client, cluster)
        await encode_all(client, 30)
    assert cluster.calls == [10, 10, 10]


async def test_a_dns_name_is_health_checked(kind: Kind, cluster: Cluster) -> None:
    await cluster.scripts[0].health.set(SERVICE, NOT_SERVING)
    port = cluster.targets[0].rpartition(":")[2]
    async with connect(kind, f"dns:///localhost:{port}", retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(UnavailableError, match="connections to all backends failing"):
            await client.call("encode", "a")
    assert cluster.scripts[0].requests == []


@pytest.mark.parametrize("scheme", ["", "ipv4:"])
async def test_one_target_is_neither_balanced_nor_health_checked(kind: Kind, cluster: Cluster, scheme: str) -> None:
    await cluster.scripts[0].health.set(SERVICE, NOT_SERVING)
    async with connect(kind, scheme + cluster.targets[0]) as client:
        await encode_all(client, 1)


async def test_tls_to_several_servers_by_the_name_of_their_certificates(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tls = Tls(ca_file=write_authority(tmp_path_factory.mktemp("tls")), server_name=TLS_NAME)
    cluster = Cluster([Script(), Script()], [])
    async with (
        serve(cluster.scripts[0], tls=True) as one,
        serve(cluster.scripts[1], tls=True) as two,
        connect(kind, [one, two], tls=tls) as client,
    ):
        await use_all(client, cluster)


@pytest.mark.parametrize("kind_of_client", KINDS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": []}, "target: none is given"),
        ({"target": ["a:1", "b:2", "a:1"]}, "target: 'a:1' is given twice"),
        ({"target": ["a:1", "dns:///b:2"]}, "target: 'dns:///b:2' cannot stand in a list"),
        ({"target": ["a:1", "b"]}, "target: 'b' is not host:port"),
        ({"target": ["a:1", "b:1"], "tls": Tls()}, "target: several hosts with TLS need the name"),
        ({"target": "a:1", "balancing": "random"}, "balancing: 'random' is none of round_robin, least_loaded"),
        ({"target": "a:1", "retry": None, "token": "x y"}, "token: "),
    ],
)
def test_what_cannot_be_right_of_a_cluster_is_refused(
    kind_of_client: Kind, settings: dict[str, object], message: str
) -> None:
    client_class = TrivecClient if kind_of_client == "blocking" else AsyncTrivecClient
    with pytest.raises(ValueError, match=message):
        client_class(**settings)  # type: ignore[arg-type]


async def test_a_silent_server_of_two_costs_no_request(kind: Kind, cluster: Cluster) -> None:
    """Each hedge takes a turn, too, so that every request begins at the silent one."""
    cluster.scripts[0].gate.clear()
    async with connect(kind, cluster.targets[:2], retry=RetryPolicy(hedging_delay_s=0.02), timeout_s=10) as client:
        for number in range(60):
            await client.call("encode", f"text {number}")


async def test_a_silent_server_costs_none_of_many_requests_at_once(kind: Kind, cluster: Cluster) -> None:
    cluster.scripts[0].gate.clear()
    retry = RetryPolicy(hedging_delay_s=0.5)
    async with connect(kind, cluster.targets, retry=retry, timeout_s=10, max_in_flight=99) as client:
        output = await client.call("encode", [f"text {number}" for number in range(99)], batch_size=1)
        assert len(output["dense_vecs"]) == 99


async def test_a_server_that_answers_nothing_gets_no_more_calls(kind: Kind, cluster: Cluster) -> None:
    """Although its connection lives and its health is good."""
    silent = cluster.scripts[0]
    silent.gate.clear()
    async with connect(kind, cluster.targets, retry=RetryPolicy(hedging_delay_s=0.05), timeout_s=60) as client:
        answered_alone = 0
        async with asyncio.timeout(60):
            while answered_alone < 30:
                before = len(silent.requests)
                await asyncio.gather(*(client.call("encode", f"text {number}") for number in range(10)))
                answered_alone = answered_alone + 10 if len(silent.requests) == before else 0


async def test_servers_that_answer_some_calls_are_not_left_for_those_they_refuse(kind: Kind, cluster: Cluster) -> None:
    """Under load a server refuses most: without it the others would have to refuse more."""
    begun_s = time.monotonic()
    async with connect(kind, cluster.targets, retry=RetryPolicy(max_attempts=1, overload_timeout_s=0)) as client:
        # Longer than gRPC takes to judge.
        while time.monotonic() < begun_s + 1:
            cluster.forget()
            for script in cluster.scripts:
                script.failures.extend([overloaded(1)] * 7 + [None])
            calls = [client.call("encode", f"text {number}") for number in range(24)]
            await asyncio.gather(*calls, return_exceptions=True)
    assert cluster.calls == [8, 8, 8]
