"""
The seam between serving and the engines of models that take tensors.

As with `interface.py`, an engine is built, run and closed on one thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trivec_server.types import InstanceKind, TensorSpec

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(np.uint16),
    "BYTES": np.dtype(np.object_),
}
"""The dtype of arrays of each data type. NumPy has no bfloat16: its bits stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEngineInfo:
    """
    What an engine is. `inputs` and `outputs` have the model's own shapes, whole: with the batch dimension, where it has
    one. `symbols`: for each input and output by name, the model's name of each dimension that varies ("" where it has
    none): equal names are equal sizes. `unranked`: the inputs and outputs that may have any number of dimensions; they
    are given as scalars.
    """

    engine: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: Mapping[str, tuple[str, ...]]
    unranked: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[str, ...]:
        """What must stay the same when an engine takes the place of another."""
        return self.engine, self.device


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEngineRequest:
    """What an engine is to be built from. `intra_op_threads` None: as for embedding models."""

    model_file: Path
    kind: InstanceKind = InstanceKind.AUTO
    device_index: int | None = None
    intra_op_threads: int | None = None
    instances: int = 1


class TensorEngine(Protocol):
    """A model on a device, ready to run. Not thread-safe: one thread owns it."""

    @property
    def info(self) -> TensorEngineInfo:
        """What this engine is; constant."""

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """
        One forward pass.

        Args:
            inputs: Arrays of the model's dtypes and shapes; BYTES as object arrays of `bytes`, BF16 as their bits in
                uint16. Outputs are the same.
            outputs: Which outputs to compute.

        Raises:
            MemoryError: the batch does not fit; a smaller one may.
            InvalidTensor: a BYTES element is not UTF-8, for a model that takes text.
            ComputeError: the model failed on what it was given.
            EngineLost: the device failed.
        """

    def close(self) -> None:
        """Releases what the engine holds."""


class TensorEngineFactory(Protocol):
    """Builds an engine. Imports its library when called, not before."""

    def __call__(self, request: TensorEngineRequest) -> TensorEngine:
        """
        Raises:
            LoadError: the file is missing or is no such model; says how to mend it.
        """
