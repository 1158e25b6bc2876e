"""
What the client does when calls fail: which it sends again, when, and how often. Each test holds for both clients.

Time is a clock that jumps by each wait, so that nothing here waits; `random` is what the test sets.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2
from trivec.v1 import embedding_pb2 as pb
from trivec_client import (
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
    TrivecClientError,
    UnavailableError,
)
from trivec_client.errors import STATUS_DETAILS_KEY
from trivec_client.retry import HEDGE_RESERVE, Attempts, HedgeBudget

from tests.rpc.client_calls import KINDS, AnyClient, Kind, connect
from tests.rpc.jumping_clock import AsyncJumpingClock, JumpingClock
from tests.rpc.scripted_server import Ending, Failure, Script, dense_of, overloaded, rows_of, serve, unavailable

POLICY = RetryPolicy(max_attempts=5, initial_backoff_s=0.1, max_backoff_s=0.4, multiplier=2, jitter=0.5)
STREAMED = {"return_colbert_vecs": True}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
async def script() -> Script:
    return Script()


@pytest.fixture
async def target(script: Script) -> AsyncIterator[str]:
    async with serve(script) as address:
        yield address


@pytest.fixture
def clock(kind: Kind) -> JumpingClock:
    return AsyncJumpingClock() if kind == "asyncio" else JumpingClock()


@pytest.fixture
async def client(kind: Kind, target: str, clock: JumpingClock) -> AsyncIterator[AnyClient]:
    async with connect(kind, target, clock=clock, retry=POLICY) as connected:
        yield connected


async def test_unavailable_is_tried_again_after_longer_and_longer_waits(
    client: AnyClient, script: Script, clock: JumpingClock
) -> None:
    script.failures.extend([unavailable()] * 4)
    output = await client.call("encode", "a")
    np.testing.assert_array_equal(output["dense_vecs"], dense_of("a"))
    assert clock.waits_s == pytest.approx([0.1, 0.2, 0.4, 0.4])


async def test_jitter_makes_waits_longer_by_its_share(client: AnyClient, script: Script, clock: JumpingClock) -> None:
    clock.chance = 0.5
    script.failures.extend([unavailable()] * 2)
    await client.call("encode", "a")
    assert clock.waits_s == pytest.approx([0.125, 0.25])


async def test_unavailable_ends_the_call_after_max_attempts(
    client: AnyClient, script: Script, clock: JumpingClock
) -> None:
    script.failures.extend([unavailable()] * 9)
    with pytest.raises(UnavailableError, match="going away") as caught:
        await client.call("encode", "a")
    assert len(script.requests) == 5
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(caught.value.rpc_error, grpc.RpcError)


async def test_all_tries_of_a_request_bear_one_id(client: AnyClient, script: Script) -> None:
    script.failures.extend([unavailable()] * 3)
    await client.call("encode", "a")
    ids = {request.request_id for request in script.requests}  # type: ignore[attr-defined]
    assert len(ids) == 1
    assert "" not in ids


async def test_the_servers_hint_is_waited_for(client: AnyClient, script: Script, clock: JumpingClock) -> None:
    script.failures.extend([overloaded(2.5), overloaded(0.01)])
    await client.call("encode", "a")
    assert clock.waits_s == pytest.approx([2.5, 0.2])


async def test_overload_is_not_counted_against_max_attempts(
    client: AnyClient, script: Script, clock: JumpingClock
) -> None:
    script.failures.extend([overloaded(1)] * 20)
    await client.call("encode", "a")
    assert len(clock.waits_s) == 20


async def test_overload_ends_the_call_after_overload_timeout_s(
    kind: Kind, target: str, script: Script, clock: JumpingClock
) -> None:
    script.failures.extend([overloaded(1)] * 20)
    async with connect(kind, target, clock=clock, retry=RetryPolicy(overload_timeout_s=3)) as client:
        with pytest.raises(OverloadedError, match="RESOURCE_EXHAUSTED: queue full") as caught:
            await client.call("encode", "a")
    assert clock.waits_s == pytest.approx([1, 1, 1])
    assert caught.value.retry_after_s == 1


@pytest.mark.parametrize("flags", [{}, STREAMED])
async def test_a_call_that_the_server_cancels_is_tried_again(
    client: AnyClient, script: Script, clock: JumpingClock, flags: dict[str, bool]
) -> None:
    """As gRPC's servers do, while they stop, with calls that no handler has seen yet."""
    script.failures.append(Failure(grpc.StatusCode.CANCELLED))
    await client.call("encode", "a", **flags)
    assert len(clock.waits_s) == 1


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    ],
)
async def test_other_failures_are_not_tried_again(
    client: AnyClient, script: Script, clock: JumpingClock, code: grpc.StatusCode
) -> None:
    script.failures.append(Failure(code))
    with pytest.raises(TrivecClientError, match=f"{code.name}: scripted") as caught:
        await client.call("encode", "a")
    assert caught.value.code is code
    assert clock.waits_s == []


async def test_a_policy_of_one_attempt_never_tries_again(
    kind: Kind, target: str, script: Script, clock: JumpingClock
) -> None:
    script.failures.append(unavailable())
    policy = RetryPolicy(max_attempts=1, overload_timeout_s=0)
    async with connect(kind, target, clock=clock, retry=policy) as client:
        with pytest.raises(UnavailableError):
            await client.call("encode", "a")
        script.failures.append(overloaded(1))
        with pytest.raises(OverloadedError):
            await client.call("encode", "a")
    assert clock.waits_s == []


async def test_a_violation_is_named_by_the_callers_index(kind: Kind, target: str, script: Script) -> None:
    script.failures.extend([None, Failure(grpc.StatusCode.INVALID_ARGUMENT, "too long", field="texts[3]")])
    async with connect(kind, target, batch_size=10, max_in_flight=1) as client:
        with pytest.raises(InvalidRequestError, match=r"texts\[13\]: too long") as caught:
            await client.call("encode", ["a"] * 20)
    assert caught.value.violations[0].field == "texts[13]"
    assert caught.value.request_id == script.requests[1].request_id  # type: ignore[attr-defined]


async def test_a_wait_past_the_deadline_is_not_begun(client: AnyClient, script: Script, clock: JumpingClock) -> None:
    script.failures.extend([overloaded(4)] * 5)
    with pytest.raises(OverloadedError):
        await client.call("encode", "a", timeout_s=10.0)
    assert clock.waits_s == pytest.approx([4, 4])


async def test_one_deadline_bounds_all_requests_of_a_call(
    kind: Kind, target: str, script: Script, clock: JumpingClock
) -> None:
    script.failures.extend([overloaded(4)] * 5)
    async with connect(kind, target, clock=clock, batch_size=1, max_in_flight=1) as client:
        with pytest.raises(OverloadedError):
            await client.call("encode", ["a", "b"], timeout_s=10.0)
    assert sum(clock.waits_s) < 10


async def test_a_deadline_in_encode_stream_is_each_requests_own(
    kind: Kind, target: str, script: Script, clock: JumpingClock
) -> None:
    script.failures.extend([overloaded(4), overloaded(4), None] * 3)
    async with connect(kind, target, clock=clock, batch_size=1, max_in_flight=1, retry=POLICY) as client:
        results = await client.call("encode_stream", ["a", "b", "c"], timeout_s=10.0)
    assert len(results) == 3
    assert sum(clock.waits_s) == pytest.approx(24)


async def test_an_answer_that_does_not_come_is_a_deadline_exceeded(kind: Kind, target: str, script: Script) -> None:
    script.gate.clear()
    async with connect(kind, target) as client:
        with pytest.raises(DeadlineExceededError, match=f"DEADLINE_EXCEEDED: {target}: "):
            await client.call("encode", "a", timeout_s=0.05)
        await script.until_running(0)


async def test_a_stream_that_breaks_is_sent_again_from_its_beginning(
    client: AnyClient, script: Script, clock: JumpingClock
) -> None:
    script.failures.extend([unavailable(after_messages=3), unavailable(after_messages=1)])
    output = await client.call("encode", ["a text", "another"], **STREAMED)
    for text, rows in zip(["a text", "another"], output["colbert_vecs"], strict=True):
        np.testing.assert_array_equal(rows, rows_of(text))
    assert clock.waits_s == pytest.approx([0.1, 0.2])


async def test_only_unfinished_requests_are_sent_again(kind: Kind, target: str, script: Script) -> None:
    script.failures.extend([None, unavailable(after_messages=1), None])
    async with connect(kind, target, batch_size=1, max_in_flight=1, retry=RetryPolicy(initial_backoff_s=0)) as client:
        await client.call("encode", ["one", "two", "three"], **STREAMED)
    sent = [request.texts[0] for request in script.requests]  # type: ignore[attr-defined]
    assert sent == ["one", "two", "two", "three"]


async def test_a_stream_without_its_end_is_sent_again(client: AnyClient, script: Script, clock: JumpingClock) -> None:
    script.failures.append(Ending(after_messages=2))
    output = await client.call("encode", "a text", **STREAMED)
    np.testing.assert_array_equal(output["colbert_vecs"], rows_of("a text"))
    assert len(clock.waits_s) == 1


async def test_an_error_inside_a_stream_is_treated_as_one_of_the_call(
    client: AnyClient, script: Script, clock: JumpingClock
) -> None:
    queue_full = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=3, in_stream=True, after_messages=1)
    script.failures.append(queue_full)
    output = await client.call("encode", "a text", **STREAMED)
    np.testing.assert_array_equal(output["colbert_vecs"], rows_of("a text"))
    assert clock.waits_s == pytest.approx([3])
    script.failures.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, "too long", field="texts[0]", in_stream=True))
    with pytest.raises(InvalidRequestError, match=r"texts\[0\]: too long"):
        await client.call("encode", "a text", **STREAMED)


async def test_scores_are_tried_again_too(client: AnyClient, script: Script, clock: JumpingClock) -> None:
    script.failures.append(unavailable())
    assert len(await client.call("score", "a query", ["a", "b"])) == 2
    assert len(clock.waits_s) == 1


async def test_a_server_that_comes_back_on_its_port_is_found_again(kind: Kind, script: Script) -> None:
    async with serve(script) as target:
        client_context = connect(kind, target, retry=RetryPolicy(max_attempts=50, max_backoff_s=0.2))
        client = await client_context.__aenter__()
        await client.call("encode", "a")
    encoding = asyncio.create_task(client.call("encode", "b"))
    async with serve(script, port=int(target.rpartition(":")[2])):
        np.testing.assert_array_equal((await encoding)["dense_vecs"], dense_of("b"))
        await client_context.__aexit__(None, None, None)


async def test_a_failure_ends_the_other_requests_of_the_call(kind: Kind) -> None:
    class OthersHang(Script):
        async def Embed(self, request: pb.EmbedRequest, context: object) -> pb.EmbedResponse:  # noqa: N802
            if request.texts[0] == "bad":
                await self.until_running(2)
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")  # type: ignore[attr-defined]
            self.gate.clear()
            return await super().Embed(request, context)  # type: ignore[arg-type]

    script = OthersHang()
    async with serve(script) as target, connect(kind, target, batch_size=1, max_in_flight=3) as client:
        with pytest.raises(InvalidRequestError, match="bad"):
            await client.call("encode", ["bad", "a", "b"])
        await script.until_running(0)
    assert script.cancelled == 2


@pytest.mark.parametrize("flags", [{}, STREAMED])
async def test_closing_the_client_ends_calls_under_way(
    kind: Kind, target: str, script: Script, flags: dict[str, bool]
) -> None:
    script.gate.clear()
    async with connect(kind, target) as client:
        encoding = asyncio.create_task(client.call("encode", "a", **flags))
        await script.until_running(1)
    with pytest.raises(TrivecClientError, match="CANCELLED"):
        await encoding


async def test_a_closed_client_says_so(kind: Kind, target: str) -> None:
    async with connect(kind, target) as client:
        await client.call("encode", "a")
    with pytest.raises(ValueError, match="the client is closed"):
        await client.call("encode", "a")


@pytest.mark.parametrize("details", [b"\xff\xff", status_pb2.Status(code=3, message="other").SerializeToString()])
async def test_unreadable_details_leave_the_plain_status(kind: Kind, details: bytes) -> None:
    class Proxy(Script):
        async def Embed(self, request: pb.EmbedRequest, context: object) -> pb.EmbedResponse:  # noqa: N802
            trailing = ((STATUS_DETAILS_KEY, details),)
            await context.abort(  # type: ignore[attr-defined]
                grpc.StatusCode.PERMISSION_DENIED, "not you", trailing_metadata=trailing
            )
            raise AssertionError

    async with serve(Proxy()) as target, connect(kind, target) as client:
        with pytest.raises(TrivecClientError, match="PERMISSION_DENIED: not you"):
            await client.call("encode", "a")


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("max_attempts", 0),
        ("multiplier", 0.5),
        ("jitter", -1),
        ("initial_backoff_s", -1),
        ("overload_timeout_s", -1),
        ("hedging_delay_s", 0),
        ("hedge_share", -1),
    ],
)
def test_a_policy_that_cannot_be_right_is_refused(field_name: str, value: float) -> None:
    with pytest.raises(ValueError, match=field_name):
        RetryPolicy(**{field_name: value})  # type: ignore[arg-type]


def hedges(budget: HedgeBudget, requests: Iterable[tuple[bool, bool]]) -> int:
    """How many hedges there are for these requests, of each of which the send, and then its hedge, is late or not."""
    count = 0
    for is_late, hedge_is_late in requests:
        attempts = Attempts(
            RetryPolicy(hedging_delay_s=0.1), budget, deadline_s=None, now_s=lambda: 0.0, random=lambda: 0.0
        )
        has_hedge = is_late and attempts.hedge()
        has_second = has_hedge and hedge_is_late and attempts.hedge()
        count += has_hedge + has_second
        is_latest = not has_second and (has_hedge or not is_late)
        assert attempts.is_decided_by(None, is_latest=is_latest, has_others=False)
    return count


def test_while_one_of_three_servers_is_silent_every_late_request_is_hedged() -> None:
    requests = [(number % 3 == 0, False) for number in range(150)]
    assert hedges(HedgeBudget(0.1), requests) == 50


def test_while_all_servers_are_slow_few_requests_are_hedged() -> None:
    """And as soon as they are not, hedging goes on."""
    budget = HedgeBudget(0.1)
    assert hedges(budget, [(True, True)] * 1000) < HEDGE_RESERVE
    assert hedges(budget, [(False, False)] * 100 + [(True, False)]) == 1


def test_there_are_no_more_hedges_than_their_share_of_the_requests() -> None:
    requests = [(True, False), (False, False)] * 500
    assert hedges(HedgeBudget(0), requests) == HEDGE_RESERVE
    assert hedges(HedgeBudget(0.1), requests) == pytest.approx(HEDGE_RESERVE + 100, abs=2)


def test_a_hedge_is_counted_once() -> None:
    """Two sends that gRPC sent twice each: one more than that is the fifth."""
    attempts = Attempts(
        RetryPolicy(max_attempts=5, hedging_delay_s=0.1),
        HedgeBudget(0.1),
        deadline_s=None,
        now_s=lambda: 0.0,
        random=lambda: 0.0,
        sends_per_try=2,
    )
    gone = UnavailableError(grpc.StatusCode.UNAVAILABLE, "gone")
    assert attempts.hedge()
    assert not attempts.is_decided_by(gone, is_latest=True, has_others=True)
    assert attempts.delay_s(gone) > 0
    with pytest.raises(UnavailableError):
        attempts.delay_s(gone)
