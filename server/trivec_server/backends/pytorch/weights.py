"""Tensors of a stored model as torch has them, each checked: its shape, its type, that it is finite."""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from trivec_server.backends.graph.spec import QUANTIZATION_BLOCK, EncoderSpec, TensorSource
from trivec_server.errors import LoadError

_CHECKED_AT_ONCE = 1 << 18
"""Numbers checked in one step: few enough to stay in the cache."""
_COPIED_ROWS = 1 << 14
_UNSIGNED: Mapping[int, type[np.unsignedinteger]] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_FLOAT16_MAX = float(np.finfo(np.float16).max)


class CheckedTensors:
    """
    The tensors of a source, to be computed with in `dtype`.

    All methods raise LoadError for a tensor that is missing, unreadable, not finite, above what float16 holds if that
    is the type, or of another shape or type than expected. A size of None in a shape may be any.
    """

    def __init__(self, source: TensorSource, dtype: torch.dtype) -> None:
        self._source = source
        self._is_float16 = dtype is torch.float16
        self._names = frozenset(source.names())

    def mapped(self, name: str, shape: tuple[int | None, ...], dtype: DTypeLike | None = None) -> NDArray[np.generic]:
        """As stored, mapped from the file; floating-point numbers if no type is given."""
        expected = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        if name not in self._names:
            raise LoadError(f"tensor {name} is missing, expected one of shape {expected}; pull the model again")
        array = self._source.get(name)
        if len(array.shape) != len(shape) or any(
            found < 1 or size not in {None, found} for found, size in zip(array.shape, shape, strict=True)
        ):
            raise LoadError(f"tensor {name} has shape {list(array.shape)}, expected {expected}; pull the model again")
        if not (array.dtype.kind == "f" if dtype is None else array.dtype == dtype):
            kind = "floating-point numbers" if dtype is None else np.dtype(dtype).name
            raise LoadError(f"tensor {name} holds {array.dtype.name}, expected {kind}; pull the model again")
        if array.dtype.kind == "f":
            self._check_values(name, array)
        return array

    def _check_values(self, name: str, array: NDArray[np.generic]) -> None:
        largest = _largest(array)
        if not np.isfinite(largest):
            raise LoadError(f"tensor {name} has a value that is not finite; pull the model again")
        if self._is_float16 and largest > _FLOAT16_MAX:
            raise LoadError(
                f"tensor {name} has a value of {largest:g}, but float16 ends at {_FLOAT16_MAX:g}: set precision to "
                "bfloat16 or float32"
            )

    def float32(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """A copy in memory, whose numbers lie in the order that they have in the file: it may be a transposed view."""
        array = self.mapped(name, shape)
        if not array.flags.c_contiguous:
            return _copied(array.T).t()
        return _copied(array)

    def linear(self, prefix: str, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        """Weight [outputs, inputs] and bias [outputs]."""
        return self.float32(f"{prefix}.weight", (outputs, inputs)), self.float32(f"{prefix}.bias", (outputs,))


def _copied(array: NDArray[np.generic]) -> Tensor:
    tensor = torch.empty(array.shape, dtype=torch.float32)
    np.copyto(tensor.numpy(), array, casting="same_kind")
    return tensor


def _largest(array: NDArray[np.generic]) -> float:
    """
    The largest absolute value; not finite if one is not. Looks at the bits, which is fast for every width: without the
    sign they are in the order of the numbers, infinities and NaN above all others.
    """
    unsigned = _UNSIGNED[array.dtype.itemsize]
    # A transposed array is looked at as it lies in memory.
    flat = (array if array.flags.c_contiguous else array.T).reshape(-1).view(unsigned)
    magnitude = unsigned(np.iinfo(unsigned).max >> 1)
    parts = range(0, len(flat), _CHECKED_AT_ONCE)
    most = max((flat[start : start + _CHECKED_AT_ONCE] & magnitude).max() for start in parts)
    return float(most.view(array.dtype))


def _drop_pages(array: NDArray[np.generic]) -> None:
    """Takes what was read of a mapped file out of this process's memory; it is read again where it is used."""
    holder: object = array
    while isinstance(holder, np.ndarray):
        holder = holder.base
    if isinstance(holder, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        holder.madvise(mmap.MADV_DONTNEED)


class Table:
    """Rows to look up: in a GPU's memory, or on the CPU mapped from the file, so that only rows in use take memory."""

    def __init__(self, array: NDArray[np.generic], device: torch.device, dtype: torch.dtype | None = None) -> None:
        self._mapped = array if device.type == "cpu" else None
        if self._mapped is None:
            stored = torch.from_numpy(np.empty(0, array.dtype)).dtype
            self._tensor = torch.empty(array.shape, dtype=dtype or stored, device=device)
            for start in range(0, len(array), _COPIED_ROWS):
                rows = slice(start, start + _COPIED_ROWS)
                self._tensor[rows] = torch.from_numpy(np.array(array[rows]))
        else:
            _drop_pages(array)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of `ids`, int32 [N], in the type that they are stored in."""
        if self._mapped is None:
            return self._tensor.index_select(0, ids)
        return torch.from_numpy(self._mapped[ids.numpy()])


@dataclass(frozen=True, slots=True)
class BlockTable:
    """Rows in the `blocks4` storage that `EncoderSpec` describes; only what is looked up is unpacked."""

    blocks: Table
    scales: Table

    def rows(self, ids: Tensor) -> Tensor:
        """float32 [N, hidden]."""
        scales = self.scales.rows(ids).float()  # [N, blocks]
        packed = self.blocks.rows(ids).view(*scales.shape, QUANTIZATION_BLOCK // 2)
        nibbles = torch.cat((packed & 0x0F, packed >> 4), dim=-1)
        return ((nibbles.float() - 8) * scales[..., None]).flatten(1)


def word_table(
    tensors: CheckedTensors, spec: EncoderSpec, device: torch.device, dtype: torch.dtype
) -> Table | BlockTable:
    """The word embeddings, in `dtype` if they are on a GPU and not packed."""
    stem, rows, hidden = "embeddings.word_embeddings", spec.vocabulary_size, spec.hidden
    if spec.word_embeddings == "full":
        return Table(tensors.mapped(f"{stem}.weight", (rows, hidden)), device, dtype)
    blocks = tensors.mapped(f"{stem}.blocks", (rows, hidden // 2), np.uint8)
    scales = tensors.mapped(f"{stem}.scales", (rows, hidden // QUANTIZATION_BLOCK), np.float16)
    return BlockTable(Table(blocks, device), Table(scales, device))
