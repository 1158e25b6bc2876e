"""
The encoder and its heads as an OpenVINO model, over tokens without padding. What is looked up by a token's id is left
to `tables.py`: the CPU plugin would widen a table of halves to float32.

Letters in comments: N tokens of all texts one after the other, B x T the rows that attention runs over (each holds one
or several texts), H hidden, M vectors wanted. The formulas are those of `backends/graph`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import openvino
import openvino.opset15 as ops
from numpy.typing import NDArray

from trivec_server.backends.graph.spec import EncoderSpec
from trivec_server.backends.weights.stored_model import StoredModel
from trivec_server.errors import LoadError

WeightType: TypeAlias = Literal["float32", "float16", "int8"]
"""How matrices are stored. With `int8` the position table stays float16."""

_Node: TypeAlias = Any  # openvino.Node or one of its outputs; the package's types are not for users of its operators
_Array: TypeAlias = NDArray[np.generic]


def write_openvino(model: StoredModel, weights: WeightType, keep: Callable[[_Array], _Array]) -> openvino.Model:
    """
    Builds the model. Its constants lie in the arrays that `keep` gives, which must outlive it.

    Inputs, by name (int32, but for the mask):
        words float32 [N, H]: the tokens' word embeddings.
        positions [N]: the tokens' rows in the position table.
        cells [B, T]: the token that each cell of attention's rows holds; any where it holds none.
        mask float32 [B or 1, 1, T or 1, T]: 0 where a cell attends another, very low elsewhere.
        tokens [N]: the cell of each token, counted row by row.
        vector_tokens [M]: the tokens whose vectors are wanted.
    Outputs, float32: `hidden` [N, H], `multi_vector` [M, D], not normalized, since OpenVINO takes longer for that than
    NumPy, and `token_weights` [N] unless a table holds them.

    Args:
        model: The specs and the weights.
        weights: How to store matrices.
        keep: Gives an array of the same contents that stays where it is.

    Raises:
        LoadError: a tensor is missing, or not of the shape that the spec says, or not finite as stored.
    """
    return _Writer(model, weights, keep).write()


def keep_halves(model: openvino.Model) -> None:
    """
    Tells OpenVINO to leave constants of halves as they are until they are multiplied; it would widen them to float32
    and hold that too. Files do not keep this mark, so it is set before each compilation.
    """
    for node in model.get_ops():
        if node.get_type_name() != "Convert":
            continue
        stored = node.input_value(0)
        if stored.get_node().get_type_name() == "Constant" and stored.get_element_type() == openvino.Type.f16:
            # The name and version of the attribute ov::Decompression.
            node.get_rt_info()["decompression_0"] = True


class _Writer:
    """Writes one model."""

    def __init__(self, model: StoredModel, weights: WeightType, keep: Callable[[_Array], _Array]) -> None:
        self._spec: EncoderSpec = model.encoder
        self._heads = model.heads
        self._tensors = model.tensors
        self._names = frozenset(model.tensors.names())
        self._weights = weights
        self._keep = keep
        self._words = _input("words", [-1, self._spec.hidden], np.float32)
        self._positions = _input("positions", [-1], np.int32)
        self._cells = _input("cells", [-1, -1], np.int32)
        self._mask = _input("mask", [-1, 1, -1, -1], np.float32)
        self._tokens = _input("tokens", [-1], np.int32)
        self._vector_tokens = _input("vector_tokens", [-1], np.int32)

    def write(self) -> openvino.Model:
        """The whole model."""
        hidden = self._embeddings()
        for layer in range(self._spec.layers):
            hidden = self._layer(hidden, f"encoder.layer.{layer}")
        outputs = {"hidden": hidden, "multi_vector": self._multi_vector(hidden)}
        if self._heads.sparse == "linear":
            outputs["token_weights"] = self._token_weights(hidden)
        results = []
        for name, value in outputs.items():
            result = ops.result(value)
            result.output(0).get_tensor().set_names({name})
            results.append(result)
        inputs = [self._words, self._positions, self._cells, self._mask, self._tokens, self._vector_tokens]
        return openvino.Model(results, inputs, "trivec")

    def _embeddings(self) -> _Node:
        spec = self._spec
        types = self._checked("embeddings.token_type_embeddings.weight", (None, spec.hidden))[0]
        table = self._table("embeddings.position_embeddings.weight", (spec.max_positions, spec.hidden))
        positions = ops.gather(ops.convert(table, np.float32), self._positions, _integers(0))
        total = ops.add(ops.add(self._words, self._constant(types.astype(np.float32))), positions)
        return self._layer_norm(total, "embeddings.LayerNorm")

    def _layer(self, hidden: _Node, prefix: str) -> _Node:
        size, inner_size = self._spec.hidden, self._spec.intermediate
        context = self._attention(hidden, f"{prefix}.attention.self")
        context = self._linear(context, [f"{prefix}.attention.output.dense"], size, size)
        hidden = self._layer_norm(ops.add(context, hidden), f"{prefix}.attention.output.LayerNorm")
        inner = ops.gelu(self._linear(hidden, [f"{prefix}.intermediate.dense"], size, inner_size), "ERF")
        outer = self._linear(inner, [f"{prefix}.output.dense"], inner_size, size)
        return self._layer_norm(ops.add(outer, hidden), f"{prefix}.output.LayerNorm")

    def _attention(self, hidden: _Node, prefix: str) -> _Node:
        """From [N, H] to the context, [N, H]; between them tokens lie in rows."""
        spec = self._spec
        parts = [f"{prefix}.{part}" for part in ("query", "key", "value")]
        joined = self._linear(hidden, parts, spec.hidden, spec.hidden)  # [N, 3 H]
        joined = ops.gather(joined, self._cells, _integers(0))  # [B, T, 3 H]
        split = ops.split(joined, ops.constant(np.int64(2)), 3).outputs()
        shape, order = _integers(0, 0, spec.heads, spec.hidden // spec.heads), _integers(0, 2, 1, 3)
        heads = [ops.transpose(ops.reshape(each, shape, special_zero=True), order) for each in split]
        context = ops.scaled_dot_product_attention(*heads, self._mask)  # [B, heads, T, D]
        flat = ops.reshape(ops.transpose(context, order), _integers(-1, spec.hidden), special_zero=False)
        return ops.gather(flat, self._tokens, _integers(0))

    def _token_weights(self, hidden: _Node) -> _Node:
        weight = self._checked("sparse_linear.weight", (1, self._spec.hidden)).astype(np.float32)
        # As a product and a sum, which the CPU plugin computes in float32 at this place, whatever its hint.
        sums = ops.reduce_sum(ops.multiply(hidden, self._constant(weight)), _integers(1), keep_dims=False)
        return ops.relu(ops.add(sums, self._vector("sparse_linear.bias", 1)))

    def _multi_vector(self, hidden: _Node) -> _Node:
        wanted = ops.gather(hidden, self._vector_tokens, _integers(0))
        dimension = self._heads.multi_vector_dimension
        return self._linear(wanted, ["colbert_linear"], self._spec.hidden, dimension)

    def _layer_norm(self, x: _Node, prefix: str) -> _Node:
        normal = ops.mvn(x, _integers(1), True, self._spec.layer_norm_eps, "inside_sqrt")
        scale = self._vector(f"{prefix}.weight", self._spec.hidden)
        return ops.add(ops.multiply(normal, scale), self._vector(f"{prefix}.bias", self._spec.hidden))

    def _linear(self, x: _Node, prefixes: Sequence[str], inputs: int, outputs: int) -> _Node:
        """One or several layers x W^T + b side by side."""
        matrices = [self._checked(f"{prefix}.weight", (outputs, inputs)) for prefix in prefixes]
        biases = [self._checked(f"{prefix}.bias", (outputs,)) for prefix in prefixes]
        name = f"{prefixes[0]}.weight"
        matrix = matrices[0] if len(matrices) == 1 else np.concatenate(matrices)
        weight = self._int8(matrix) if self._weights == "int8" else self._stored(matrix, name)
        bias = self._constant(np.concatenate(biases).astype(np.float32))
        return ops.add(ops.matmul(x, weight, transpose_a=False, transpose_b=True), bias)

    def _int8(self, matrix: _Array) -> _Node:
        """[out, in] as int8 with a scale for each output: the largest weight is 127 scales."""
        exact = matrix.astype(np.float32)
        scales = np.maximum(np.abs(exact).max(axis=1, keepdims=True) / 127, np.finfo(np.float16).tiny)
        scales = scales.astype(np.float16)
        rounded = np.clip(np.rint(exact / scales.astype(np.float32)), -127, 127).astype(np.int8)
        product = ops.multiply(ops.convert(self._constant(rounded), np.float16), self._constant(scales))
        return ops.convert(product, np.float32)

    def _stored(self, matrix: _Array, name: str) -> _Node:
        """A matrix as stored, and as float32 where that is something else."""
        stored = matrix.astype(np.float32 if self._weights == "float32" else np.float16)
        if not np.isfinite(stored).all():
            raise LoadError(f"tensor {name}: a value is not finite or too large for {stored.dtype.name}")
        return _as_float32(self._constant(stored), stored.dtype)

    def _table(self, name: str, shape: tuple[int, ...]) -> _Node:
        array = self._checked(name, shape)
        stored = array.astype(np.float32 if self._weights == "float32" else np.float16, copy=False)
        return self._constant(stored)

    def _vector(self, name: str, size: int) -> _Node:
        return self._constant(self._checked(name, (size,)).astype(np.float32))

    def _constant(self, array: _Array) -> _Node:
        return ops.constant(self._keep(np.require(array, requirements=["C", "W"])), shared_memory=True)

    def _checked(self, name: str, shape: tuple[int | None, ...], dtype: type[np.generic] | None = None) -> _Array:
        if name not in self._names:
            raise LoadError(f"tensor {name} is missing")
        array = self._tensors.get(name)
        fits = len(array.shape) == len(shape) and all(
            size in {None, found} and found for found, size in zip(array.shape, shape, strict=True)
        )
        if not fits or not (array.dtype.kind == "f" if dtype is None else array.dtype == dtype):
            wanted = "x".join("any" if size is None else str(size) for size in shape)
            raise LoadError(f"tensor {name} is {array.dtype} {list(array.shape)}, expected {wanted}")
        return array


def _input(name: str, shape: list[int], dtype: type[np.generic]) -> _Node:
    node = ops.parameter(shape, dtype, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def _as_float32(value: _Node, dtype: np.dtype[np.generic]) -> _Node:
    return value if dtype == np.float32 else ops.convert(value, np.float32)


def _integers(*values: int) -> _Node:
    return ops.constant(np.array(values, np.int64))
