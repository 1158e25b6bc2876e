"""How the tokens of a batch are laid out for the model of `graph.py`: plain NumPy, no weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.graph.spec import EncoderSpec
from trivec_server.backends.interface import TokenBatch
from trivec_server.types import PAD_TOKEN_ID

_SHARED_ROW = 128
"""Texts share rows of attention up to this length, where attention costs next to nothing; see `_row_length`."""
_LONGEST_SHARED_ROW = 1024
"""The mask of shared rows has T x T numbers for each; from this length on each text has a row of its own."""
_ROW_STEP = 32
_SIZE_STEPS = ((64, 16), (128, 32), (512, 64))
"""Up to so many tokens, the step to which their number is rounded up."""
_LARGEST_SIZE_STEP = 128
_NEVER = np.float32(-1e9)
"""Added to a score that must not count; finite, since rows without tokens have no other."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """The inputs of the model but for the words, as `write_openvino` names them; `size` is N with the dummies."""

    size: int
    positions: NDArray[np.int32]
    cells: NDArray[np.int32]
    mask: NDArray[np.float32]
    tokens: NDArray[np.int32]

    def inputs(self) -> dict[str, NDArray[np.generic]]:
        """Those that are arrays, by name."""
        return {"positions": self.positions, "cells": self.cells, "mask": self.mask, "tokens": self.tokens}


def pack(batch: TokenBatch, spec: EncoderSpec) -> PackedBatch:
    """
    Lays a batch out. All sizes are rounded up, the tokens' by dummies at the end, so that the engine meets few shapes:
    each new one costs it some milliseconds.
    """
    count = len(batch.token_ids)
    size = padded_size(count)
    width = _row_length(int(batch.lengths.max()), size)
    rows, columns = _place(batch.lengths, width)
    shares = width <= _LONGEST_SHARED_ROW and len(batch.lengths) > 1 + int(rows.max())
    starts = np.cumsum(batch.lengths) - batch.lengths
    text_of = np.repeat(np.arange(len(batch.lengths)), batch.lengths)  # [N]
    inside = np.arange(count) - starts[text_of]
    places = rows[text_of] * width + columns[text_of] + inside
    shape = (int(rows.max()) + 1, width)
    cells = np.zeros(shape, np.int32)
    cells.reshape(-1)[places] = np.arange(count)
    owners = np.full(shape, -1)
    owners.reshape(-1)[places] = text_of
    attended = owners[:, :, None] == owners[:, None, :] if shares else (owners >= 0)[:, None, :]
    tokens = np.zeros(size, np.int32)
    tokens[:count] = places
    positions = np.zeros(size, np.int32)
    positions[:count] = _positions(batch.token_ids, text_of, starts, inside, spec)
    mask = np.where(attended, np.float32(0), _NEVER)[:, None]
    return PackedBatch(size, positions, cells, mask, tokens)


def padded_size(tokens: int) -> int:
    """
    The number of tokens that so many are rounded up to. The steps are where matrix products of BGE-M3's sizes are
    fastest with AMX: 640 rows take hardly longer than 520, and 384 less time than 340.
    """
    step = next((step for most, step in _SIZE_STEPS if tokens <= most), _LARGEST_SIZE_STEP)
    return -(-tokens // step) * step


def _row_length(longest: int, size: int) -> int:
    """
    T. Short texts are put side by side into rows of about 128 tokens: with BGE-M3's sizes attention over so many costs
    2 % of the rest, and there are fewer shapes.
    """
    return -(-max(longest, min(size, _SHARED_ROW)) // _ROW_STEP) * _ROW_STEP


def _place(lengths: NDArray[np.int64], width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row and the first column of each text: the longest first, each into the first row that has room."""
    rows, columns = np.zeros_like(lengths), np.zeros_like(lengths)
    if width > _LONGEST_SHARED_ROW:
        return np.arange(len(lengths)), columns
    used: list[int] = []
    for text in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[text])
        row = next((row for row, taken in enumerate(used) if taken + length <= width), len(used))
        if row == len(used):
            used.append(0)
        rows[text], columns[text] = row, used[row]
        used[row] += length
    return rows, columns


def _positions(
    ids: NDArray[np.int64],
    text_of: NDArray[np.int64],
    starts: NDArray[np.int64],
    inside: NDArray[np.int64],
    spec: EncoderSpec,
) -> NDArray[np.int64]:
    """The rows of the position table, as `graph_encoder.Encoder` has them."""
    if spec.architecture == "bert":
        return inside + spec.position_offset
    # A literal <pad> inside a text takes no position.
    real = (ids != PAD_TOKEN_ID).astype(np.int64)
    counts = np.cumsum(real)
    before = counts[starts] - real[starts]
    positions: NDArray[np.int64] = (counts - before[text_of]) * real + spec.position_offset - 1
    return positions
