"""
The seam between serving and the engines.

An engine is built, run and closed on one thread (the batcher's device thread) and knows neither requests nor texts:
it gets token ids and gives arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trivec_server.types import InstanceKind, Mode

Vectors: TypeAlias = NDArray[np.float32 | np.float16]
"""Rows of unit length, float32 or, where all who asked want it so, float16."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """
    A batch of token sequences, without padding.

    `token_ids` int64 [N]: all sequences one after the other. `lengths` int64 [B], each at least 2, sum N.
    """

    token_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LexicalRows:
    """
    The sparse vectors of a batch: text i has `ids` and `weights` from `bounds[i]` to `bounds[i + 1]`, ids ascending
    and without repeats, as `serving.encode.lexical_weights` would make them of the tokens' weights.

    `ids` uint32 [M], `weights` float32 [M], `bounds` int64 [B + 1].
    """

    ids: NDArray[np.uint32]
    weights: NDArray[np.float32]
    bounds: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """
    What an engine gives for a TokenBatch; a part is None if its mode was not asked for.

    `dense` [B, D], unit rows. `token_weights` float32 [N], aligned with `token_ids`, not negative, special tokens
    included. `multi_vector`: B arrays [length - 1, D], unit rows, the first token left out. Vectors are float32, or
    float16 if `half` was asked for and the engine can.

    `lexical`: the sparse vectors too, from an engine that makes them on its device. `non_finite_rows`: the texts,
    ascending, with a number that is not finite, from an engine that has looked; None: it has not. `recomputed_rows`:
    texts that came out non-finite and were computed again in float32.
    """

    dense: Vectors | None
    token_weights: NDArray[np.float32] | None
    multi_vector: Sequence[Vectors] | None
    lexical: LexicalRows | None = None
    non_finite_rows: NDArray[np.int64] | None = None
    recomputed_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """
    What an engine is. `pads`: a batch costs rows times its longest row, so similar lengths belong together; an engine
    that does not pad costs the sum of lengths. `token_budget`: the most tokens (padded, if it pads) in one batch.
    `precision` is that of the matrix products. `notes`: what was chosen for the user, or is not as fast or exact as it
    could be, one sentence each; shown in the log and by GetModel.
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
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[str, ...]:
        """What must stay the same when an engine takes the place of another: numbers do not change on the way."""
        return self.engine, self.device, self.precision


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """
    What an engine is to be built from: the version's directory and the settings that concern engines.

    `device_index`: the GPU; None: the first one, or the CPU. `precision` None: the fastest that keeps the dense
    vectors' cosine to float32 at 0.9995. `intra_op_threads` None: the physical cores that this process may use,
    divided by `instances`, the instances of this version on the same device. `max_tokens`: the longest text it will be
    given. `accelerator`: Triton's name of an execution accelerator, `tensorrt`. `device_memory_mb`: the most GPU memory
    to take, in 10^6 bytes; None: what is free. `token_budget`: the configured one; None: the engine finds its own.
    `comparing`: only a few texts will be run, to look at their numbers, so that it may be slow.
    """

    version_dir: Path
    kind: InstanceKind = InstanceKind.AUTO
    device_index: int | None = None
    precision: str | None = None
    intra_op_threads: int | None = None
    instances: int = 1
    max_tokens: int = 512
    accelerator: str | None = None
    device_memory_mb: int | None = None
    token_budget: int | None = None
    comparing: bool = False


class EngineLost(Exception):
    """The engine's process or device is gone. Another engine may be built in its place; the batch was not computed."""


class Engine(Protocol):
    """A model on a device, ready to run. Not thread-safe: one thread owns it."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is; constant."""

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        """
        One forward pass. Computes only the heads that `modes` asks for.

        Args:
            batch: The token sequences.
            modes: The parts wanted.
            half: Everyone wants the vectors as float16: an engine on another device may give them so and copy less.

        Raises:
            MemoryError: the batch does not fit; a smaller one may.
            EngineLost: the engine must be built anew.
        """

    def close(self) -> None:
        """Releases the device's memory. The engine cannot be run afterwards."""


class RunningBatch(Protocol):
    """A batch that an engine has begun to compute."""

    def result(self) -> EngineOutput:
        """Waits for it. Raises as `Engine.run`."""


@runtime_checkable
class OverlappingEngine(Engine, Protocol):
    """An engine that takes the next batch while it computes one. Results are collected in the order of submission."""

    def submit(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> RunningBatch:
        """Begins a forward pass as `run`; at most two are under way. Raises as `run`."""


class EngineFactory(Protocol):
    """Builds an engine. Imports its library when called, not before."""

    def __call__(self, request: EngineRequest) -> Engine:
        """
        Raises:
            LoadError: a file is missing or unreadable, or the device or package is not there; says how to mend it.
        """
