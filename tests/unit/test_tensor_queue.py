"""Requests of tensors that wait: who goes first, for how long, and what is left of one that goes away."""

import asyncio
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from trivec_server.errors import (
    DeadlineExceeded,
    Overloaded,
    QueueTimeout,
    Unavailable,
)
from trivec_server.settings import Limits
from trivec_server.types import BatchingSettings, QueuePolicy, TimeoutAction

from tests.scripted_tensors import (
    Tensors,
    TensorScript,
)
from tests.tensor_serving import floats, serving

BLOCKER = floats([[0.0] * 7], priority=1)
ONE_ROW = BatchingSettings(max_batch_size=1)
HOUR_US = 3_600_000_000


def policy(**fields: Any) -> BatchingSettings:
    """Batches of one row and a queue policy, which the blocker, on a level of its own, is not under."""
    blockers = {1: QueuePolicy()}
    return replace(
        ONE_ROW,
        priority_levels=2,
        default_priority_level=2,
        queue_policy=QueuePolicy(**fields),
        priority_queue_policies=blockers,
    )


def firsts(script: TensorScript) -> list[float]:
    """The first number of each batch after the blocker's."""
    return [float(batch["x"].flat[0]) for batch in script.batches[1:]]


async def test_a_batch_of_a_preferred_size_does_not_wait_for_the_delay() -> None:
    script = TensorScript()
    batching = BatchingSettings(max_batch_size=8, preferred_batch_sizes=(4, 8), max_queue_delay_us=HOUR_US)
    async with serving(script, batching) as served:
        sent = await served.queue(floats([[1], [2]]), floats([[3]]))
        assert not script.batches
        sent.append(served.start(floats([[4]])))
        await asyncio.gather(*sent)
    assert script.batch_rows == [4]


async def test_after_the_delay_a_smaller_batch_runs() -> None:
    script = TensorScript()
    batching = BatchingSettings(max_batch_size=8, preferred_batch_sizes=(4,), max_queue_delay_us=1000)
    async with serving(script, batching) as served:
        await served.pipeline.infer(floats([[1]]))
    assert script.batch_rows == [1]


async def test_a_shape_that_waits_for_company_holds_up_no_other_shape() -> None:
    script = TensorScript()
    async with serving(script, BatchingSettings(max_batch_size=2, max_queue_delay_us=HOUR_US)) as served:
        (waiting,) = await served.queue(floats([[1, 2]]))
        await served.pipeline.infer(floats([[3], [4]]))
        assert not waiting.done()
        assert script.batch_rows == [2]
        await asyncio.gather(waiting, served.pipeline.infer(floats([[5, 6]])))
    assert script.batch_rows == [2, 2]


async def test_the_lowest_priority_level_is_served_first() -> None:
    script = TensorScript()
    batching = replace(ONE_ROW, priority_levels=3, default_priority_level=2)
    async with serving(script, batching) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[3]], priority=3), floats([[2]]), floats([[1]], priority=1))
        await asyncio.gather(*sent)
    assert firsts(script) == [1, 2, 3]


async def test_a_priority_beyond_the_models_levels_counts_as_the_default() -> None:
    script = TensorScript()
    batching = replace(ONE_ROW, priority_levels=3, default_priority_level=2)
    async with serving(script, batching) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[3]], priority=3), floats([[2]], priority=9), floats([[1]], priority=1))
        await asyncio.gather(*sent)
    assert firsts(script) == [1, 2, 3]
    async with serving(script, ONE_ROW) as served:
        await served.pipeline.infer(floats([[1]], priority=5))


async def test_several_engines_run_batches_at_the_same_time() -> None:
    script = TensorScript()
    async with serving(script, ONE_ROW, instances=2) as served, served.busy(BLOCKER, engines=2):
        assert script.batch_rows == [1, 1]
    assert (script.built, script.closed) == (2, 2)


async def test_no_more_requests_wait_than_max_queue_size() -> None:
    async with serving(TensorScript(), policy(max_queue_size=2)) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[1]]), floats([[2]]))
            with pytest.raises(Overloaded, match=r"2 requests wait; the model's max_queue_size is 2"):
                await served.pipeline.infer(floats([[3]]))
        await asyncio.gather(*sent)
        await served.pipeline.infer(floats([[3]]))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(max_queued_texts=3), "1 rows are under way; the limit is 3"),
        (Limits(max_queued_tokens=2), "2 rows wait; the limit is 2"),
        (Limits(max_queued_bytes=40), "28 bytes are under way; the limit is 40"),
        (Limits(max_held_bytes=40), "results of 28 bytes are held; the limit is 40"),
    ],
    ids=["rows", "queued", "bytes", "results"],
)
async def test_work_past_a_limit_is_refused_while_other_work_is_under_way(limits: Limits, message: str) -> None:
    large = floats([[1], [2], [3], [4]])
    async with serving(TensorScript(), limits=limits) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[1], [2]])) if "2 rows wait" in message else []
            with pytest.raises(Overloaded, match=message):
                await served.pipeline.infer(large)
        await asyncio.gather(*sent)
        assert len((await served.pipeline.infer(large)).outputs["same"]) == 4


async def test_the_queues_timeout_rejects_what_waits_while_the_engine_is_busy() -> None:
    script = TensorScript()
    async with serving(script, policy(timeout_us=1000)) as served, served.busy(BLOCKER):
        with pytest.raises(QueueTimeout, match="1000 us"):
            await served.pipeline.infer(floats([[1]]))
        assert not script.gate.is_set()
        await served.until_queued(0)
    assert script.batch_rows == [1]


@pytest.mark.parametrize("default_us", [0, HOUR_US])
async def test_a_request_may_shorten_its_timeout_where_the_policy_allows_it(default_us: int) -> None:
    """Unlike in Triton also where the model has none itself."""
    batching = policy(timeout_us=default_us, allow_timeout_override=True)
    async with serving(TensorScript(), batching) as served, served.busy(BLOCKER):
        with pytest.raises(QueueTimeout, match="1000 us"):
            await served.pipeline.infer(floats([[1]], timeout_us=1000))


async def test_a_request_may_not_lengthen_its_timeout() -> None:
    batching = policy(timeout_us=1000, allow_timeout_override=True)
    async with serving(TensorScript(), batching) as served, served.busy(BLOCKER):
        with pytest.raises(QueueTimeout, match="1000 us"):
            await served.pipeline.infer(floats([[1]], timeout_us=HOUR_US))


async def test_a_requests_timeout_counts_for_nothing_where_the_policy_does_not_allow_it() -> None:
    batching = replace(
        ONE_ROW, priority_levels=2, priority_queue_policies={2: QueuePolicy(allow_timeout_override=True)}
    )
    async with serving(TensorScript(), batching) as served:
        async with served.busy(BLOCKER):
            (first,) = await served.queue(floats([[1]], priority=1, timeout_us=1000))
            with pytest.raises(QueueTimeout):
                await served.pipeline.infer(floats([[2]], priority=2, timeout_us=1000))
            assert not first.done()
        await first


async def test_with_delay_a_request_whose_timeout_passed_goes_after_the_others_of_its_level() -> None:
    script = TensorScript()
    delaying = QueuePolicy(timeout_action=TimeoutAction.DELAY, timeout_us=HOUR_US, allow_timeout_override=True)
    batching = replace(ONE_ROW, priority_levels=2, queue_policy=delaying)
    async with serving(script, batching) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(
                floats([[1]], priority=1, timeout_us=1), floats([[2]], priority=1), floats([[3]], priority=2)
            )
        await asyncio.gather(*sent)
    assert firsts(script) == [2, 1, 3]


async def test_a_deadline_ends_the_wait_and_the_work() -> None:
    script = TensorScript()
    async with serving(script, ONE_ROW) as served, served.busy(BLOCKER):
        with pytest.raises(DeadlineExceeded) as caught:
            await served.pipeline.infer(floats([[1]], deadline=time.monotonic() + 0.001))
        assert not isinstance(caught.value, QueueTimeout)
        await served.until_queued(0)
    assert script.batch_rows == [1]


async def test_a_request_cancelled_in_the_queue_is_not_computed_and_disturbs_nobody() -> None:
    script = TensorScript()
    async with serving(script) as served:
        async with served.busy(BLOCKER):
            first, doomed, last = await served.queue(floats([[1]]), floats([[2]]), floats([[3]]))
            doomed.cancel()
            await served.until_queued(2)
        results = await asyncio.gather(first, last)
        assert served.metric("trivec_dropped_requests_total") == 1
        assert served.pipeline.pending_requests == 0
    assert script.batches[1]["x"].tolist() == [[1], [3]]
    assert [result.outputs["same"].tolist() for result in results] == [[[1]], [[3]]]


async def test_a_request_cancelled_in_the_engine_disturbs_nobody() -> None:
    held = threading.Event()

    def run(inputs: Tensors) -> None:
        if len(inputs["x"]) == 2:
            held.wait()

    script = TensorScript(before_run=run)
    async with serving(script) as served:
        async with served.busy(BLOCKER):
            kept, doomed = await served.queue(floats([[1]]), floats([[2]]))
        await asyncio.to_thread(script.entered.acquire)
        doomed.cancel()
        await asyncio.gather(doomed, return_exceptions=True)
        held.set()
        assert (await kept).outputs["same"].tolist() == [[1]]
        assert doomed.cancelled()
        assert served.pipeline.pending_requests == 0


async def test_closing_waits_until_nobody_uses_the_version_and_then_finishes_what_is_under_way() -> None:
    script = TensorScript()
    async with serving(script) as served:
        pipeline = served.pipeline
        with pipeline.in_use():
            closing = asyncio.ensure_future(pipeline.close())
            assert (await pipeline.infer(floats([[1]]))).outputs["same"].tolist() == [[1]]
            script.entered.acquire()
            script.gate.clear()
            sent = served.start(floats([[2]]))
            await asyncio.to_thread(script.entered.acquire)
            assert not closing.done()
        script.gate.set()
        assert (await sent).outputs["same"].tolist() == [[2]]
        await closing
        with pytest.raises(Unavailable):
            await pipeline.infer(floats([[1]]))
    assert script.closed == 1


async def test_while_a_version_is_closed_nothing_waits_for_company() -> None:
    script = TensorScript()
    async with serving(script, BatchingSettings(max_queue_delay_us=HOUR_US)) as served:
        with served.pipeline.in_use():
            (waiting,) = await served.queue(floats([[1]]))
            closing = asyncio.ensure_future(served.pipeline.close())
            assert (await waiting).outputs["same"].tolist() == [[1]]
            assert (await served.pipeline.infer(floats([[2]]))).outputs["same"].tolist() == [[2]]
        await closing


async def test_a_version_that_is_taken_into_use_again_at_the_last_moment_is_not_closed() -> None:
    script = TensorScript()
    async with serving(script) as served:
        first = served.pipeline.in_use()
        first.__enter__()
        closing = asyncio.ensure_future(served.pipeline.close())
        await asyncio.sleep(0)
        first.__exit__(None, None, None)
        with served.pipeline.in_use():
            # `closing` is woken, and must see that it is too late.
            for _ in range(3):
                await asyncio.sleep(0)
            assert (await served.pipeline.infer(floats([[1]]))).outputs["same"].tolist() == [[1]]
        await closing
    assert script.closed == 1


async def test_no_thread_is_left_after_closing() -> None:
    async with serving(TensorScript(), instances=3) as served:
        await served.pipeline.infer(floats([[1]]))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("engine", "tokenizer"))]
