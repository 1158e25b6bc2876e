"""The encoder's part of a graph: embeddings and transformer layers, BERT or XLM-RoBERTa."""

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from trivec_server.backends.graph.attention import make_attention
from trivec_server.backends.graph.layers import Layers
from trivec_server.backends.graph.nodes import GraphNodes
from trivec_server.backends.graph.spec import QUANTIZATION_BLOCK, EncoderSpec, GraphForm
from trivec_server.backends.graph.weights import GraphWeights
from trivec_server.types import PAD_TOKEN_ID


class Encoder:
    """
    Writes the nodes of an encoder, from `input_ids` and `attention_mask`, both int64 [B, T], to the last hidden state.

    The formulas are those of transformers' BertModel and XLMRobertaModel: erf GELU, layer norm after each residual
    sum. Embeddings are computed in float32, layers as `form` says, with the `outliers` of `find_outliers` if in int8.
    Letters in comments: B texts, T tokens.
    """

    def __init__(
        self,
        nodes: GraphNodes,
        spec: EncoderSpec,
        weights: GraphWeights,
        form: GraphForm,
        outliers: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._nodes = nodes
        self._spec = spec
        self._weights = weights
        self._form = form
        self._outliers = outliers

    def write(self) -> str:
        """Returns the name of the last hidden state, float32 [B, T, hidden]."""
        with self._nodes.scope("embeddings"):
            hidden = self._embeddings()
        with self._nodes.scope("attention"):
            attention = make_attention(self._nodes, self._spec, self._form)
        layers = Layers(self._nodes, self._spec, self._weights, attention, self._form.arithmetic, self._outliers)
        return layers.write(hidden)

    def _embeddings(self) -> str:
        nodes, hidden = self._nodes, self._spec.hidden
        words = self._word_rows_4bit() if self._spec.word_embeddings == "blocks4" else self._word_rows()
        types = self._weights.first_row("embeddings.token_type_embeddings.weight", hidden)
        total = nodes.add("Add", nodes.add("Add", words, types), self._position_rows())
        return self._weights.layer_norm(total, "embeddings.LayerNorm", hidden, self._spec.layer_norm_eps)

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
