"""Tensors out of a source into a graph: each checked, stored once, and given to the nodes as float32."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto

from trivec_server.backends.graph.nodes import GraphNodes
from trivec_server.backends.graph.spec import Precision, TensorSource
from trivec_server.errors import LoadError

INT8_MOST = 127
"""The largest whole number that a rounded weight or activation is; the smallest is -127."""


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """
    The names of a rounded linear weight: `rounded` int8 [inputs, outputs], `scales` float32 [outputs], and the inputs
    that were not rounded, `exact` float32 [J, outputs].
    """

    rounded: str
    scales: str
    exact: str | None


class GraphWeights:
    """
    The weights of one graph. Every method that stores one returns the name of its value in the graph.

    All of them raise LoadError for a tensor that is missing, not finite, or of another shape or type than expected.
    """

    def __init__(self, nodes: GraphNodes, tensors: TensorSource, precision: Precision) -> None:
        self._nodes = nodes
        self._tensors = tensors
        self._names = frozenset(tensors.names())
        self._matrix_type = np.float16 if precision == "float16" else np.float32

    def linear(self, x: str, prefix: str, inputs: int, outputs: int) -> str:
        """The node of x W^T + b, x [..., inputs]. W is stored as [in, out], so that no engine turns it in a copy."""
        name = f"{prefix}.weight"
        stored = self._nodes.weight(name, self._checked(name, (outputs, inputs)).T, self._matrix_type)
        product = self._nodes.add("MatMul", x, self.to_float32(stored))
        return self._nodes.add("Add", product, self.vector(f"{prefix}.bias", outputs))

    def half_linear(self, x: str, prefix: str, inputs: int, outputs: int) -> str:
        """As `linear`, all in float16."""
        name = f"{prefix}.weight"
        stored = self._nodes.weight(name, self._checked(name, (outputs, inputs)).T, np.float16)
        return self._nodes.add(
            "Add", self._nodes.add("MatMul", x, stored), self.vector(f"{prefix}.bias", outputs, np.float16)
        )

    def int8_matrix(self, name: str, outputs: int, inputs: int, exact: Sequence[int] = ()) -> Int8Matrix:
        """A linear weight rounded to -127 to 127, but for the inputs `exact`, which stay in float32."""
        weight = np.array(self._checked(name, (outputs, inputs)), np.float32)
        kept = weight[:, list(exact)].T
        weight[:, list(exact)] = 0
        largest = np.abs(weight).max(axis=1)
        if not np.isfinite(largest).all():
            raise LoadError(f"tensor {name}: a value is not finite")
        scales = np.where(largest > 0, largest / INT8_MOST, 1).astype(np.float32)
        np.rint(np.divide(weight, scales[:, None], out=weight), out=weight)
        return Int8Matrix(
            rounded=self._nodes.weight(name, np.clip(weight, -INT8_MOST, INT8_MOST, out=weight).T, np.int8),
            scales=self._nodes.weight(f"{name}_scales", scales, np.float32),
            exact=self._nodes.weight(f"{name}_exact", kept, np.float32) if len(exact) else None,
        )

    def layer_norm(
        self, x: str, prefix: str, size: int, epsilon: float, number: type[np.float32 | np.float16] = np.float32
    ) -> str:
        """The layer norm of x, [..., size], of the type `number`."""
        scale = self.vector(f"{prefix}.weight", size, number)
        bias = self.vector(f"{prefix}.bias", size, number)
        return self._nodes.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def vector(self, name: str, size: int, number: type[np.float32 | np.float16] = np.float32) -> str:
        """A vector, float32 unless said otherwise, whatever the graph's precision."""
        return self._nodes.weight(name, self._checked(name, (size,)), number)

    def first_row(self, name: str, columns: int) -> str:
        """The first row of a matrix with any number of rows, always float32."""
        return self._nodes.weight(name, self._checked(name, (None, columns))[0], np.float32)

    def table(self, name: str, shape: tuple[int, ...]) -> str:
        """A table to look rows up in, in the graph's precision: what is looked up goes through `to_float32`."""
        return self._nodes.weight(name, self._checked(name, shape), self._matrix_type)

    def to_float32(self, value: str) -> str:
        """A matrix or rows of a table in the graph's precision, as float32."""
        if self._matrix_type is np.float32:
            return value
        return self._nodes.add("Cast", value, to=TensorProto.FLOAT)

    def exact_table(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> str:
        """A table that must have this type already, whatever the graph's precision."""
        array = self._checked(name, shape, dtype)
        return self._nodes.weight(name, array, dtype)

    def _checked(self, name: str, shape: tuple[int | None, ...], dtype: DTypeLike | None = None) -> NDArray[np.generic]:
        expected = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        if name not in self._names:
            raise LoadError(f"tensor {name} is missing: expected one of shape {expected}")
        array = self._tensors.get(name)
        if len(array.shape) != len(shape) or any(
            found < 1 or size not in {None, found} for found, size in zip(array.shape, shape, strict=True)
        ):
            raise LoadError(f"tensor {name} has shape {list(array.shape)}, expected {expected}")
        if not (array.dtype.kind == "f" if dtype is None else array.dtype == dtype):
            kind = "floating-point numbers" if dtype is None else np.dtype(dtype).name
            raise LoadError(f"tensor {name} holds {array.dtype.name}, expected {kind}")
        return array
