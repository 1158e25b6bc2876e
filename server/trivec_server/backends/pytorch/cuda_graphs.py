"""Small batches on a GPU: the encoder's kernels recorded once per size and launched together."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trivec_server.backends.pytorch.batch import DeviceBatch, Layout, Run
from trivec_server.backends.pytorch.encoder import Encoder
from trivec_server.logs import get_logger

_TOKENS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Larger batches keep a GPU busy for longer than their launches take."""
_TEXTS = (4, 16, 64, 256)
_LENGTHS = (64, 512, 2048)

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Size:
    """What a recording holds: the most tokens and texts, and the length of the longest text."""

    tokens: int
    texts: int
    length: int


class GraphedEncoder:
    """
    An encoder that replays CUDA graphs where a batch is small. A graph is recorded when its size first comes up; if
    that fails, all batches run as without graphs from then on, and the log says why.

    A result is overwritten by the next batch: all that use it must be launched, on the same stream, before that.
    """

    def __init__(self, encoder: Encoder, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._encoder = encoder
        self._device = device
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self._recordings: dict[_Size, _Recording] = {}
        self._usable = True

    def __call__(self, batch: DeviceBatch) -> Tensor:
        """As Encoder."""
        size = _size_of(batch.layout) if self._usable else None
        if size is None:
            return self._encoder(batch)
        if size not in self._recordings:
            try:
                self._recordings[size] = _Recording(self._encoder, size, self._device, self._stream, self._pool)
            except RuntimeError as error:
                _log.warning("CUDA graphs cannot be used; small batches run slower", reason=first_line(error))
                self._usable = False
                return self._encoder(batch)
        return self._recordings[size].replay(batch)


def first_line(error: Exception) -> str:
    """What an error says, without the advice and the trace that torch adds in further lines."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


class _Recording:
    """
    One graph with the tensors that it reads and writes. Tokens beyond the batch's belong to no text: attention leaves
    them out, and nothing else looks at more than one token, so what they hold does not matter.
    """

    def __init__(
        self,
        encoder: Encoder,
        size: _Size,
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
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on to use CUDA meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
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


def _size_of(layout: Layout) -> _Size | None:
    """The smallest size that holds a batch; None if none does."""
    wanted = (layout.tokens, len(layout.order), layout.max_length)
    sizes = [
        next((size for size in offered if size >= least), None)
        for least, offered in zip(wanted, (_TOKENS, _TEXTS, _LENGTHS), strict=True)
    ]
    tokens, texts, length = sizes
    return None if tokens is None or texts is None or length is None else _Size(tokens, texts, length)
