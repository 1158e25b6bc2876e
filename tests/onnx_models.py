"""Little ONNX files: one node or a few, any inputs and outputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.onnx_ml_pb2 import NodeProto

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
"""ONNX's type of each of KServe's."""

Shape = Sequence[int | str | None] | None
Tensor = tuple[str, Shape]
"""KServe's type and the shape: a name or None for a dimension that varies; no shape at all for any."""


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """`inputs` and `outputs`: names with spaces between them."""
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def write_onnx(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    *,
    defaults: Mapping[str, NDArray[np.generic]] | None = None,
    apart: bool = False,
) -> Path:
    """Writes a model. `defaults`: values of inputs that need not be given, or of weights; `apart`: in another file."""

    def value(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, ONNX_TYPES[tensor[0]], tensor[1])

    graph = helper.make_graph(
        list(nodes),
        "little",
        [value(name, tensor) for name, tensor in inputs.items()],
        [value(name, tensor) for name, tensor in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (defaults or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=apart, location=f"{path.name}.data", size_threshold=0)
    return path


def write_identity(path: Path, datatype: str = "FP32", shape: Shape = ("batch", "n")) -> Path:
    """`y` is `x`."""
    return write_onnx(path, [node("Identity", "x", "y")], {"x": (datatype, shape)}, {"y": (datatype, shape)})
