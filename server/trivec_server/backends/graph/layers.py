"""The transformer layers of a graph, post layer norm, in float32, float16, or with int8 matrix products."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from onnx import TensorProto

from trivec_server.backends.graph.attention import Attention
from trivec_server.backends.graph.nodes import CONTRIB, GraphNodes
from trivec_server.backends.graph.spec import Arithmetic, EncoderSpec
from trivec_server.backends.graph.weights import INT8_MOST, GraphWeights

Linear: TypeAlias = Callable[[str, str, int, int], str]
"""Writes x W^T + b from x [..., inputs], the tensors' prefix, inputs and outputs."""

_ZERO_POINT = 128
_LEAST_SCALE = 1e-20
"""Above 0, so that a row of zeros can be divided by it; far below what any row of numbers comes to."""


class Layers:
    """
    Writes layers, from hidden states [B, T, hidden] to the next. All values are float32, with `float16` all are
    float16; ONNX Runtime takes the sums of layer norms and softmax in float32 even so.
    """

    def __init__(
        self,
        nodes: GraphNodes,
        spec: EncoderSpec,
        weights: GraphWeights,
        attention: Attention,
        arithmetic: Arithmetic,
        outliers: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._nodes = nodes
        self._spec = spec
        self._weights = weights
        self._attention = attention
        self._half = arithmetic == "float16"
        self._number = np.float16 if self._half else np.float32
        linears: dict[Arithmetic, Linear] = {
            "float32": weights.linear,
            "float16": weights.half_linear,
            "int8": _Int8Linear(nodes, weights, outliers).write,
        }
        self._linear = linears[arithmetic]

    def write(self, hidden: str) -> str:
        """All layers, from and to float32."""
        if self._half:
            hidden = self._nodes.add("Cast", hidden, to=TensorProto.FLOAT16)
        for layer in range(self._spec.layers):
            with self._nodes.scope(f"layer.{layer}"):
                hidden = self._layer(hidden, f"encoder.layer.{layer}")
        return self._nodes.add("Cast", hidden, to=TensorProto.FLOAT) if self._half else hidden

    def _layer(self, hidden: str, prefix: str) -> str:
        nodes, linear = self._nodes, self._linear
        size, inner_size = self._spec.hidden, self._spec.intermediate
        query, key, value = (
            linear(hidden, f"{prefix}.attention.self.{part}", size, size) for part in ("query", "key", "value")
        )
        context = self._attention.write(query, key, value)
        context = linear(context, f"{prefix}.attention.output.dense", size, size)
        hidden = self._layer_norm(nodes.add("Add", context, hidden), f"{prefix}.attention.output.LayerNorm")
        inner = self._gelu(linear(hidden, f"{prefix}.intermediate.dense", size, inner_size))
        outer = linear(inner, f"{prefix}.output.dense", inner_size, size)
        return self._layer_norm(nodes.add("Add", outer, hidden), f"{prefix}.output.LayerNorm")

    def _gelu(self, x: str) -> str:
        # x (1 + erf(x / sqrt 2)) / 2 in the order that ONNX Runtime's GeluFusion recognizes.
        nodes, number = self._nodes, self._number
        erf = nodes.add("Erf", nodes.add("Div", x, nodes.constant(math.sqrt(2), number)))
        product = nodes.add("Mul", x, nodes.add("Add", erf, nodes.constant(1.0, number)))
        return nodes.add("Mul", product, nodes.constant(0.5, number))

    def _layer_norm(self, x: str, prefix: str) -> str:
        return self._weights.layer_norm(x, prefix, self._spec.hidden, self._spec.layer_norm_eps, self._number)


@dataclass(frozen=True, slots=True)
class _RoundedRows:
    """
    Some x [..., K], as a matrix [M, K] of uint8 around 128 with scales [M, 1], less its outliers, which are [M, J] in
    float32, None if there are none. `source` is the name of x.
    """

    source: str
    matrix: str
    scales: str
    outliers: str | None


class _Int8Linear:
    """
    x W^T + b with W in int8, one scale for each output, and x rounded to whole numbers of -127 to 127 at run time, one
    scale for each row of x, that is, for each token. Outliers of x are multiplied in float32.

    One scale for all of x and no outliers, as in onnxruntime's own quantization, takes two thirds of the time, but a
    text's result would depend on the texts it shares a batch with. With m3-mini, a scale for each token alone gives
    dense vectors whose mean cosine to float32 is 0.9992, and with outliers 0.9999.
    """

    def __init__(self, nodes: GraphNodes, weights: GraphWeights, outliers: Mapping[str, tuple[int, ...]]) -> None:
        self._nodes = nodes
        self._weights = weights
        self._outliers = outliers
        self._rounded: _RoundedRows | None = None

    def write(self, x: str, prefix: str, inputs: int, outputs: int) -> str:
        """As `Linear`."""
        nodes = self._nodes
        outliers = self._outliers.get(prefix) or self._outliers.get(prefix.rpartition(".")[0]) or ()
        rows = self._round(x, inputs, outliers)
        weight = self._weights.int8_matrix(f"{prefix}.weight", outputs, inputs, outliers)
        product = nodes.add(
            f"{CONTRIB}.MatMulIntegerToFloat",
            rows.matrix,
            weight.rounded,
            nodes.constant(1.0, np.float32),
            weight.scales,
            nodes.constant(_ZERO_POINT, np.uint8),
        )
        product = nodes.add("Mul", product, rows.scales)
        if rows.outliers is not None and weight.exact is not None:
            product = nodes.add("Gemm", rows.outliers, weight.exact, product)
        shape = nodes.add("Concat", nodes.add("Shape", x, start=0, end=2), nodes.constant([outputs]), axis=0)
        product = nodes.add("Reshape", product, shape)
        return nodes.add("Add", product, self._weights.vector(f"{prefix}.bias", outputs))

    def _round(self, x: str, size: int, outliers: tuple[int, ...]) -> _RoundedRows:
        """Query, key and value are of the same x, which is rounded once."""
        if self._rounded is None or self._rounded.source != x:
            self._rounded = self._rounded_rows(x, size, outliers)
        return self._rounded

    def _rounded_rows(self, x: str, size: int, outliers: tuple[int, ...]) -> _RoundedRows:
        nodes = self._nodes
        matrix, last, apart = nodes.add("Reshape", x, nodes.constant([-1, size])), nodes.constant([-1]), None
        if outliers:
            apart = nodes.add("Gather", matrix, nodes.constant(outliers), axis=1)
            kept = np.ones(size, np.float32)
            kept[list(outliers)] = 0
            matrix = nodes.add("Mul", matrix, nodes.weight(nodes.name("kept"), kept, np.float32))
        top = nodes.add("ReduceMax", matrix, last, keepdims=1)
        bottom = nodes.add("ReduceMin", matrix, last, keepdims=1)
        largest = nodes.add("Max", top, nodes.add("Neg", bottom))
        scales = nodes.add("Mul", largest, nodes.constant(1 / INT8_MOST, np.float32))
        scales = nodes.add("Max", scales, nodes.constant(_LEAST_SCALE, np.float32))
        # QuantizeLinear wants a scale and a zero point for each row as vectors.
        flat_scales = nodes.add("Reshape", scales, last)
        zero_points = nodes.add("Expand", nodes.constant([_ZERO_POINT], np.uint8), nodes.add("Shape", flat_scales))
        rounded = nodes.add("QuantizeLinear", matrix, flat_scales, zero_points, axis=0)
        return _RoundedRows(x, rounded, scales, apart)
