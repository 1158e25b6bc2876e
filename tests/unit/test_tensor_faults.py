"""Batches of tensors that fail, or do not fit into memory: what becomes of the requests in them."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from trivec_server.backends.interface import EngineLost
from trivec_server.errors import (
    ComputeError,
    InvalidTensor,
    Unavailable,
)
from trivec_server.metrics.statistics import FailReason
from trivec_server.serving.engine_roster import EngineCounts
from trivec_server.types import BatchingSettings

from tests.scripted_tensors import (
    Tensors,
    TensorScript,
    identity,
    row_functions,
    sum_and_difference,
    without_batch_dimension,
)
from tests.tensor_serving import counts, fail_on, floats, serving, task_of, until

BLOCKER = floats([[0.0] * 7])
ONE_ROW = BatchingSettings(max_batch_size=1)


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
