"""
Recorded batches, with CUDA's graphs replaced by ones that run operations again on the CPU: which recording a batch
gets, what it finds there, and what is left where recording fails.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from trivec_server.backends.interface import TokenBatch

from tests.graph_reference import XLM_ROBERTA, random_texts

pytestmark = pytest.mark.torch

MAX_TOKENS = 2048


class Graph:
    """A CUDAGraph: operations with the tensors that they read and wrote."""

    def __init__(self) -> None:
        self.steps: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self.replays = 0
        self.resets = 0

    def replay(self) -> None:
        self.replays += 1
        for function, arguments, options, written in self.steps:
            written.copy_(function(*arguments, **options))

    def reset(self) -> None:
        self.resets += 1


class Cuda:
    """What a test asks the replaced CUDA afterwards, and where it is to fail."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.captures = 0
        self.fails_in: Exception | None = None
        self.fails_at_end: Exception | None = None
        self.still_capturing = True
        self.allocator: list[tuple[str, int, object]] = []

    def graph(self) -> Graph:
        self.graphs.append(Graph())
        return self.graphs[-1]

    @contextmanager
    def capture(self, graph: Graph, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        """The third one fails, if any is to."""
        import torch  # noqa: PLC0415 - as the rest
        from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC0415 - imports torch

        assert (pool, stream, capture_error_mode) == ((0, 1), "stream", "thread_local")
        self.captures += 1

        class Tape(TorchDispatchMode):  # type: ignore[misc]
            def __torch_dispatch__(self, function: Any, _: object, arguments: Any = (), options: Any = None) -> Any:
                written = function(*arguments, **(options or {}))
                assert isinstance(written, torch.Tensor)
                graph.steps.append((function, arguments, options or {}, written))
                return written

        failing = self.captures == 3
        try:
            with Tape():
                yield
            if failing and self.fails_in is not None:
                raise self.fails_in
        finally:
            if failing and self.fails_at_end is not None:
                raise self.fails_at_end

    def end_allocate_to_pool(self, device: int, pool: object) -> None:
        if not self.still_capturing:
            raise RuntimeError("not currently recording to mempool_id")
        self.allocator.append(("end", device, pool))

    def release_pool(self, device: int, pool: object) -> None:
        self.allocator.append(("release", device, pool))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    torch = import_module("torch")
    cuda = Cuda()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", cuda.graph)
    monkeypatch.setattr(torch.cuda, "graph", cuda.capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_allocate_to_pool)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", cuda.release_pool)
    return cuda


class Encoder:
    """Of each token its id, its position and which text of the batch it is in; counts the tokens of each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, batch: Any) -> Any:
        import torch  # noqa: PLC0415 - as the rest

        self.calls.append(len(batch.token_ids))
        places = torch.arange(len(batch.token_ids), dtype=torch.int32)
        texts = torch.searchsorted(batch.bounds, places, right=True)
        return torch.stack((batch.token_ids, batch.positions, texts), dim=1)


def record(encoder: Encoder) -> Any:
    import torch  # noqa: PLC0415 - as the rest
    from trivec_server.backends.pytorch.cuda_graphs import GraphedEncoder  # noqa: PLC0415 - imports torch

    return GraphedEncoder(encoder, torch.device("cpu", 0), "stream", MAX_TOKENS)


def batch_of(*lengths: int) -> Any:
    from trivec_server.backends.pytorch.batch import host_batch  # noqa: PLC0415 - imports torch

    texts = random_texts(*lengths)
    spec = replace(XLM_ROBERTA, max_positions=4096)
    return host_batch(TokenBatch(np.concatenate(texts), np.array([len(text) for text in texts])), spec)


def test_each_batch_of_a_row_gets_what_it_gets_alone(cuda: Cuda) -> None:
    graphed = record(Encoder())
    batches = [
        batch_of(*lengths) for lengths in ((2,), (17, 3), (3, 3), (12,) * 20, (12,) * 17, (100, 80), (30,), (2,))
    ]

    found = [graphed(batch).clone() for batch in batches]

    for each, batch in zip(found, batches, strict=True):
        np.testing.assert_array_equal(each.numpy(), Encoder()(batch).numpy())
    assert sum(graph.replays for graph in cuda.graphs) == len(batches)


@pytest.mark.parametrize(
    ("lengths", "recorded"),
    [
        ((2,), 32),
        ((32,), 32),
        ((33,), 64),
        ((2,) * 16, 32),
        ((2,) * 40, None),
        ((12,) * 20, 256),
        ((60,) + (2,) * 20, 128),
        ((100, 100), 256),
        ((80,) + (5,) * 15, 192),
        ((80,) + (5,) * 16, None),
        ((1500,), 1536),
        ((4,) * 512, 2048),
        ((2049,), None),
    ],
)
@pytest.mark.usefixtures("cuda")
def test_a_small_batch_gets_a_recording_of_many_short_or_of_few_long_texts(
    lengths: tuple[int, ...], recorded: int | None
) -> None:
    encoder = Encoder()
    graphed = record(encoder)
    encoder.calls.clear()

    hidden = graphed(batch_of(*lengths))

    assert encoder.calls == ([sum(lengths)] if recorded is None else [])
    if recorded is not None:
        assert hidden._base.shape[0] == recorded


def test_everything_is_recorded_at_once_the_largest_first_and_each_is_run_before(cuda: Cuda) -> None:
    encoder = Encoder()

    record(encoder)

    assert cuda.captures == 22
    assert encoder.calls == sorted(encoder.calls, reverse=True)
    assert len(encoder.calls) == 2 * cuda.captures


FAILED = "CUDA error: operation failed due to a previous error during capture"


def test_a_failed_recording_leaves_no_graph_and_an_allocator_that_frees(cuda: Cuda) -> None:
    from trivec_server.backends.pytorch.cuda_graphs import RecordingFailed  # noqa: PLC0415 - imports torch

    cuda.fails_at_end = RuntimeError(f"{FAILED}\nadvice")

    with pytest.raises(RecordingFailed, match=f"^RuntimeError: {FAILED}$"):
        record(Encoder())

    assert [graph.resets for graph in cuda.graphs] == [1, 1, 1]
    assert [(name, pool) for name, _, pool in cuda.allocator] == [("end", (0, 1)), ("release", (0, 1))]


def test_a_pool_whose_capture_ended_is_not_released_twice(cuda: Cuda) -> None:
    from trivec_server.backends.pytorch.cuda_graphs import RecordingFailed  # noqa: PLC0415 - imports torch

    cuda.fails_at_end = RuntimeError(FAILED)
    cuda.still_capturing = False

    with pytest.raises(RecordingFailed):
        record(Encoder())

    assert cuda.allocator == []


@pytest.mark.parametrize("end_fails_too", [False, True])
def test_memory_that_runs_out_while_recording_is_a_memory_error(cuda: Cuda, end_fails_too: bool) -> None:
    torch = import_module("torch")
    cuda.fails_in = torch.OutOfMemoryError("CUDA out of memory")
    cuda.fails_at_end = RuntimeError(FAILED) if end_fails_too else None

    with pytest.raises(MemoryError):
        record(Encoder())
