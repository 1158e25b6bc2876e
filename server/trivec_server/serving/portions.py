"""Dividing a large task into portions, so that only a bounded amount of results is held at a time."""

from collections.abc import Iterator

from trivec_server.serving.pipeline import Pipeline
from trivec_server.serving.request import EmbedResult, EmbedTask, Timings
from trivec_server.types import InputType

_EXTRA_TOKENS = 8


def estimated_result_bytes(task: EmbedTask, pipeline: Pipeline, max_tokens: int) -> int:
    """About what the result takes, before anything is tokenized: a text has hardly more tokens than characters."""
    limit = task.max_tokens or max_tokens
    tokens = sum(min(len(sequence) + _EXTRA_TOKENS, limit) for sequence in task.texts or task.token_ids)
    return pipeline.result_bytes(task, task.text_count, tokens)


def portions(task: EmbedTask, pipeline: Pipeline, max_tokens: int, max_bytes: int) -> Iterator[tuple[int, EmbedTask]]:
    """
    Consecutive portions of a task, each with the position of its first text. A portion's result is estimated to take
    at most `max_bytes`; it holds at least one text.
    """
    limit = task.max_tokens or max_tokens
    sequences = task.texts or task.token_ids
    start, size = 0, 0
    for index, sequence in enumerate(sequences):
        added = pipeline.result_bytes(task, 1, min(len(sequence) + _EXTRA_TOKENS, limit))
        if index > start and size + added > max_bytes:
            yield start, _portion(task, start, index)
            start, size = index, 0
        size += added
    yield start, _portion(task, start, len(sequences))


def _portion(task: EmbedTask, start: int, end: int) -> EmbedTask:
    if start == 0 and end == task.text_count:
        return task
    kinds = task.input_types
    return task._replace(
        texts=task.texts[start:end],
        token_ids=task.token_ids[start:end],
        input_types=kinds if isinstance(kinds, InputType) else kinds[start:end],
        fields=[task.field(index) for index in range(start, end)],
        size_bytes=task.size_bytes * (end - start) // task.text_count,
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
