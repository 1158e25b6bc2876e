"""Small batches on a GPU: the encoder's kernels recorded once per size and launched together."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trivec_server.backends.pytorch.batch import DeviceBatch, Layout, Run
from trivec_server.backends.pytorch.device_errors import FULL, drop_frames, first_line, is_out_of_memory

_TOKENS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Larger batches keep a GPU busy for longer than their launches take."""
_SHORT_TOKENS = 64
_FEW_TEXTS = 16


class RecordingFailed(Exception):
    """CUDA graphs cannot be used here; the message is the reason."""


@dataclass(frozen=True, slots=True)
class GraphSize:
    """What a recording holds: the most tokens and texts, and the length of the longest text."""

    tokens: int
    texts: int
    length: int

    def holds(self, layout: Layout) -> bool:
        """Whether a batch can be run by this recording."""
        return layout.tokens <= self.tokens and len(layout.order) <= self.texts and layout.max_length <= self.length


def graph_sizes(max_tokens: int) -> tuple[GraphSize, ...]:
    """
    What to record for texts of at most `max_tokens` tokens, the smallest first: for each number of tokens many short
    texts and, where there can be longer ones, few long texts.
    """
    sizes = []
    for tokens in _TOKENS:
        longest = min(tokens, max_tokens)
        many = GraphSize(tokens, max(_FEW_TEXTS, tokens // 4), min(longest, _SHORT_TOKENS))
        few = GraphSize(tokens, _FEW_TEXTS, longest)
        sizes += [many] if longest <= _SHORT_TOKENS else [many, few]
    return tuple(sizes)


class GraphedEncoder:
    """
    An encoder that replays CUDA graphs where a batch is small. All are recorded here, so that no request waits for it.

    A result is overwritten by the next batch: all that use it must be launched, on the same stream, before that.

    Raises:
        MemoryError: the GPU's memory is full.
        RecordingFailed: graphs cannot be used; nothing is left of those that were recorded.
    """

    def __init__(
        self,
        encoder: Callable[[DeviceBatch], Tensor],
        device: torch.device,
        stream: torch.cuda.Stream,
        max_tokens: int,
    ) -> None:
        self._encoder = encoder
        self._sizes = graph_sizes(max_tokens)
        self._recordings: dict[GraphSize, _Recording] = {}
        pool = torch.cuda.graph_pool_handle()
        graphs = []
        try:
            # If the capture fails, torch leaves its stream the current one; here it is put back.
            with torch.cuda.stream(stream):
                for size in reversed(self._sizes):  # the others then fit into the memory of the largest
                    graphs.append(torch.cuda.CUDAGraph())
                    self._recordings[size] = _Recording(graphs[-1], encoder, size, device, stream, pool)
        except Exception as error:
            # Memory that runs out in a capture can make its end fail as well; only that error arrives.
            causes = [error] if error.__context__ is None else [error, error.__context__]
            self._recordings.clear()
            for cause in causes:
                drop_frames(cause)
            _discard(graphs, device, pool)
            if any(map(is_out_of_memory, causes)):
                raise MemoryError(FULL) from error
            raise RecordingFailed(first_line(error)) from error

    def __call__(self, batch: DeviceBatch) -> Tensor:
        """As Encoder."""
        tokens = next((tokens for tokens in _TOKENS if tokens >= batch.layout.tokens), None)
        for size in self._sizes:
            if size.tokens == tokens and size.holds(batch.layout):
                return self._recordings[size].replay(batch)
        return self._encoder(batch)


class _Recording:
    """
    One graph with the tensors that it reads and writes. Tokens beyond the batch's belong to no text: attention leaves
    them out, and nothing else looks at more than one token, so what they hold does not matter.
    """

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        encoder: Callable[[DeviceBatch], Tensor],
        size: GraphSize,
        device: torch.device,
        stream: torch.cuda.Stream,
        pool: object,
    ) -> None:
        tokens, positions = (torch.zeros(size.tokens, dtype=torch.int32, device=device) for _ in range(2))
        bounds = torch.zeros(size.texts + 1, dtype=torch.int32, device=device)
        none = torch.zeros(0, dtype=torch.int32, device=device)
        # Of the layout the encoder reads the longest text only.
        nowhere = np.zeros(0, np.int64)
        layout = Layout(nowhere, nowhere, nowhere, (Run(0, 1, size.length),))
        self._batch = DeviceBatch(layout, tokens, positions, none, bounds, none, none)
        encoder(self._batch)  # what is made on first use cannot be recorded
        self._graph = graph
        # Other threads may go on to use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._hidden = encoder(self._batch)

    def replay(self, batch: DeviceBatch) -> Tensor:
        """The last hidden state of `batch`."""
        tokens, bounds = batch.layout.tokens, len(batch.bounds)
        self._batch.token_ids[:tokens].copy_(batch.token_ids)
        self._batch.positions[:tokens].copy_(batch.positions)
        self._batch.bounds[:bounds].copy_(batch.bounds)
        self._batch.bounds[bounds:].fill_(tokens)  # texts of no tokens
        self._graph.replay()
        return self._hidden[:tokens]


def _discard(graphs: Sequence[torch.cuda.CUDAGraph], device: torch.device, pool: object) -> None:
    """Takes graphs back, of which the last one's capture may have failed."""
    for graph in graphs:
        with suppress(RuntimeError):
            graph.reset()
    # A capture whose end fails can leave the allocator in the belief that it goes on: then no block that is freed would
    # ever be used again, and the pool would stay. To end what has ended raises, and such a pool must not be released
    # twice (PyTorch, CUDAGraph.cpp, capture_end and reset).
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)  # noqa: SLF001 - torch has no public name for it
        torch._C._cuda_releasePool(device.index, pool)  # noqa: SLF001 - likewise
    torch.cuda.synchronize(device)  # raises if the GPU is lost
    torch.cuda.empty_cache()
