"""The encoder's part of a graph: embeddings and post-layer-norm transformer layers, BERT or XLM-RoBERTa."""

import math

import numpy as np
from onnx import TensorProto, helper

from trivec_server.backends.graph_nodes import GraphNodes
from trivec_server.backends.graph_spec import QUANTIZATION_BLOCK, EncoderSpec
from trivec_server.backends.graph_weights import GraphWeights
from trivec_server.types import PAD_TOKEN_ID

SCORE_ELEMENTS = 1 << 24
"""
The most attention scores held at once: 64 MiB in float32, and as much again for their softmax. All scores of 64 texts
of 128 tokens fit with 16 heads, and are computed in one step; those of one text of 8192 tokens (4 GiB) take 64 steps.
"""

LEAST_QUERY_ROWS = 32


class Encoder:
    """
    Writes the nodes of an encoder, from `input_ids` and `attention_mask`, both int64 [B, T], to the last hidden state.

    The formulas are those of transformers' BertModel and XLMRobertaModel, computed in float32: erf GELU, layer norm
    after each residual sum. Letters in comments: B texts, T tokens, N attention heads, D = hidden / N, R query rows.
    """

    def __init__(self, nodes: GraphNodes, spec: EncoderSpec, weights: GraphWeights) -> None:
        self._nodes = nodes
        self._spec = spec
        self._weights = weights

    def write(self) -> str:
        """Returns the name of the last hidden state, float32 [B, T, hidden]."""
        with self._nodes.scope("embeddings"):
            hidden = self._embeddings()
        with self._nodes.scope("attention"):
            attention = _Attention(self._nodes, self._spec)
        for layer in range(self._spec.layers):
            with self._nodes.scope(f"layer.{layer}"):
                hidden = self._layer(hidden, f"encoder.layer.{layer}", attention)
        return hidden

    def _embeddings(self) -> str:
        nodes, hidden = self._nodes, self._spec.hidden
        words = self._word_rows_4bit() if self._spec.word_embeddings == "blocks4" else self._word_rows()
        types = self._weights.first_row("embeddings.token_type_embeddings.weight", hidden)
        total = nodes.add("Add", nodes.add("Add", words, types), self._position_rows())
        return self._layer_norm(total, "embeddings.LayerNorm")

    def _word_rows(self) -> str:
        shape = (self._spec.vocabulary_size, self._spec.hidden)
        table = self._weights.table("embeddings.word_embeddings.weight", shape)
        return self._weights.to_float32(self._nodes.add("Gather", table, "input_ids"))

    def _word_rows_4bit(self) -> str:
        nodes, weights, rows, hidden = self._nodes, self._weights, self._spec.vocabulary_size, self._spec.hidden
        blocks = hidden // QUANTIZATION_BLOCK
        packed = weights.exact_table("embeddings.word_embeddings.blocks", (rows, hidden // 2), np.uint8)
        scales = weights.exact_table("embeddings.word_embeddings.scales", (rows, blocks), np.float16)
        packed = nodes.add("Cast", nodes.add("Gather", packed, "input_ids"), to=TensorProto.FLOAT)
        packed = nodes.add("Reshape", packed, nodes.constant([0, 0, blocks, QUANTIZATION_BLOCK // 2]))
        scales = nodes.add("Cast", nodes.add("Gather", scales, "input_ids"), to=TensorProto.FLOAT)
        scales = nodes.add("Unsqueeze", scales, nodes.constant([3]))  # [B, T, blocks, 1]
        # Whole numbers below 256 are exact in float32, and every engine has these operators, unlike shifts.
        high = nodes.add("Floor", nodes.add("Mul", packed, nodes.constant(1 / 16, np.float32)))
        low = nodes.add("Sub", packed, nodes.add("Mul", high, nodes.constant(16.0, np.float32)))
        nibbles = nodes.add("Concat", low, high, axis=3)  # [B, T, blocks, 32]
        values = nodes.add("Mul", nodes.add("Sub", nibbles, nodes.constant(8.0, np.float32)), scales)
        return nodes.add("Reshape", values, nodes.constant([0, 0, hidden]))

    def _position_rows(self) -> str:
        nodes, spec = self._nodes, self._spec
        table = self._weights.table("embeddings.position_embeddings.weight", (spec.max_positions, spec.hidden))
        if spec.architecture == "bert":
            tokens = nodes.add("Shape", "input_ids", start=1, end=2)
            first = nodes.constant([spec.position_offset])
            end = nodes.add("Add", tokens, first)
            return self._weights.to_float32(nodes.add("Slice", table, first, end, nodes.constant([0])))
        # From ids, not from the mask: a literal <pad> inside a text takes no position (transformers,
        # modeling_xlm_roberta.py, create_position_ids_from_input_ids).
        padding = nodes.add("Equal", "input_ids", nodes.constant(PAD_TOKEN_ID))
        real = nodes.add("Cast", nodes.add("Not", padding), to=TensorProto.INT64)
        count = nodes.add("Mul", nodes.add("CumSum", real, nodes.constant(1)), real)
        positions = nodes.add("Add", count, nodes.constant(spec.position_offset - 1))
        return self._weights.to_float32(nodes.add("Gather", table, positions))

    def _layer(self, hidden: str, prefix: str, attention: "_Attention") -> str:
        nodes, weights = self._nodes, self._weights
        size, inner_size = self._spec.hidden, self._spec.intermediate
        query, key, value = (
            weights.linear(hidden, f"{prefix}.attention.self.{part}", size, size) for part in ("query", "key", "value")
        )
        context = attention.write(query, key, value)
        context = weights.linear(context, f"{prefix}.attention.output.dense", size, size)
        hidden = self._layer_norm(nodes.add("Add", context, hidden), f"{prefix}.attention.output.LayerNorm")
        inner = self._gelu(weights.linear(hidden, f"{prefix}.intermediate.dense", size, inner_size))
        outer = weights.linear(inner, f"{prefix}.output.dense", inner_size, size)
        return self._layer_norm(nodes.add("Add", outer, hidden), f"{prefix}.output.LayerNorm")

    def _gelu(self, x: str) -> str:
        # x (1 + erf(x / sqrt 2)) / 2 in the order that ONNX Runtime's GeluFusion recognizes.
        nodes = self._nodes
        erf = nodes.add("Erf", nodes.add("Div", x, nodes.constant(math.sqrt(2), np.float32)))
        product = nodes.add("Mul", x, nodes.add("Add", erf, nodes.constant(1.0, np.float32)))
        return nodes.add("Mul", product, nodes.constant(0.5, np.float32))

    def _layer_norm(self, x: str, prefix: str) -> str:
        scale = self._weights.vector(f"{prefix}.weight", self._spec.hidden)
        bias = self._weights.vector(f"{prefix}.bias", self._spec.hidden)
        return self._nodes.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=self._spec.layer_norm_eps)


class _Attention:
    """
    Multi-head attention in steps of R query rows, so that memory grows with T, not with its square.

    R is chosen at run time from the size of the batch. Short inputs take one step.
    """

    def __init__(self, nodes: GraphNodes, spec: EncoderSpec) -> None:
        self._nodes = nodes
        self._spec = spec
        self._bias = self._mask_bias()
        self._rows, self._steps = self._query_rows()

    def write(self, query: str, key: str, value: str) -> str:
        """From float32 [B, T, hidden] each to the context, float32 [B, T, hidden]."""
        nodes, size = self._nodes, self._spec.hidden // self._spec.heads
        query = nodes.add("Mul", self._split(query, [0, 2, 1, 3]), nodes.constant(1 / math.sqrt(size), np.float32))
        key = self._split(key, [0, 2, 3, 1])  # [B, N, D, T]
        value = self._split(value, [0, 2, 1, 3])  # [B, N, T, D]
        step, go_on, done = (nodes.name(stem) for stem in ("step", "go_on", "done"))
        with nodes.subgraph() as body:
            going_on = nodes.add("Identity", go_on)
            context = self._context(self._query_slice(query, step), key, value)
            joined = nodes.add("Concat", done, context, axis=1)
        rows = ["batch", None, self._spec.hidden]
        graph = helper.make_graph(
            body,
            nodes.name("steps"),
            [
                helper.make_tensor_value_info(step, TensorProto.INT64, []),
                helper.make_tensor_value_info(go_on, TensorProto.BOOL, []),
                helper.make_tensor_value_info(done, TensorProto.FLOAT, rows),
            ],
            [
                helper.make_tensor_value_info(going_on, TensorProto.BOOL, []),
                helper.make_tensor_value_info(joined, TensorProto.FLOAT, rows),
            ],
        )
        return nodes.add("Loop", self._steps, nodes.constant(True, np.bool_), self._nothing(value), body=graph)

    def _split(self, x: str, order: list[int]) -> str:
        spec = self._spec
        shape = self._nodes.constant([0, 0, spec.heads, spec.hidden // spec.heads])
        return self._nodes.add("Transpose", self._nodes.add("Reshape", x, shape), perm=order)

    def _nothing(self, value: str) -> str:
        # [B, 0, hidden], to which each step joins its rows.
        nodes, zero = self._nodes, self._nodes.constant([0])
        none = nodes.add("Slice", value, zero, zero, nodes.constant([2]))  # [B, N, 0, D]
        return self._join_heads(none)

    def _query_slice(self, query: str, step: str) -> str:
        nodes = self._nodes
        start = nodes.add("Mul", nodes.add("Unsqueeze", step, nodes.constant([0])), self._rows)
        end = nodes.add("Add", start, self._rows)
        return nodes.add("Slice", query, start, end, nodes.constant([2]))  # [B, N, R, D]

    def _context(self, query: str, key: str, value: str) -> str:
        nodes = self._nodes
        scores = nodes.add("Add", nodes.add("MatMul", query, key), self._bias)  # [B, N, R, T]
        return self._join_heads(nodes.add("MatMul", nodes.add("Softmax", scores, axis=-1), value))

    def _join_heads(self, x: str) -> str:
        rows = self._nodes.add("Transpose", x, perm=[0, 2, 1, 3])  # [B, R, N, D]
        # The sizes are all named, since a 0 among rows leaves nothing for -1 to be worked out from.
        return self._nodes.add("Reshape", rows, self._nodes.constant([0, 0, self._spec.hidden]))

    def _mask_bias(self) -> str:
        # 0 where a token is attended, the lowest float32 elsewhere, as transformers has it. [B, 1, 1, T]
        nodes = self._nodes
        mask = nodes.add("Cast", "attention_mask", to=TensorProto.FLOAT)
        absent = nodes.add("Sub", nodes.constant(1.0, np.float32), nodes.add("Unsqueeze", mask, nodes.constant([1, 2])))
        return nodes.add("Mul", absent, nodes.constant(float(np.finfo(np.float32).min), np.float32))

    def _query_rows(self) -> tuple[str, str]:
        nodes = self._nodes
        batch = nodes.add("Shape", "input_ids", start=0, end=1)
        tokens = nodes.add("Shape", "input_ids", start=1, end=2)
        scores_per_row = nodes.add("Mul", nodes.add("Mul", batch, tokens), nodes.constant([self._spec.heads]))
        rows = nodes.add("Div", nodes.constant([SCORE_ELEMENTS]), scores_per_row)
        rows = nodes.add("Max", rows, nodes.constant([LEAST_QUERY_ROWS]))
        last = nodes.add("Sub", nodes.add("Add", tokens, rows), nodes.constant([1]))
        steps = nodes.add("Squeeze", nodes.add("Div", last, rows), nodes.constant([0]))  # ceil(T / R)
        return rows, steps
