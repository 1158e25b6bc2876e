"""Dividing a large task into portions, so that only a bounded amount of results is held at a time."""

from collections.abc import Iterator

from trivec_server.serving.pipeline import Pipeline
from trivec_server.serving.request import EmbedResult, EmbedTask, Timings
from trivec_server.types import InputType


def portions(task: EmbedTask, pipeline: Pipeline, max_bytes: int) -> Iterator[tuple[int, EmbedTask]]:
    """
    Consecutive portions of a task, each with the position of its first text. A portion's result is estimated to take
    at most `max_bytes` in memory; it holds at least one text.
    """
    start, size = 0, 0
    for index, sequence in enumerate(task.texts or task.token_ids):
        added = pipeline.held_bytes_of_text(task, len(sequence))
        if index > start and size + added > max_bytes:
            yield start, _portion(task, start, index)
            start, size = index, 0
        size += added
    yield start, _portion(task, start, task.text_count)


def estimated_held_bytes(task: EmbedTask, pipeline: Pipeline, max_bytes: int) -> int:
    """The most that two consecutive portions take: one is written while the next is computed."""
    sizes = [pipeline.held_bytes(portion) for _, portion in portions(task, pipeline, max_bytes)]
    return max(sum(sizes[index : index + 2]) for index in range(len(sizes)))


def _portion(task: EmbedTask, start: int, end: int) -> EmbedTask:
    if start == 0 and end == task.text_count:
        return task
    kinds = task.input_types
    return task._replace(
        texts=task.texts[start:end],
        token_ids=task.token_ids[start:end],
        input_types=kinds if isinstance(kinds, InputType) else kinds[start:end],
        fields=[task.field(index) for index in range(start, end)],
        size_bytes=sum(map(len, (task.texts or task.token_ids)[start:end])),
    )


class Totals:
    """Usage and timings over the portions of a task. Portions overlap, so of each duration the longest counts."""

    def __init__(self) -> None:
        self.tokens = 0
        self.truncated_texts = 0
        self.timings = Timings(tokenize_us=0, queue_us=0, compute_us=0)

    def add(self, result: EmbedResult) -> None:
        """Takes in one portion."""
        self.tokens += result.token_count
        self.truncated_texts += result.truncated_count
        old, new = self.timings, result.timings
        self.timings = Timings(
            tokenize_us=max(old.tokenize_us, new.tokenize_us),
            queue_us=max(old.queue_us, new.queue_us),
            compute_us=max(old.compute_us, new.compute_us),
        )
