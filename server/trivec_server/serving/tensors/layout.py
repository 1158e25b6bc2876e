"""Requests' tensors as one batch, and the batch's outputs as each request's own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.tensor_interface import TensorEngineInfo
from trivec_server.errors import ComputeError
from trivec_server.types import TensorSpec

Tensors = Mapping[str, NDArray[Any]]


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
        self._symbols = info.symbols
        self._has_batch_dimension = has_batch_dimension

    def join(self, requests: Sequence[Tensors]) -> dict[str, NDArray[Any]]:
        """The inputs of a batch, in the model's own shapes."""
        joined: dict[str, NDArray[Any]] = {}
        for name in requests[0]:
            arrays = [request[name] for request in requests]
            if len(arrays) > 1:
                widest = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True))
                whole = np.concatenate([_padded(array, widest) for array in arrays])
            else:
                whole = arrays[0]
            joined[name] = self._reshaped(self._inputs[name], whole)
        return joined

    def split(
        self, requests: Sequence[Tensors], rows: Sequence[int], outputs: Tensors
    ) -> list[dict[str, NDArray[Any]]]:
        """
        Each request's own outputs, in the shapes that requests get. `rows`: how many each request has.

        Raises:
            ComputeError: the model gave another number of rows than it was given, or another rank than declared.
        """
        if not self._has_batch_dimension:
            return [{name: self._restored(name, array) for name, array in outputs.items()}]
        total = sum(rows)
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != total:
                raise ComputeError(f"output '{name}' has shape {list(array.shape)} for a batch of {total} rows")
        if len(requests) == 1:
            return [{name: self._restored(name, array) for name, array in outputs.items()}]
        results: list[dict[str, NDArray[Any]]] = []
        padded = self._sizes(requests)
        start = 0
        for request, count in zip(requests, rows, strict=True):
            own = self._sizes([request])
            results.append(
                {
                    name: self._restored(name, self._cut(name, array[start : start + count], own, padded))
                    for name, array in outputs.items()
                }
            )
            start += count
        return results

    def _sizes(self, requests: Sequence[Tensors]) -> dict[str, int]:
        """The largest size of each named dimension, the batch dimension left out."""
        sizes: dict[str, int] = {}
        for request in requests:
            for name, array in request.items():
                if self._inputs[name].reshape is not None:
                    continue
                for symbol, size in zip(self._symbols.get(name, ())[1:], array.shape[1:], strict=False):
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
        batch, sizes = self._divided(array.shape)
        return array.reshape((*batch, *_matched(spec.shape, spec.reshape, sizes)))

    def _restored(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """The model's shape as the request's."""
        spec = self._outputs[name]
        if spec.reshape is None:
            return array
        batch, sizes = self._divided(array.shape)
        return array.reshape((*batch, *_matched(spec.reshape, spec.shape, sizes)))

    def _divided(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (shape[:1], shape[1:]) if self._has_batch_dimension else ((), shape)


def _matched(given: Sequence[int], wanted: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """`wanted` with each -1 replaced by the size that stands at the -1 of the same place in order in `given`."""
    variable = iter([size for dimension, size in zip(given, sizes, strict=True) if dimension == -1])
    return [next(variable) if dimension == -1 else dimension for dimension in wanted]


def _padded(array: NDArray[Any], widest: tuple[int, ...]) -> NDArray[Any]:
    """The array with zeros, or empty elements, at the end of each dimension but the first."""
    missing = [wide - size for wide, size in zip(widest, array.shape[1:], strict=True)]
    if not any(missing):
        return array
    filler: Any = b"" if array.dtype == np.object_ else 0
    return np.pad(array, [(0, 0), *((0, count) for count in missing)], constant_values=filler)
