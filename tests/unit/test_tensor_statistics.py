"""What is counted of requests of tensors."""

import asyncio
import time

import pytest
from trivec_server.errors import (
    ComputeError,
    DeadlineExceeded,
    InvalidTensor,
    Overloaded,
    QueueTimeout,
    Unavailable,
)
from trivec_server.metrics.statistics import FailReason, StatisticsSnapshot
from trivec_server.serving.tensors.request import TensorTask
from trivec_server.types import BatchingSettings, QueuePolicy

from tests.scripted_tensors import (
    TensorScript,
)
from tests.tensor_serving import TensorServing, counts, fail_on, floats, serving

BLOCKER = floats([[0.0] * 7])


async def statistics_of(served: TensorServing, *tasks: TensorTask) -> StatisticsSnapshot:
    """What was counted after requests that ran in one batch."""
    async with served.busy(BLOCKER):
        sent = await served.queue(*tasks)
    await asyncio.gather(*sent, return_exceptions=True)
    return served.pipeline.statistics.snapshot()


async def test_each_request_counts_once_and_its_batch_once() -> None:
    async with serving(TensorScript()) as served:
        statistics = await statistics_of(served, floats([[1], [2]]), floats([[3]]))
    compute = statistics.compute
    assert (statistics.inference_count, statistics.execution_count) == (4, 2)
    assert statistics.success.count == statistics.queue.count == 3
    assert compute.compute_input.count == compute.compute_infer.count == compute.compute_output.count == 3
    assert {rows: totals.compute_infer.count for rows, totals in statistics.batches.items()} == {1: 1, 3: 1}
    assert counts(statistics) == {}
    assert statistics.last_inference_ms > 0


async def test_each_request_is_charged_with_all_the_time_of_its_batch() -> None:
    async with serving(TensorScript()) as served:
        statistics = await statistics_of(served, floats([[1], [2]]), floats([[3]]))
    blocker, batch = statistics.batches[1], statistics.batches[3]
    infer = statistics.compute.compute_infer
    assert infer.ns == blocker.compute_infer.ns + 2 * batch.compute_infer.ns
    assert infer.ns > 0
    assert statistics.queue.ns > 0
    assert infer.ns + statistics.queue.ns <= statistics.success.ns


async def test_a_request_that_was_split_for_lack_of_memory_counts_once() -> None:
    async with serving(TensorScript(rows_in_memory=1)) as served:
        statistics = await statistics_of(served, floats([[1], [2], [3]]))
    assert statistics.success.count == statistics.queue.count == statistics.compute.compute_infer.count == 2
    assert (statistics.inference_count, statistics.execution_count) == (4, 4)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("boom"), FailReason.BACKEND),
        (ComputeError("boom"), FailReason.BACKEND),
        (InvalidTensor("boom"), FailReason.OTHER),
    ],
    ids=["unexpected", "backend", "invalid"],
)
async def test_a_request_that_the_engine_fails_on_counts_as_failed_only(error: Exception, reason: FailReason) -> None:
    async with serving(TensorScript(before_run=fail_on(13, error))) as served:
        statistics = await statistics_of(served, floats([[13], [1]]))
    assert counts(statistics) == {reason: 1}
    assert statistics.failures[reason].ns > 0
    assert (statistics.success.count, statistics.inference_count, statistics.execution_count) == (1, 1, 1)


async def test_refused_timed_out_expired_and_cancelled_requests_count_under_tritons_reasons() -> None:
    batching = BatchingSettings(
        max_batch_size=1, queue_policy=QueuePolicy(max_queue_size=1, allow_timeout_override=True)
    )
    async with serving(TensorScript(), batching) as served:
        statistics = served.pipeline.statistics

        async def failed() -> dict[FailReason, int]:
            await served.until_queued(0)
            return counts(statistics.snapshot())

        async with served.busy(BLOCKER):
            (waiting,) = await served.queue(floats([[1]]))
            with pytest.raises(Overloaded):
                await served.pipeline.infer(floats([[2]]))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert await failed() == {FailReason.REJECTED: 1, FailReason.CANCELED: 1}
            with pytest.raises(QueueTimeout):
                await served.pipeline.infer(floats([[3]], timeout_us=1000))
            assert await failed() == {FailReason.REJECTED: 2, FailReason.CANCELED: 1}
            with pytest.raises(DeadlineExceeded):
                await served.pipeline.infer(floats([[4]], deadline=time.monotonic() + 0.001))
            assert await failed() == {FailReason.REJECTED: 2, FailReason.CANCELED: 2}
        await served.pipeline.close()
        with pytest.raises(Unavailable):
            await served.pipeline.infer(floats([[5]]))
        assert counts(statistics.snapshot())[FailReason.OTHER] == 1
        assert statistics.snapshot().success.count == 1
