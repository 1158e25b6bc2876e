"""
The weights of a model version, whatever engine its files were made for: out of `model.safetensors`, or of the graph
`model.onnx` that `trivec pull` writes. All are mapped from the file, never read into memory whole.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from trivec_server.backends.graph.spec import (
    MODEL_FILE,
    EncoderSpec,
    HeadsSpec,
    Precision,
    TensorSource,
    parse_specs,
    render_specs,
)
from trivec_server.backends.weights.weight_files import open_safetensors
from trivec_server.errors import LoadError

SAFETENSORS_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What a version's model is and its weights, by the names of `TensorSource`, linear weights as [out, in]."""

    encoder: EncoderSpec
    heads: HeadsSpec
    tensors: TensorSource


def open_stored_model(version_dir: Path) -> StoredModel:
    """
    Opens the weights of a version.

    Raises:
        LoadError: the version holds none, or they are damaged or were changed for one engine.
    """
    for name, opener in ((SAFETENSORS_FILE, _open_safetensors), (MODEL_FILE, _open_onnx)):
        path = version_dir / name
        if path.is_file():
            try:
                return opener(path)
            except LoadError as error:
                raise LoadError(f"{path.name}: {error}; pull the model again") from error
    raise LoadError(
        f"{version_dir} has neither {SAFETENSORS_FILE} nor {MODEL_FILE}, so its weights cannot be read: export from "
        "the version that `trivec pull` made"
    )


def write_stored_model(directory: Path, model: StoredModel, precision: Precision) -> None:
    """
    Writes `model.safetensors`, matrices in `precision`, vectors in float32, into a directory that exists.

    Raises:
        LoadError: a tensor cannot be read, or is not finite in `precision`.
        OSError: the file cannot be written.
    """
    matrix_type = np.float16 if precision == "float16" else np.float32
    tensors = {}
    for name in model.tensors.names():
        array = model.tensors.get(name)
        if array.dtype.kind == "f" and not name.endswith(".scales"):
            with np.errstate(over="ignore"):
                array = array.astype(matrix_type if array.ndim > 1 else np.float32)
            if not np.isfinite(array).all():
                raise LoadError(f"tensor {name}: a value is not finite or too large for {precision}")
        tensors[name] = np.ascontiguousarray(array)
    encoder = replace(model.encoder, precision=precision)
    path = directory / SAFETENSORS_FILE
    save_file(tensors, path, metadata=render_specs(encoder, model.heads))
    # The library makes a file for its owner alone; whoever may read the repository may read its other files, too.
    path.chmod(0o644)


def _open_safetensors(path: Path) -> StoredModel:
    files = open_safetensors(path)
    with safe_open(path, framework="numpy") as file:
        encoder, heads = parse_specs(file.metadata() or {})
    return StoredModel(encoder, heads, files)


def _open_onnx(path: Path) -> StoredModel:
    # Who has weights in safetensors need not have this package.
    from trivec_server.backends.weights.graph_tensors import open_graph  # noqa: PLC0415 - as said

    encoder, heads, tensors = open_graph(path)
    return StoredModel(encoder, heads, tensors)
