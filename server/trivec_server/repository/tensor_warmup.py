"""The batches that a model which takes tensors runs before it is ready."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.tensor_interface import DTYPES
from trivec_server.errors import LoadError
from trivec_server.types import TensorSpec, TensorWarmup, WarmupData, WarmupTensor

WARMUP_DIR = "warmup"
"""The directory, beside a model's versions, of the files that warm-ups name."""

_LENGTH_BYTES = 4


def warmup_arrays(
    warmup: TensorWarmup, inputs: Sequence[TensorSpec], max_batch_size: int, model_dir: Path
) -> Mapping[str, NDArray[Any]]:
    """
    The inputs of a warm-up's batch, in the shapes that requests have.

    Raises:
        LoadError: the warm-up does not fit the model, or a file is missing or too short.
    """
    at = f"model_warmup `{warmup.name}`"
    if warmup.batch_size > max(1, max_batch_size):
        raise LoadError(f"{at}: batch_size {warmup.batch_size} exceeds max_batch_size {max_batch_size}")
    given = {tensor.name: tensor for tensor in warmup.inputs}
    known = {spec.name: spec for spec in inputs}
    for name, spec in known.items():
        if name not in given and not spec.optional:
            raise LoadError(f"{at}: the input '{name}' is missing")
    arrays = {}
    for name, tensor in given.items():
        if name not in known:
            raise LoadError(f"{at}: the model has no input '{name}'; it has {', '.join(known)}")
        _check(f"{at}: input '{name}'", tensor, known[name])
        row = _row(f"{at}: input '{name}'", tensor, model_dir)
        arrays[name] = np.repeat(row[np.newaxis], warmup.batch_size, axis=0) if max_batch_size else row
    return arrays


def zero_arrays(inputs: Sequence[TensorSpec], max_batch_size: int) -> Mapping[str, NDArray[Any]]:
    """One row of zeros, or empty elements, in which every dimension that varies is 1. Optional inputs are left out."""
    batch = (1,) if max_batch_size else ()
    return {
        spec.name: _zeros(spec.datatype, (*batch, *(1 if dim == -1 else dim for dim in spec.shape)))
        for spec in inputs
        if not spec.optional
    }


def _check(at: str, tensor: WarmupTensor, spec: TensorSpec) -> None:
    if tensor.datatype != spec.datatype:
        raise LoadError(f"{at}: is {tensor.datatype}, but {spec.datatype} for requests")
    fits = len(tensor.shape) == len(spec.shape) and all(
        allowed in (-1, size) for size, allowed in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        raise LoadError(f"{at}: has dims {list(tensor.shape)}, but {list(spec.shape)} for requests")


def _row(at: str, tensor: WarmupTensor, model_dir: Path) -> NDArray[Any]:
    match tensor.data:
        case WarmupData.ZERO:
            return _zeros(tensor.datatype, tensor.shape)
        case WarmupData.RANDOM:
            return _random(tensor.datatype, tensor.shape)
        case WarmupData.FILE:
            return _from_file(at, tensor, model_dir / WARMUP_DIR / tensor.filename)


def _zeros(datatype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.full(shape, b"" if datatype == "BYTES" else 0, DTYPES[datatype])


def _random(datatype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The same numbers each time: 0 and 1, which suit token ids, masks and flags; from 0 to 1 where they may."""
    if datatype == "BYTES":
        return _zeros(datatype, shape)
    numbers = np.random.default_rng(0).random(shape)
    if datatype == "BF16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if DTYPES[datatype].kind != "f":
        numbers = numbers.round()
    return numbers.astype(DTYPES[datatype])


def _from_file(at: str, tensor: WarmupTensor, path: Path) -> NDArray[Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LoadError(f"{at}: {path}: cannot be read: {error.strerror}") from None
    if tensor.datatype == "BYTES":
        elements = _elements(at, path, content, prod(tensor.shape))
        row = np.empty(len(elements), np.object_)
        row[:] = elements
        return row.reshape(tensor.shape)
    dtype = DTYPES[tensor.datatype]
    needed = prod(tensor.shape) * dtype.itemsize
    if len(content) < needed:
        raise LoadError(f"{at}: {path}: has {len(content)} bytes, the shape needs {needed}")
    return np.frombuffer(content[:needed], dtype).reshape(tensor.shape)


def _elements(at: str, path: Path, content: bytes, count: int) -> list[bytes]:
    """Each element is its length, uint32 little-endian, and so many bytes."""
    elements: list[bytes] = []
    start = 0
    while len(elements) < count:
        end = start + _LENGTH_BYTES
        length = int.from_bytes(content[start:end], "little")
        if end + length > len(content):
            raise LoadError(f"{at}: {path}: ends within element {len(elements)} of {count}")
        elements.append(content[end : end + length])
        start = end + length
    return elements
