"""The files of a version that ONNX Runtime alone runs: `trivec export --engine onnxruntime`."""

from dataclasses import replace
from pathlib import Path

from trivec_server.backends.graph.spec import CPU_INT8, CUDA_FLOAT16, PORTABLE, TENSORRT_FLOAT16
from trivec_server.backends.graph.write import write_graph, write_graph_beside
from trivec_server.backends.weights.stored_model import StoredModel
from trivec_server.errors import LoadError

TENSORRT_MODEL_FILE = "model.tensorrt.onnx"

PRECISIONS = ("float32", "float16", "int8")


def export_onnxruntime(model: StoredModel, target_dir: Path, precision: str) -> None:
    """
    Writes `model.onnx` and `model.onnx.data` into a directory that exists.

    `float32` is the graph that `trivec pull` writes; no other was faster. `float16` is for GPUs, layers in float16 and
    heads in float32, with a second graph for TensorRT, `model.tensorrt.onnx`, over the same weights. `int8` is for the
    CPU: the layers' matrix products in int8, all else in float32, with tables and heads stored in float16.

    One matrix is in memory at a time.

    Raises:
        LoadError: the precision is not one of the three, or a tensor is missing, damaged or too large for it.
        OSError: a file cannot be written.
    """
    if precision not in PRECISIONS:
        raise LoadError(f"the engine onnxruntime has no precision `{precision}`; use one of: {', '.join(PRECISIONS)}")
    encoder = replace(model.encoder, precision="float32" if precision == "float32" else "float16")
    form = {"float32": PORTABLE, "float16": CUDA_FLOAT16, "int8": CPU_INT8}[precision]
    write_graph(target_dir, encoder, model.tensors, model.heads, form)
    if precision == "float16":
        write_graph_beside(target_dir / TENSORRT_MODEL_FILE, encoder, model.tensors, model.heads, TENSORRT_FLOAT16)
