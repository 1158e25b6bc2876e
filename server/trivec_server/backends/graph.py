"""
The ONNX graph of an encoder with three heads, written from weights without torch.

Inputs, both int64 [B, T], right-padded with the padding id: `input_ids`, `attention_mask`; and the optional flags of
`graph_spec.flag_of`. Outputs, all float32: `dense` [B, hidden] with unit rows, `token_weights` [B, T], not negative,
special tokens and padding included, `multi_vector` [B, T - 1, D2] with unit rows, and zeros for padding.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from trivec_server.backends.graph_encoder import Encoder
from trivec_server.backends.graph_heads import Heads
from trivec_server.backends.graph_nodes import DATA_FILE, GraphNodes
from trivec_server.backends.graph_spec import EncoderSpec, HeadsSpec, TensorSource, render_specs
from trivec_server.backends.graph_weights import GraphWeights

MODEL_FILE = "model.onnx"

OPSET = 18
IR_VERSION = 8


def write_graph(directory: Path, spec: EncoderSpec, tensors: TensorSource, heads: HeadsSpec) -> None:
    """
    Writes `model.onnx` and its weights, `model.onnx.data`, into a directory that exists.

    Tensors are asked for one at a time, in the order of the graph; at most one is in memory, and one block of its
    converted copy.

    Raises:
        LoadError: a tensor is missing, not finite, or of another shape or type than `spec` and `heads` say.
        OSError: a file cannot be written.
    """
    with (directory / DATA_FILE).open("wb") as data:
        model = _build(GraphNodes(data), spec, tensors, heads)
    helper.set_model_props(model, _metadata(spec, heads))
    (directory / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))


def _build(nodes: GraphNodes, spec: EncoderSpec, tensors: TensorSource, heads_spec: HeadsSpec) -> onnx.ModelProto:
    weights = GraphWeights(nodes, tensors, spec.precision)
    hidden = Encoder(nodes, spec, weights).write()
    heads = Heads(nodes, spec, heads_spec, weights)
    heads.write(hidden)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        nodes.nodes, "trivec", inputs + heads.flag_infos(), heads.output_infos(), nodes.initializers
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, producer_name="trivec", ir_version=IR_VERSION, opset_imports=[opset])


def _metadata(spec: EncoderSpec, heads: HeadsSpec) -> dict[str, str]:
    values = {
        "architecture": spec.architecture,
        "pooling": spec.pooling,
        "precision": spec.precision,
        "vocabulary_size": spec.vocabulary_size,
        "dense_dimension": spec.hidden,
        "multi_vector_dimension": heads.multi_vector_dimension,
        "max_tokens": spec.max_tokens,
        "modes": "dense,sparse,multi_vector",
    }
    return {f"trivec.{name}": str(value) for name, value in values.items()} | render_specs(spec, heads)
