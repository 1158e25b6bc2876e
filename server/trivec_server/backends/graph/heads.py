"""The three heads of a graph: each hangs off the last hidden state by itself and can be left out of a run."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trivec_server.backends.graph.nodes import GraphNodes
from trivec_server.backends.graph.spec import NORM_EPS, EncoderSpec, HeadsSpec, flag_of
from trivec_server.backends.graph.weights import GraphWeights

OUTPUTS = ("dense", "token_weights", "multi_vector")


class Heads:
    """Writes the nodes of the heads. The formulas are those of FlagEmbedding 1.4.2, `m3/modeling.py`."""

    def __init__(
        self, nodes: GraphNodes, spec: EncoderSpec, heads: HeadsSpec, weights: GraphWeights, *, flags: bool = True
    ) -> None:
        self._flags = flags
        self._nodes = nodes
        self._spec = spec
        self._heads = heads
        self._weights = weights

    def write(self, hidden: str) -> None:
        """From the last hidden state, float32 [B, T, hidden], to the values in OUTPUTS."""
        writers: tuple[Callable[[str], str], ...] = (self._dense, self._token_weights, self._multi_vector)
        for output, info, writer in zip(OUTPUTS, self.output_infos(), writers, strict=True):
            with self._nodes.scope(output):
                if self._flags:
                    self._write_optional(info, hidden, writer)
                else:
                    self._nodes.add("Identity", writer(hidden), output=output)

    def output_infos(self) -> list[onnx.ValueInfoProto]:
        """Name, type and shape of each output."""
        # Sizes that a flag can make 0 have no names, since a name would promise that they equal the inputs'.
        shapes: tuple[list[int | None], ...] = (
            [None, self._spec.hidden],
            [None, None],
            [None, None, self._heads.multi_vector_dimension],
        )
        return [
            helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
            for output, shape in zip(OUTPUTS, shapes, strict=True)
        ]

    def flag_infos(self) -> list[onnx.ValueInfoProto]:
        """Name, type and shape of each flag; none for a graph without them."""
        if not self._flags:
            return []
        return [helper.make_tensor_value_info(flag_of(output), TensorProto.BOOL, []) for output in OUTPUTS]

    def _write_optional(self, info: onnx.ValueInfoProto, hidden: str, writer: Callable[[str], str]) -> None:
        nodes, flag = self._nodes, flag_of(info.name)
        nodes.initializers.append(numpy_helper.from_array(np.asarray(True), flag))
        with nodes.subgraph() as computing:
            computed = writer(hidden)
        shape = [size.dim_value for size in info.type.tensor_type.shape.dim]
        with nodes.subgraph() as skipping:
            nothing = nodes.add("Constant", value=numpy_helper.from_array(np.zeros(shape, np.float32)))
        branches = {
            "then_branch": _branch(computing, computed, info),
            "else_branch": _branch(skipping, nothing, info),
        }
        nodes.add("If", flag, output=info.name, **branches)

    def _dense(self, hidden: str) -> str:
        nodes = self._nodes
        if self._spec.pooling == "cls":
            return self._normalized(nodes.add("Gather", hidden, nodes.constant(0), axis=1))
        mask = self._mask("attention_mask")  # [B, T, 1]
        total = nodes.add("ReduceSum", nodes.add("Mul", hidden, mask), nodes.constant([1]), keepdims=0)
        count = nodes.add("ReduceSum", mask, nodes.constant([1]), keepdims=0)
        return self._normalized(nodes.add("Div", total, count))

    def _token_weights(self, hidden: str) -> str:
        nodes = self._nodes
        if self._heads.sparse == "table":
            table = self._weights.table("sparse_table.weight", (self._spec.vocabulary_size,))
            return self._weights.to_float32(nodes.add("Gather", table, "input_ids"))
        weights = nodes.add("Relu", self._weights.linear(hidden, "sparse_linear", self._spec.hidden, 1))
        return nodes.add("Squeeze", weights, nodes.constant([2]))

    def _multi_vector(self, hidden: str) -> str:
        nodes = self._nodes
        dimension = self._heads.multi_vector_dimension
        vectors = self._weights.linear(self._without_first(hidden), "colbert_linear", self._spec.hidden, dimension)
        return self._normalized(nodes.add("Mul", vectors, self._mask(self._without_first("attention_mask"))))

    def _mask(self, mask: str) -> str:
        nodes = self._nodes
        return nodes.add("Unsqueeze", nodes.add("Cast", mask, to=TensorProto.FLOAT), nodes.constant([2]))

    def _without_first(self, x: str) -> str:
        nodes = self._nodes
        return nodes.add("Slice", x, nodes.constant([1]), nodes.constant([np.iinfo(np.int64).max]), nodes.constant([1]))

    def _normalized(self, x: str) -> str:
        nodes = self._nodes
        norm = nodes.add("ReduceL2", x, nodes.constant([-1]), keepdims=1)
        return nodes.add("Div", x, nodes.add("Max", norm, nodes.constant(NORM_EPS, np.float32)))


def _branch(nodes: list[onnx.NodeProto], value: str, info: onnx.ValueInfoProto) -> onnx.GraphProto:
    output = onnx.ValueInfoProto()
    output.CopyFrom(info)
    output.name = value
    return helper.make_graph(nodes, f"{value}.branch", [], [output])
