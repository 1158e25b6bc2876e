"""
The seam between serving and the engines.

An engine is built, run and closed on one thread (the batcher's device thread) and knows neither requests nor texts:
it gets token ids and gives arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trivec_server.types import InstanceKind, Mode


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """
    A batch of token sequences, without padding.

    `token_ids` int64 [N]: all sequences one after the other. `lengths` int64 [B], each at least 2, sum N.
    """

    token_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """
    What an engine gives for a TokenBatch; a part is None if its mode was not asked for.

    `dense` float32 [B, D], unit rows. `token_weights` float32 [N], aligned with `token_ids`, not negative, special
    tokens included. `multi_vector`: B arrays float32 [length - 1, D], unit rows, the first token left out.
    """

    dense: NDArray[np.float32] | None
    token_weights: NDArray[np.float32] | None
    multi_vector: Sequence[NDArray[np.float32]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """
    What an engine is. `pads`: a batch costs rows times its longest row, so similar lengths belong together; an engine
    that does not pad costs the sum of lengths. `token_budget`: the most tokens (padded, if it pads) in one batch.
    """

    engine: str
    device: str
    precision: str
    modes: Mode
    dense_dimension: int
    multi_vector_dimension: int
    vocabulary_size: int
    pooling: str
    pads: bool
    token_budget: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What an engine is to be built from: the version's directory and the settings that concern engines."""

    version_dir: Path
    kind: InstanceKind
    device_index: int | None
    precision: str | None
    intra_op_threads: int | None


class Engine(Protocol):
    """A model on a device, ready to run. Not thread-safe: one thread owns it."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is; constant."""

    def run(self, batch: TokenBatch, modes: Mode) -> EngineOutput:
        """
        One forward pass. Computes only the heads that `modes` asks for.

        Raises:
            MemoryError: the batch does not fit; a smaller one may.
        """

    def close(self) -> None:
        """Releases the device's memory. The engine cannot be run afterwards."""


class EngineFactory(Protocol):
    """Builds an engine. Imports its library when called, not before."""

    def __call__(self, request: EngineRequest) -> Engine:
        """
        Raises:
            LoadError: a file is missing or unreadable, or the device or package is not there; says how to mend it.
        """
