"""Dividing a large task: the portions together are the task, and none is larger than asked for."""

from pathlib import Path

import numpy as np
import pytest
from trivec_server.serving.pipeline import Pipeline
from trivec_server.serving.portions import Totals, portions
from trivec_server.serving.request import EmbedResult, EmbedTask, Timings, VectorEncoding
from trivec_server.types import InputType, Mode

from tests.rpc.running_server import running_server
from tests.scripted_engine import Script
from tests.small_repository import make_repository

TASK = EmbedTask(
    request_id="r",
    modes=Mode.HYBRID,
    texts=[f"w{10 + number} " * (number % 5) for number in range(40)],
    size_bytes=4000,
)
IDS = TASK._replace(texts=(), token_ids=[[0, *[10] * (number % 5), 2] for number in range(40)])
KINDS = TASK._replace(input_types=[InputType.QUERY, *[InputType.PASSAGE] * 39], fields=[f"f{n}" for n in range(40)])
SIZES = [1, 500, 3000, 10**9]


async def with_pipeline(tmp_path: Path) -> Pipeline:
    """A pipeline to ask for sizes; it is closed already."""
    async with running_server(make_repository(tmp_path), Script()) as server:
        return server.pipeline()


@pytest.mark.parametrize("task", [TASK, IDS, KINDS], ids=["texts", "ids", "kinds"])
@pytest.mark.parametrize("max_bytes", SIZES)
async def test_portions_put_together_are_the_task(tmp_path: Path, task: EmbedTask, max_bytes: int) -> None:
    pipeline = await with_pipeline(tmp_path)
    expected_start = 0
    for start, portion in portions(task, pipeline, max_bytes):
        end = start + portion.text_count
        assert start == expected_start
        assert portion.text_count > 0
        assert list(portion.texts) == list(task.texts[start:end])
        assert list(portion.token_ids) == list(task.token_ids[start:end])
        assert [portion.field(i) for i in range(portion.text_count)] == [task.field(i) for i in range(start, end)]
        if isinstance(task.input_types, InputType):
            assert portion.input_types is task.input_types
        else:
            assert portion.input_types == task.input_types[start:end]
        expected_start = end
    assert expected_start == task.text_count


@pytest.mark.parametrize("max_bytes", SIZES)
async def test_a_portion_is_at_most_as_large_as_asked_or_one_text(tmp_path: Path, max_bytes: int) -> None:
    pipeline = await with_pipeline(tmp_path)
    for _, portion in portions(TASK, pipeline, max_bytes):
        assert pipeline.held_bytes(portion) <= max_bytes or portion.text_count == 1


@pytest.mark.parametrize("encoding", VectorEncoding)
async def test_portions_are_sized_by_what_they_hold_not_by_what_is_sent(
    tmp_path: Path, encoding: VectorEncoding
) -> None:
    """Vectors are float32 until they are packed, right before they are written."""
    pipeline = await with_pipeline(tmp_path)
    task = TASK._replace(encoding=encoding)
    plain = [start for start, _ in portions(TASK, pipeline, 3000)]
    assert [start for start, _ in portions(task, pipeline, 3000)] == plain
    assert pipeline.held_bytes(task) == pipeline.held_bytes(TASK)


async def test_what_a_portion_counts_for_at_admission_is_its_own_texts(tmp_path: Path) -> None:
    pipeline = await with_pipeline(tmp_path)
    for _, portion in portions(TASK, pipeline, 3000):
        assert portion.size_bytes == sum(map(len, portion.texts))


async def test_a_task_that_fits_is_one_portion_itself(tmp_path: Path) -> None:
    pipeline = await with_pipeline(tmp_path)
    assert list(portions(TASK, pipeline, 10**9)) == [(0, TASK)]


async def test_no_text_is_estimated_longer_than_max_tokens(tmp_path: Path) -> None:
    pipeline = await with_pipeline(tmp_path)
    long = TASK._replace(texts=["x" * 100_000])
    assert pipeline.held_bytes(long) == pipeline.held_bytes(long._replace(texts=["x" * 1000]))
    assert pipeline.held_bytes(long._replace(max_tokens=8)) < pipeline.held_bytes(long)


def test_totals_add_tokens_and_keep_the_longest_of_each_duration() -> None:
    def result(tokens: int, truncated: bool, tokenize_us: int, queue_us: int, compute_us: int) -> EmbedResult:
        return EmbedResult(
            lengths=np.array([tokens, 2]),
            truncated=np.array([truncated, False]),
            token_count=tokens + 2,
            truncated_count=int(truncated),
            dense=None,
            sparse=None,
            multi_vector=None,
            timings=Timings(tokenize_us=tokenize_us, queue_us=queue_us, compute_us=compute_us),
        )

    totals = Totals()
    totals.add(result(5, True, 3, 9, 1))
    totals.add(result(7, True, 4, 2, 8))
    assert (totals.tokens, totals.truncated_texts) == (16, 2)
    assert totals.timings == Timings(tokenize_us=4, queue_us=9, compute_us=8)
