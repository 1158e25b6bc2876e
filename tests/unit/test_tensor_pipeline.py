"""Requests of tensors that run together: each gets its own rows, whoever its neighbours are."""

import asyncio
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trivec_server.types import BatchingSettings

from tests.scripted_tensors import (
    TensorScript,
    identity,
    row_functions,
    sum_and_difference,
    without_batch_dimension,
)
from tests.tensor_serving import floats, serving, task_of

BLOCKER = floats([[0.0] * 7])
HOUR_US = 3_600_000_000


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


SHAPES = ((1, 1), (1, 1000), (1000, 1))


async def test_ragged_requests_of_very_different_sizes_do_not_run_together() -> None:
    """Padded to each other, [1, 1, 1000] and [1, 1000, 1] would take 1,000 times what they are."""
    script = TensorScript(identity(shape=(-1, -1), allow_ragged=True))
    small, wide, high = (task_of({"x": np.zeros((1, *shape), np.float32)}, ["y"]) for shape in SHAPES)
    async with serving(script) as served:
        async with served.busy(small):
            sent = await served.queue(wide, high)
        await asyncio.gather(*sent)
    assert script.batch_rows == [1, 1, 1]


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
