"""
The ONNX graph of an encoder with three heads, written from weights without torch.

Inputs, both int64 [B, T], right-padded with the padding id: `input_ids`, `attention_mask`; and the optional flags of
`spec.flag_of`. Outputs, all float32: `dense` [B, hidden] with unit rows, `token_weights` [B, T], not negative,
special tokens and padding included, `multi_vector` [B, T - 1, D2] with unit rows, and zeros for padding.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from trivec_server.backends.graph.encoder import Encoder
from trivec_server.backends.graph.heads import Heads
from trivec_server.backends.graph.nodes import CONTRIB, DATA_FILE, DataAlreadyThere, GraphNodes
from trivec_server.backends.graph.outliers import find_outliers
from trivec_server.backends.graph.spec import (
    MODEL_FILE,
    PORTABLE,
    EncoderSpec,
    GraphForm,
    HeadsSpec,
    TensorSource,
    render_specs,
)
from trivec_server.backends.graph.weights import GraphWeights

ARITHMETIC_KEY = "trivec.arithmetic"
"""In the metadata of a graph that does not compute in float32: what its layers are computed in."""

OPSET = 18
IR_VERSION = 8


def write_graph(
    directory: Path, spec: EncoderSpec, tensors: TensorSource, heads: HeadsSpec, form: GraphForm = PORTABLE
) -> None:
    """
    Writes `model.onnx` and its weights, `model.onnx.data`, into a directory that exists.

    Tensors are asked for one at a time, in the order of the graph; at most one is in memory, and one block of its
    converted copy. For int8 all are asked for twice, and one matrix is in memory in float32. A graph of another
    arithmetic than float32 does not say what encoder its weights belong to, since they are no longer fit to make other
    versions of.

    Raises:
        LoadError: a tensor is missing, not finite, or of another shape or type than `spec` and `heads` say.
        OSError: a file cannot be written.
    """
    with (directory / DATA_FILE).open("wb") as data:
        model = _build(GraphNodes(data), spec, tensors, heads, form)
    _write_model(directory / MODEL_FILE, model, _metadata(spec, heads, form))


def write_graph_beside(path: Path, spec: EncoderSpec, tensors: TensorSource, heads: HeadsSpec, form: GraphForm) -> None:
    """
    Writes a second graph of the weights that `write_graph` has written, in another form of the same arithmetic. It
    reads the same `model.onnx.data`. Raises as `write_graph`.
    """
    model = _build(GraphNodes(DataAlreadyThere()), spec, tensors, heads, form)
    _write_model(path, model, _metadata(spec, heads, form))


def _write_model(path: Path, model: onnx.ModelProto, metadata: dict[str, str]) -> None:
    helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _build(
    nodes: GraphNodes, spec: EncoderSpec, tensors: TensorSource, heads_spec: HeadsSpec, form: GraphForm
) -> onnx.ModelProto:
    weights = GraphWeights(nodes, tensors, spec.precision)
    outliers = find_outliers(spec, tensors) if form.arithmetic == "int8" else {}
    hidden = Encoder(nodes, spec, weights, form, outliers).write()
    heads = Heads(nodes, spec, heads_spec, weights, flags=form.flags)
    heads.write(hidden)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        nodes.nodes, "trivec", inputs + heads.flag_infos(), heads.output_infos(), nodes.initializers
    )
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain == CONTRIB for node in nodes.nodes):
        opsets.append(helper.make_opsetid(CONTRIB, 1))
    return helper.make_model(graph, producer_name="trivec", ir_version=IR_VERSION, opset_imports=opsets)


def _metadata(spec: EncoderSpec, heads: HeadsSpec, form: GraphForm) -> dict[str, str]:
    computes_in_float32 = form.arithmetic == "float32"
    values = {
        "architecture": spec.architecture,
        "pooling": spec.pooling,
        "precision": spec.precision if computes_in_float32 else form.arithmetic,
        "vocabulary_size": spec.vocabulary_size,
        "dense_dimension": spec.hidden,
        "multi_vector_dimension": heads.multi_vector_dimension,
        "max_tokens": spec.max_tokens,
        "modes": "dense,sparse,multi_vector",
    }
    metadata = {f"trivec.{name}": str(value) for name, value in values.items()}
    if computes_in_float32:
        return metadata | render_specs(spec, heads)
    return metadata | {ARITHMETIC_KEY: form.arithmetic}
