"""The attention of a graph's layers, in three forms: see `spec.GraphForm`."""

import math
from typing import Protocol

import numpy as np
from onnx import TensorProto, helper

from trivec_server.backends.graph.nodes import CONTRIB, GraphNodes
from trivec_server.backends.graph.spec import EncoderSpec, GraphForm

SCORE_ELEMENTS = 1 << 24
"""
The most attention scores held at once: 64 MiB in float32, and as much again for their softmax. All scores of 64 texts
of 128 tokens fit with 16 heads, and are computed in one step; those of one text of 8192 tokens (4 GiB) take 64 steps.
"""

LEAST_QUERY_ROWS = 32


class Attention(Protocol):
    """
    Multi-head attention. Padding is not attended; what padded rows come to is finite and not used.

    Letters in comments: B texts, T tokens, N attention heads, D = hidden / N, R query rows.
    """

    def write(self, query: str, key: str, value: str) -> str:
        """From [B, T, hidden] each to the context, [B, T, hidden], all of one type."""


def make_attention(nodes: GraphNodes, spec: EncoderSpec, form: GraphForm) -> Attention:
    """Writes what all layers share."""
    if form.attention == "fused":
        return _FusedAttention(nodes, spec)
    if form.attention == "whole":
        return _WholeAttention(nodes, spec, np.float16 if form.arithmetic == "float16" else np.float32)
    return _SteppedAttention(nodes, spec)


class _FusedAttention:
    """
    ONNX Runtime's MultiHeadAttention. On CUDA in float16 with this kind of mask it runs a kernel whose memory grows
    with T (onnxruntime, contrib_ops/cuda/bert/multihead_attention.cc, `use_memory_efficient_attention`).
    """

    def __init__(self, nodes: GraphNodes, spec: EncoderSpec) -> None:
        self._nodes = nodes
        self._spec = spec
        self._mask = self._key_lengths()

    def write(self, query: str, key: str, value: str) -> str:
        """As `Attention.write`."""
        inputs = (query, key, value, "", self._mask)
        return self._nodes.add(f"{CONTRIB}.MultiHeadAttention", *inputs, num_heads=self._spec.heads)

    def _key_lengths(self) -> str:
        # int32 [3 B + 2]: the B lengths, then where each text's queries begin and end in [B T], then its keys.
        nodes = self._nodes
        lengths = nodes.add("ReduceSum", "attention_mask", nodes.constant([1]), keepdims=0)
        batch = nodes.add("Shape", "input_ids", start=0, end=1)
        tokens = nodes.add("Shape", "input_ids", start=1, end=2)
        one = nodes.constant(1)
        end = nodes.add("Add", nodes.add("Squeeze", batch, nodes.constant([0])), one)
        starts = nodes.add("Mul", nodes.add("Range", nodes.constant(0), end, one), tokens)
        mask = nodes.add("Concat", lengths, starts, starts, axis=0)
        return nodes.add("Cast", mask, to=TensorProto.INT32)


class _PlainAttention:
    """What attention in standard operators is made of."""

    def __init__(self, nodes: GraphNodes, spec: EncoderSpec, number: type[np.float32 | np.float16]) -> None:
        self._nodes = nodes
        self._spec = spec
        self._number = number
        self._bias = self._mask_bias()

    def _split_all(self, query: str, key: str, value: str) -> tuple[str, str, str]:
        nodes, size = self._nodes, self._spec.hidden // self._spec.heads
        query = nodes.add("Mul", self._split(query, [0, 2, 1, 3]), nodes.constant(1 / math.sqrt(size), self._number))
        key = self._split(key, [0, 2, 3, 1])  # [B, N, D, T]
        return query, key, self._split(value, [0, 2, 1, 3])  # [B, N, T, D]

    def _split(self, x: str, order: list[int]) -> str:
        spec = self._spec
        shape = self._nodes.constant([0, 0, spec.heads, spec.hidden // spec.heads])
        return self._nodes.add("Transpose", self._nodes.add("Reshape", x, shape), perm=order)

    def _context(self, query: str, key: str, value: str) -> str:
        nodes = self._nodes
        scores = nodes.add("Add", nodes.add("MatMul", query, key), self._bias)  # [B, N, R, T]
        return self._join_heads(nodes.add("MatMul", nodes.add("Softmax", scores, axis=-1), value))

    def _join_heads(self, x: str) -> str:
        rows = self._nodes.add("Transpose", x, perm=[0, 2, 1, 3])  # [B, R, N, D]
        # The sizes are all named, since a 0 among rows leaves nothing for -1 to be worked out from.
        return self._nodes.add("Reshape", rows, self._nodes.constant([0, 0, self._spec.hidden]))

    def _mask_bias(self) -> str:
        # 0 where a token is attended, the type's lowest number elsewhere, as transformers has it. [B, 1, 1, T]
        nodes, number = self._nodes, self._number
        mask = nodes.add("Cast", "attention_mask", to=helper.np_dtype_to_tensor_dtype(np.dtype(number)))
        absent = nodes.add("Sub", nodes.constant(1.0, number), nodes.add("Unsqueeze", mask, nodes.constant([1, 2])))
        return nodes.add("Mul", absent, nodes.constant(float(np.finfo(number).min), number))


class _WholeAttention(_PlainAttention):
    """All scores at once."""

    def write(self, query: str, key: str, value: str) -> str:
        """As `Attention.write`."""
        return self._context(*self._split_all(query, key, value))


class _SteppedAttention(_PlainAttention):
    """
    Attention in steps of R query rows, so that memory grows with T, not with its square. In float32.

    R is chosen at run time from the size of the batch. Short inputs take one step.
    """

    def __init__(self, nodes: GraphNodes, spec: EncoderSpec) -> None:
        super().__init__(nodes, spec, np.float32)
        self._rows, self._steps = self._query_rows()

    def write(self, query: str, key: str, value: str) -> str:
        """As `Attention.write`."""
        nodes = self._nodes
        query, key, value = self._split_all(query, key, value)
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
