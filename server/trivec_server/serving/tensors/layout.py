"""Requests' tensors as one batch, and the batch's outputs as each request's own."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.tensor_interface import DTYPES, TensorEngineInfo
from trivec_server.errors import ComputeError
from trivec_server.types import TensorSpec

Tensors = Mapping[str, NDArray[Any]]

_BYTES_PER_STRING = 64


class BatchLayout:
    """
    How the tensors of requests are put together for one model, and taken apart.

    Shapes that differ, where an input may be ragged, are padded at their ends with zeros (BYTES: with empty elements).
    An output's dimension that the model calls by the name of a padded one is cut back to each request's own size; other
    outputs come as the model computes them over the padding.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        info: TensorEngineInfo,
        *,
        has_batch_dimension: bool,
    ) -> None:
        self._inputs = {spec.name: spec for spec in inputs}
        self._outputs = {spec.name: spec for spec in outputs}
        self._computed = {spec.name: spec for spec in info.outputs}
        self._symbols = info.symbols
        self._has_batch_dimension = has_batch_dimension
        self._first_own_axis = 1 if has_batch_dimension else 0

    def join(self, requests: Sequence[Tensors]) -> dict[str, NDArray[Any]]:
        """The inputs of a batch, in the model's own shapes."""
        return {
            name: self._reshaped(self._inputs[name], _stacked([request[name] for request in requests]))
            for name in requests[0]
        }

    def split(
        self, requests: Sequence[Tensors], rows: Sequence[int], outputs: Tensors
    ) -> list[dict[str, NDArray[Any]]]:
        """
        Each request's own outputs, in the shapes that requests get. `rows`: how many each request has.

        Raises:
            ComputeError: the model gave another number of rows than it was given, or another shape than declared.
        """
        if self._has_batch_dimension:
            self._check_rows(sum(rows), outputs)
        if len(requests) == 1:
            return [{name: self._restored(name, array) for name, array in outputs.items()}]
        results: list[dict[str, NDArray[Any]]] = []
        padded = self._sizes(requests)
        start = 0
        for request, count in zip(requests, rows, strict=True):
            own = self._sizes([request])
            parts = {
                name: self._cut(name, array[start : start + count], own, padded) for name, array in outputs.items()
            }
            results.append({name: self._restored(name, part) for name, part in parts.items()})
            start += count
        return results

    def output_bytes(self, inputs: Tensors, rows: int, outputs: Sequence[str]) -> int:
        """About what a request's outputs will take; a dimension that only the model knows counts as 1."""
        sizes = self._sizes([inputs])
        return rows * sum(self._row_bytes(name, sizes) for name in outputs)

    def _row_bytes(self, name: str, sizes: Mapping[str, int]) -> int:
        spec = self._computed[name]
        symbols = self._symbols.get(name) or ("",) * len(spec.shape)
        own = zip(spec.shape[self._first_own_axis :], symbols[self._first_own_axis :], strict=True)
        return _item_bytes(spec.datatype) * math.prod(
            sizes.get(symbol, 1) if size == -1 else size for size, symbol in own
        )

    @staticmethod
    def _check_rows(total: int, outputs: Tensors) -> None:
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != total:
                shape = list(array.shape)
                raise ComputeError(
                    f"output '{name}' has shape {shape} for a batch of {total} rows; a model without a batch dimension "
                    "needs `max_batch_size: 0`"
                )

    def _sizes(self, requests: Sequence[Tensors]) -> dict[str, int]:
        """The largest size of each named dimension, the batch dimension left out."""
        sizes: dict[str, int] = {}
        for request in requests:
            for name, array in request.items():
                if self._inputs[name].reshape is not None:
                    continue
                symbols = self._symbols.get(name, ())
                for symbol, size in zip(
                    symbols[self._first_own_axis :], array.shape[self._first_own_axis :], strict=False
                ):
                    if symbol:
                        sizes[symbol] = max(size, sizes.get(symbol, 0))
        return sizes

    def _cut(self, name: str, array: NDArray[Any], own: Mapping[str, int], padded: Mapping[str, int]) -> NDArray[Any]:
        for axis, symbol in enumerate(self._symbols.get(name, ())):
            if axis and symbol in own and own[symbol] < padded[symbol] == array.shape[axis]:
                array = array.take(range(own[symbol]), axis)
        return array

    def _reshaped(self, spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
        """The request's shape as the model's."""
        if spec.reshape is None:
            return array
        own = array.shape[self._first_own_axis :]
        return array.reshape((*array.shape[: self._first_own_axis], *_matched(spec.shape, spec.reshape, own)))

    def _restored(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """The model's shape as the request's."""
        spec = self._outputs[name]
        if spec.reshape is None:
            return array
        own = array.shape[self._first_own_axis :]
        try:
            return array.reshape((*array.shape[: self._first_own_axis], *_matched(spec.reshape, spec.shape, own)))
        except ValueError as error:
            declared = [*([-1] if self._has_batch_dimension else []), *spec.reshape]
            raise ComputeError(
                f"output '{name}' has shape {list(array.shape)}; config.pbtxt says that the model gives {declared}"
            ) from error


def _matched(given: Sequence[int], wanted: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """`wanted` with each -1 replaced by the size that stands at the -1 of the same place in order in `given`."""
    variable = iter([size for dimension, size in zip(given, sizes, strict=True) if dimension == -1])
    return [next(variable) if dimension == -1 else dimension for dimension in wanted]


def _stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The rows of all arrays, each at the beginning of what is as wide as the widest; the rest is zeros, or empty."""
    if len(arrays) == 1:
        return arrays[0]
    widest = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True))
    if all(array.shape[1:] == widest for array in arrays):
        return np.concatenate(arrays)
    filler: Any = b"" if arrays[0].dtype == np.object_ else 0
    whole = np.full((sum(map(len, arrays)), *widest), filler, arrays[0].dtype)
    start = 0
    for array in arrays:
        whole[(slice(start, start + len(array)), *map(slice, array.shape[1:]))] = array
        start += len(array)
    return whole


def _item_bytes(datatype: str) -> int:
    return _BYTES_PER_STRING if datatype == "BYTES" else DTYPES[datatype].itemsize
