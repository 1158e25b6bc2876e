"""Nodes and weights of an ONNX graph: names, constants, and the external data file written tensor by tensor."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from trivec_server.errors import LoadError

DATA_FILE = "model.onnx.data"

PAGE_BYTES = 4096
"""Weights start on a page, so that runtimes can map them instead of reading them."""

BLOCK_ELEMENTS = 1 << 22
"""How much of a tensor is converted at a time: 16 MiB in float32."""

Attribute: TypeAlias = int | float | str | Sequence[int] | onnx.GraphProto | TensorProto


CONTRIB = "com.microsoft"
"""The domain of the operators that only ONNX Runtime has."""


class DataFile(Protocol):
    """Where weights are written to."""

    def tell(self) -> int:
        """The offset in bytes at which the next write goes."""

    def seek(self, offset: int, /) -> int:
        """Moves on to an offset."""

    def write(self, block: memoryview, /) -> int:
        """Writes all of a block."""


class DataAlreadyThere:
    """Takes the place of a data file that another graph of the same weights has written."""

    def __init__(self) -> None:
        self._offset = 0

    def tell(self) -> int:
        """As `DataFile.tell`."""
        return self._offset

    def seek(self, offset: int, /) -> int:
        """As `DataFile.seek`."""
        self._offset = offset
        return offset

    def write(self, block: memoryview, /) -> int:
        """Writes nothing."""
        self._offset += block.nbytes
        return block.nbytes


class GraphNodes:
    """
    Collects the nodes and weights of a graph and the nodes of the subgraphs inside it.

    Weights of a page or more go to the external data file at once, so that no more than one of them is in memory;
    smaller ones and constants stay in the model file.
    """

    def __init__(self, data: DataFile) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._data = data
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._scopes: list[str] = []
        self._numbers = itertools.count()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Puts `name.` before the names that are made inside."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    @contextmanager
    def subgraph(self) -> Iterator[list[onnx.NodeProto]]:
        """Collects the nodes made inside in a list of their own. They may use any value made before."""
        outer, self.nodes = self.nodes, []
        try:
            yield self.nodes
        finally:
            self.nodes = outer

    def name(self, stem: str) -> str:
        """A value's name that no other has."""
        return ".".join([*self._scopes, f"{stem}_{next(self._numbers)}"])

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Attribute) -> str:
        """Adds a node with one output; returns the output's name. CONTRIB operators are named with their domain."""
        domain, _, kind = operator.rpartition(".")
        name = output or self.name(kind.lower())
        node = helper.make_node(kind, inputs, [name], name=name, domain=domain or None)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def constant(self, value: float | bool | Sequence[int], dtype: DTypeLike = np.int64) -> str:
        """A small constant. The same one is stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def weight(self, name: str, array: NDArray[np.generic], dtype: DTypeLike) -> str:
        """
        Stores an array of one or two axes as `dtype`, converted and written in blocks.

        Raises:
            LoadError: a value is not finite, or does not fit `dtype`.
            OSError: the data file cannot be written.
        """
        target = np.dtype(dtype)
        tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(target))
        blocks = _converted_blocks(name, array, target)
        if array.size * target.itemsize < PAGE_BYTES:
            tensor.raw_data = b"".join(block.tobytes() for block in blocks)
        else:
            self._write_external(tensor, blocks)
        self.initializers.append(tensor)
        return name

    def _write_external(self, tensor: TensorProto, blocks: Iterator[NDArray[np.generic]]) -> None:
        offset = -(-self._data.tell() // PAGE_BYTES) * PAGE_BYTES
        self._data.seek(offset)
        for block in blocks:
            self._data.write(block.data)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA_FILE), ("offset", offset), ("length", self._data.tell() - offset)):
            tensor.external_data.add(key=key, value=str(value))


def _converted_blocks(
    name: str, array: NDArray[np.generic], dtype: np.dtype[np.generic]
) -> Iterator[NDArray[np.generic]]:
    rows = max(1, BLOCK_ELEMENTS * len(array) // max(1, array.size))
    for start in range(0, len(array), rows):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(array[start : start + rows], dtype.newbyteorder("<"))
        if dtype.kind == "f" and not np.isfinite(block).all():
            raise LoadError(f"tensor {name}: a value is not finite or too large for {dtype.name}")
        yield block
