"""Requests of tensors through queue and engines: each gets its own rows, whoever its neighbours are."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trivec_server.backends.interface import EngineLost
from trivec_server.errors import (
    ComputeError,
    DeadlineExceeded,
    InvalidTensor,
    Overloaded,
    QueueTimeout,
    Unavailable,
)
from trivec_server.metrics.statistics import FailReason, StatisticsSnapshot
from trivec_server.serving.engine_roster import EngineCounts
from trivec_server.serving.tensors.request import TensorTask
from trivec_server.settings import Limits
from trivec_server.types import BatchingSettings, QueuePolicy, TimeoutAction

from tests.scripted_tensors import (
    Tensors,
    TensorScript,
    identity,
    row_functions,
    sum_and_difference,
    without_batch_dimension,
)
from tests.tensor_serving import TensorServing, floats, serving, task_of, until

BLOCKER = floats([[0.0] * 7])
ONE_ROW = BatchingSettings(max_batch_size=1)
HOUR_US = 3_600_000_000


def policy(**fields: Any) -> BatchingSettings:
    """Batches of one row and a queue policy."""
    return replace(ONE_ROW, queue_policy=QueuePolicy(**fields))


def firsts(script: TensorScript) -> list[float]:
    """The first number of each batch after the blocker's."""
    return [float(batch["x"].flat[0]) for batch in script.batches[1:]]


def counts(statistics: StatisticsSnapshot) -> dict[FailReason, int]:
    return {reason: total.count for reason, total in statistics.failures.items() if total.count}


# --- what runs together


async def test_requests_of_equal_shapes_run_together_and_each_gets_its_rows() -> None:
    script = TensorScript()
    tasks = [floats([[1, 2]]), floats([[3, 4], [5, 6]]), floats([[7, 8]])]
    async with serving(script) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(*tasks)
        results = await asyncio.gather(*sent)
    assert script.batch_rows == [1, 4]
    for task, result in zip(tasks, results, strict=True):
        assert result.outputs["same"].tolist() == task.inputs["x"].tolist()


async def test_requests_of_different_shapes_do_not_run_together() -> None:
    script = TensorScript()
    async with serving(script) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[1, 2]]), floats([[3, 4, 5]]), floats([[6, 7]]))
        results = await asyncio.gather(*sent)
    assert sorted(batch["x"].shape for batch in script.batches[1:]) == [(1, 3), (2, 2)]
    assert results[1].outputs["same"].tolist() == [[3, 4, 5]]


async def test_where_an_input_may_be_ragged_shapes_are_padded_with_zeros_and_cut_back() -> None:
    script = TensorScript(row_functions(allow_ragged=True))
    outputs = ("same", "total")
    async with serving(script) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[1, 2]], outputs), floats([[3, 4, 5], [6, 7, 8]], outputs))
        short, long = [result.outputs for result in await asyncio.gather(*sent)]
    assert script.batches[1]["x"].tolist() == [[1, 2, 0], [3, 4, 5], [6, 7, 8]]
    assert (short["same"].tolist(), short["total"].tolist()) == ([[1, 2]], [[3]])
    assert (long["same"].tolist(), long["total"].tolist()) == ([[3, 4, 5], [6, 7, 8]], [[12], [21]])


async def test_strings_of_different_shapes_are_padded_with_empty_ones() -> None:
    script = TensorScript(identity("BYTES", allow_ragged=True))
    first, second = np.array([[b"a", b"bc"]], object), np.array([[b"def"]], object)
    async with serving(script) as served:
        async with served.busy(task_of({"x": first}, ["y"])):
            sent = await served.queue(task_of({"x": first}, ["y"]), task_of({"x": second}, ["y"]))
        results = await asyncio.gather(*sent)
    assert script.batches[1]["x"].tolist() == [[b"a", b"bc"], [b"def", b""]]
    assert [result.outputs["y"].tolist() for result in results] == [[[b"a", b"bc"]], [[b"def"]]]


async def test_requests_with_different_sets_of_inputs_do_not_run_together() -> None:
    script = TensorScript(sum_and_difference(width=2, optional=True))
    both = task_of({"INPUT0": np.array([[5, 6]], np.int32), "INPUT1": np.array([[1, 2]], np.int32)}, ["OUTPUT1"])
    one = task_of({"INPUT0": np.array([[7, 8]], np.int32)}, ["OUTPUT1"])
    async with serving(script) as served:
        async with served.busy(both):
            sent = await served.queue(both, one, both)
        results = await asyncio.gather(*sent)
    assert sorted((len(batch), rows) for batch, rows in zip(script.batches, script.batch_rows, strict=True)) == [
        (1, 1), (2, 1), (2, 2),
    ]  # fmt: skip
    assert [result.outputs["OUTPUT1"].tolist() for result in results] == [[[4, 4]], [[7, 8]], [[4, 4]]]


async def test_without_joining_each_request_is_a_batch_of_its_own_and_waits_for_nobody() -> None:
    script = TensorScript()
    async with serving(script, BatchingSettings(joins_requests=False, max_queue_delay_us=HOUR_US)) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[1], [2]]), floats([[3]]), floats([[4]]))
        await asyncio.gather(*sent)
    assert sorted(script.batch_rows[1:]) == [1, 1, 2]


async def test_a_model_without_a_batch_dimension_gets_each_requests_arrays_as_they_are() -> None:
    script = TensorScript(without_batch_dimension(identity(shape=())))
    async with serving(script, BatchingSettings(max_batch_size=0)) as served:
        tasks = [task_of({"x": np.arange(size, dtype=np.float32)}, ["y"], rows=1) for size in (3, 3, 0)]
        results = await asyncio.gather(*map(served.pipeline.infer, tasks))
    assert sorted(batch["x"].shape for batch in script.batches) == [(0,), (3,), (3,)]
    assert [result.outputs["y"].tolist() for result in results] == [[0, 1, 2], [0, 1, 2], []]


async def test_only_the_outputs_that_a_request_of_the_batch_asks_for_are_computed() -> None:
    script = TensorScript()
    async with serving(script) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[1, 2]], ["total"]), floats([[3, 4]], ["batch_rows", "total"]))
        first, second = await asyncio.gather(*sent)
    assert set(script.asked[1]) == {"total", "batch_rows"}
    assert list(first.outputs) == ["total"]
    assert list(second.outputs) == ["batch_rows", "total"]


async def test_no_batch_has_more_rows_than_max_batch_size() -> None:
    script = TensorScript()
    async with serving(script, BatchingSettings(max_batch_size=4)) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(*(floats([[number]] * 3) for number in range(5)))
        await asyncio.gather(*sent)
    assert script.batch_rows == [1, 3, 3, 3, 3, 3]


# --- how long it waits, and who goes first


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


# --- limits, timeouts, cancellation


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
    batching = replace(
        policy(timeout_action=TimeoutAction.DELAY, timeout_us=HOUR_US, allow_timeout_override=True), priority_levels=2
    )
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


# --- memory and faults


async def test_a_batch_that_does_not_fit_into_memory_is_split_down_to_rows_of_requests() -> None:
    script = TensorScript(rows_in_memory=2)
    tasks = [floats([[1, 1]] * 3, ["same", "total"]), floats([[number, 2] for number in range(5)], ["total"])]
    async with serving(script) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(*tasks)
        first, second = await asyncio.gather(*sent)
        assert served.metric("trivec_batch_splits_total") > 0
    assert first.outputs["same"].tolist() == [[1, 1]] * 3
    assert second.outputs["total"].tolist() == [[2], [3], [4], [5], [6]]


async def test_parts_of_a_request_whose_outputs_differ_in_shape_fail_with_a_hint() -> None:
    """As where an output's size depends on the numbers."""

    def alter(outputs: Tensors) -> Tensors:
        return {"same": outputs["same"][:, : int(outputs["same"].max())]}

    script = TensorScript(rows_in_memory=1, alter=alter)
    async with serving(script) as served:
        with pytest.raises(ComputeError, match="differ in shape; send fewer rows"):
            await served.pipeline.infer(floats([[1, 1], [2, 2]]))
        statistics = served.pipeline.statistics.snapshot()
    assert (statistics.success.count, counts(statistics)) == (0, {FailReason.BACKEND: 1})


async def test_where_all_rows_are_alike_the_next_batches_are_smaller_at_once() -> None:
    script = TensorScript(sum_and_difference(width=2), rows_in_memory=2)
    row = np.ones((1, 2), np.int32)
    task = task_of({"INPUT0": row, "INPUT1": row}, ["OUTPUT0"])
    async with serving(script, BatchingSettings(max_batch_size=4)) as served:
        for _ in range(2):
            async with served.busy(task):
                sent = await served.queue(*[task] * 4)
            await asyncio.gather(*sent)
        assert served.metric("trivec_batch_token_budget") == 2
    assert script.batch_rows == [1, 4, 2, 2, 1, 3, 1, 2, 1]


async def test_where_rows_differ_in_size_one_batch_too_large_makes_no_other_smaller() -> None:
    script = TensorScript()

    def run(inputs: Tensors) -> None:
        if inputs["x"].size > 100:
            raise MemoryError

    script.before_run = run
    async with serving(script, BatchingSettings(max_batch_size=4)) as served:
        await served.pipeline.infer(floats([[1.0] * 50] * 4))
        async with served.busy(BLOCKER):
            sent = await served.queue(*[floats([[1.0]])] * 4)
        await asyncio.gather(*sent)
    assert script.batch_rows == [4, 2, 2, 1, 4]


@pytest.mark.parametrize("max_batch_size", [0, 8])
async def test_what_does_not_fit_into_memory_alone_fails_alone(max_batch_size: int) -> None:
    model = row_functions() if max_batch_size else without_batch_dimension(identity(shape=(-1,)))
    outputs = ("same",) if max_batch_size else ("y",)

    def run(inputs: Tensors) -> None:
        if inputs["x"].max() == 13:
            raise MemoryError

    script = TensorScript(model, before_run=run)
    tasks = [task_of({"x": np.array([[n]], np.float32)}, outputs, rows=1) for n in (1, 13, 2)]
    async with serving(script, BatchingSettings(max_batch_size=max_batch_size)) as served:
        async with served.busy(tasks[0]):
            sent = await served.queue(*tasks)
        good, bad, also_good = await asyncio.gather(*sent, return_exceptions=True)
    assert not isinstance(good, BaseException)
    assert not isinstance(also_good, BaseException)
    assert isinstance(bad, ComputeError)
    assert "does not fit into the device's memory" in str(bad)


def fail_on(number: float, error: BaseException) -> Callable[[Tensors], None]:
    """Fails with a batch that holds a number."""

    def run(inputs: Tensors) -> None:
        if number in inputs["x"]:
            raise error

    return run


async def test_a_failure_in_the_engine_fails_its_batch_and_no_other() -> None:
    script = TensorScript(before_run=fail_on(13, RuntimeError("secret path /etc")))
    async with serving(script, BatchingSettings(max_batch_size=2)) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[1], [13]]), floats([[2], [3]]))
        bad, good = await asyncio.gather(*sent, return_exceptions=True)
        assert served.metric("trivec_batch_failures_total") == 1
    assert isinstance(bad, ComputeError)
    assert "secret" not in str(bad)
    assert not isinstance(good, BaseException)


async def test_an_error_that_the_engine_has_words_for_reaches_the_request() -> None:
    script = TensorScript(before_run=fail_on(13, ComputeError("index 13 is out of bounds")))
    async with serving(script) as served:
        with pytest.raises(ComputeError, match="index 13 is out of bounds"):
            await served.pipeline.infer(floats([[13]]))


@pytest.mark.parametrize(
    ("error", "failures"),
    [(InvalidTensor("element 0 is not UTF-8"), 0), (ComputeError("index 13 is out of bounds"), 1)],
    ids=["invalid", "values"],
)
async def test_a_request_that_the_model_cannot_take_fails_without_its_neighbours(
    error: Exception, failures: int
) -> None:
    script = TensorScript(before_run=fail_on(13, error))
    async with serving(script) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[1]]), floats([[13]]), floats([[2]]))
        first, bad, last = await asyncio.gather(*sent, return_exceptions=True)
        assert served.metric("trivec_batch_failures_total") == failures
        statistics = served.pipeline.statistics.snapshot()
    assert bad is error
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)
    assert (statistics.success.count, statistics.execution_count) == (3, 3)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda outputs: {"same": outputs["same"][:1]}, r"output 'same' has shape \[1, 2\] for a batch of 2 rows"),
        (lambda outputs: {"same": np.float32(1)}, r"output 'same' has shape \[\] for a batch of 2 rows"),
        (lambda outputs: {"same": outputs["same"].T.repeat(2, 0)}, "max_batch_size: 0"),
    ],
    ids=["fewer", "scalar", "more"],
)
async def test_an_output_of_another_number_of_rows_fails_with_its_shape(
    alter: Callable[[Tensors], Tensors], message: str
) -> None:
    async with serving(TensorScript(alter=alter)) as served:
        with pytest.raises(ComputeError, match=message):
            await served.pipeline.infer(floats([[1, 2], [3, 4]]))


async def test_a_batch_that_loses_its_engine_is_computed_by_the_next_one() -> None:
    script = TensorScript()
    left = [EngineLost("killed by signal 9")]

    def run(_: Tensors) -> None:
        if left:
            raise left.pop()

    script.before_run = run
    async with serving(script) as served:
        result = await served.pipeline.infer(floats([[1, 2], [3, 4]]))
        await until(lambda: served.metric("trivec_engine_restarts_total") == 1)
    assert result.outputs["same"].tolist() == [[1, 2], [3, 4]]
    assert (script.built, script.closed) == (2, 2)


async def test_when_one_of_two_engines_ends_its_request_fails_and_the_other_serves_on() -> None:
    changes: list[EngineCounts] = []
    script = TensorScript(before_run=fail_on(13, SystemExit()))
    async with serving(script, ONE_ROW, instances=2, on_change=changes.append) as served:
        with pytest.raises(Unavailable):
            await served.pipeline.infer(floats([[13]]))
        assert (await served.pipeline.infer(floats([[1]]))).outputs["same"].tolist() == [[1]]
        await until(lambda: bool(changes) and changes[-1].running == 1)


async def test_when_the_last_engine_ends_all_requests_are_refused() -> None:
    script = TensorScript(before_run=fail_on(13, SystemExit()))
    async with serving(script, ONE_ROW) as served:
        async with served.busy(BLOCKER):
            sent = await served.queue(floats([[13]]), floats([[1]]))
        for outcome in await asyncio.gather(*sent, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
        with pytest.raises(Unavailable):
            await served.pipeline.infer(floats([[1]]))


# --- closing


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


# --- statistics


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
    batching = policy(max_queue_size=1, allow_timeout_override=True)
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


# --- any requests at all


Shape = tuple[int, int, int]
shapes: st.SearchStrategy[Shape] = st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(1, 3))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(shapes, min_size=1, max_size=12),
    st.booleans(),
    st.booleans(),
    st.integers(1, 8),
    st.none() | st.integers(1, 3),
    st.sampled_from(["FP32", "BYTES"]),
)
def test_whatever_runs_together_each_request_gets_what_it_would_get_alone(
    requests: list[Shape],
    allow_ragged: bool,
    joins_requests: bool,
    max_batch_size: int,
    rows_in_memory: int | None,
    datatype: str,
) -> None:
    model = identity(datatype, (-1, -1), allow_ragged=allow_ragged)
    script = TensorScript(model, rows_in_memory=rows_in_memory)
    batching = BatchingSettings(max_batch_size=max_batch_size, joins_requests=joins_requests)
    numbers = [number * 100 + np.arange(np.prod(shape)).reshape(shape) for number, shape in enumerate(requests)]
    tasks = [task_of({"x": as_type(array, datatype)}, ["y"]) for array in numbers]

    async def run() -> list[NDArray[Any]]:
        async with serving(script, batching, instances=2) as served:
            results = await asyncio.gather(*map(served.pipeline.infer, tasks))
        return [result.outputs["y"] for result in results]

    for task, y in zip(tasks, asyncio.run(run()), strict=True):
        x = task.inputs["x"]
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert y.tolist() == x.tolist()


def as_type(array: NDArray[np.int64], datatype: str) -> NDArray[Any]:
    if datatype != "BYTES":
        return array.astype(np.float32)
    strings = np.empty(array.shape, object)
    for place, number in np.ndenumerate(array):
        strings[place] = b"%d" % number
    return strings
