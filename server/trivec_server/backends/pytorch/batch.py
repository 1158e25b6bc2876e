"""A batch as the encoder takes it: texts sorted by length, all tokens on one axis, and what says where each lies."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trivec_server.backends.graph.spec import EncoderSpec
from trivec_server.backends.interface import TokenBatch
from trivec_server.types import PAD_TOKEN_ID


@dataclass(frozen=True, slots=True)
class Run:
    """Texts of equal length, one after the other: `count` of them from token `start` on."""

    start: int
    count: int
    length: int


@dataclass(frozen=True, slots=True)
class Layout:
    """
    Where the texts of a batch lie once they are sorted, the longest first, on the host.

    `order` int64 [B]: the batch's number of the text in each place. `bounds` int64 [B + 1]: its first token.
    `source` int64 [N]: the place in the TokenBatch of each sorted token.
    """

    order: NDArray[np.int64]
    bounds: NDArray[np.int64]
    source: NDArray[np.int64]
    runs: tuple[Run, ...]

    @property
    def tokens(self) -> int:
        """N."""
        return int(self.bounds[-1])

    @property
    def max_length(self) -> int:
        """The tokens of the longest text."""
        return self.runs[0].length


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """
    The sorted batch on the encoder's device, all int32. `token_ids`, `positions`, and `texts` (the batch's number of
    each token's text) are [N]; `bounds` is [B + 1] and `order` [B] as in Layout; `not_first` [N - B] are the tokens
    that are not the first of their text.
    """

    layout: Layout
    token_ids: Tensor
    positions: Tensor
    texts: Tensor
    bounds: Tensor
    order: Tensor
    not_first: Tensor


def sort_batch(batch: TokenBatch) -> Layout:
    """Sorts the texts of a batch, the longest first; equal lengths stay in their order."""
    order = np.argsort(-batch.lengths, kind="stable")
    lengths = batch.lengths[order]
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    starts = np.cumsum(batch.lengths) - batch.lengths  # of each text in the TokenBatch
    source = np.arange(bounds[-1]) + np.repeat(starts[order] - bounds[:-1], lengths)
    firsts = np.flatnonzero(np.diff(lengths, prepend=-1))
    counts = np.diff(firsts, append=len(lengths))
    runs = zip(bounds[firsts].tolist(), counts.tolist(), lengths[firsts].tolist(), strict=True)
    return Layout(order, bounds, source, tuple(Run(*run) for run in runs))


def index_arrays(batch: TokenBatch, layout: Layout, spec: EncoderSpec) -> tuple[NDArray[np.int32], ...]:
    """
    The arrays of a DeviceBatch in the order of its fields, on the host.

    Raises:
        ValueError: a token id or a position has no row in the model. A GPU would be lost over it.
    """
    token_ids = batch.token_ids[layout.source]
    positions = _positions(token_ids, layout, spec)
    if token_ids.min() < 0 or token_ids.max() >= spec.vocabulary_size:
        raise ValueError(f"token ids {token_ids.min()} to {token_ids.max()}: the model has {spec.vocabulary_size}")
    if positions.max() >= spec.max_positions:
        raise ValueError(f"a text of {layout.max_length} tokens: the model takes {spec.max_tokens}")
    not_first = np.ones(layout.tokens, np.bool_)
    not_first[layout.bounds[:-1]] = False
    texts = np.repeat(layout.order, np.diff(layout.bounds))
    arrays = (token_ids, positions, texts, layout.bounds, layout.order, np.flatnonzero(not_first))
    return tuple(array.astype(np.int32) for array in arrays)


def device_batch(layout: Layout, packed: Tensor, sizes: tuple[int, ...]) -> DeviceBatch:
    """From the arrays of `index_arrays`, joined in one tensor on the device, and their sizes."""
    return DeviceBatch(layout, *packed.split(sizes))


def host_batch(batch: TokenBatch, spec: EncoderSpec) -> DeviceBatch:
    """The batch for an encoder on the CPU. Raises as `index_arrays`."""
    layout = sort_batch(batch)
    return DeviceBatch(layout, *map(torch.from_numpy, index_arrays(batch, layout, spec)))


def select_texts(batch: TokenBatch, texts: NDArray[np.int64]) -> TokenBatch:
    """Some texts of a batch, by their numbers."""
    bounds = np.concatenate(([0], np.cumsum(batch.lengths)))
    parts = [batch.token_ids[bounds[text] : bounds[text + 1]] for text in texts]
    return TokenBatch(np.concatenate(parts), batch.lengths[texts])


def _positions(token_ids: NDArray[np.int64], layout: Layout, spec: EncoderSpec) -> NDArray[np.int64]:
    starts = np.repeat(layout.bounds[:-1], np.diff(layout.bounds))  # [N]
    if spec.architecture == "bert":
        return np.arange(len(token_ids)) - starts + spec.position_offset
    # A literal <pad> inside a text takes no position (transformers, modeling_xlm_roberta.py,
    # create_position_ids_from_input_ids).
    real = token_ids != PAD_TOKEN_ID
    counts = np.concatenate(([0], np.cumsum(real)))
    positions: NDArray[np.int64] = (counts[1:] - counts[starts]) * real + spec.position_offset - 1
    return positions
