"""The weights inside of a graph `model.onnx` that `trivec pull` has written."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trivec_server.backends.graph.spec import EncoderSpec, HeadsSpec, TensorSource, parse_specs
from trivec_server.errors import LoadError

_LINEAR_SUFFIXES = ("query", "key", "value", "dense", "sparse_linear", "colbert_linear")


def open_graph(path: Path) -> tuple[EncoderSpec, HeadsSpec, TensorSource]:
    """
    What the graph's model is, and its weights.

    Raises:
        LoadError: it cannot be read, or does not say what its weights belong to.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise LoadError(f"is not an ONNX graph ({str(error).splitlines()[0]})") from error
    encoder, heads = parse_specs({entry.key: entry.value for entry in model.metadata_props})
    return encoder, heads, _GraphTensors(path, {each.name: each for each in model.graph.initializer})


class _GraphTensors:
    """The initializers of a graph as a TensorSource; those outside of the graph's file are mapped."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorProto]) -> None:
        self._path = path
        self._tensors = {name: tensor for name, tensor in tensors.items() if "." in name}

    def names(self) -> Iterable[str]:
        return tuple(self._tensors)

    def get(self, name: str) -> NDArray[np.generic]:
        if name not in self._tensors:
            raise LoadError(f"no tensor {name!r}")
        tensor = self._tensors[name]
        array = self._mapped(tensor) if tensor.data_location == TensorProto.EXTERNAL else numpy_helper.to_array(tensor)
        if name.endswith("token_type_embeddings.weight"):
            return array[None]  # the graph keeps the one row that is used
        stem = name.rsplit(".", 2)[-2]
        return array.T if name.endswith(".weight") and stem in _LINEAR_SUFFIXES else array

    def _mapped(self, tensor: TensorProto) -> NDArray[np.generic]:
        places = {entry.key: entry.value for entry in tensor.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        try:
            mapped: NDArray[np.generic] = np.memmap(
                self._path.parent / Path(places["location"]).name,
                dtype,
                "r",
                int(places.get("offset", 0)),
                tuple(tensor.dims),
            )
        except (OSError, ValueError, KeyError) as error:
            raise LoadError(f"tensor {tensor.name} cannot be read ({error})") from error
        return mapped
