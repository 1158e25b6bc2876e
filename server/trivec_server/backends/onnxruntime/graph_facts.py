"""What a graph file says of itself, read without its weights and before any device is opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import onnx

from trivec_server.backends.graph.nodes import DATA_FILE
from trivec_server.backends.graph.spec import Arithmetic
from trivec_server.backends.graph.write import ARITHMETIC_KEY
from trivec_server.backends.interface import EngineInfo
from trivec_server.backends.onnxruntime.providers import GraphFacts
from trivec_server.errors import LoadError
from trivec_server.types import Mode

OUTPUT_NAMES = {Mode.DENSE: "dense", Mode.SPARSE: "token_weights", Mode.MULTI_VECTOR: "multi_vector"}

_REQUIRED_METADATA = (
    "trivec.pooling",
    "trivec.precision",
    "trivec.vocabulary_size",
    "trivec.dense_dimension",
    "trivec.multi_vector_dimension",
)


@dataclass(frozen=True, slots=True)
class GraphDescription:
    """`info` as it is on the CPU, without limits or notes; `weights` is the file that holds them."""

    info: EngineInfo
    facts: GraphFacts
    weights: Path


def read_description(path: Path) -> GraphDescription:
    """
    Reads `model.onnx`.

    Raises:
        LoadError: it is missing, damaged, or not one that Trivec wrote.
    """
    if not path.is_file():
        raise LoadError(f"{path.name} is missing in {path.parent}; pull the model again")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"{path.name} cannot be loaded by ONNX Runtime ({reason}); pull the model again") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    outputs = {output.name for output in model.graph.output}
    missing = [key for key in _REQUIRED_METADATA if key not in metadata]
    if missing or not outputs.issuperset(OUTPUT_NAMES.values()):
        raise LoadError(
            f"{path.name} is not a graph written by `trivec pull`: it must have the outputs "
            f"{', '.join(OUTPUT_NAMES.values())} (found {', '.join(sorted(outputs))}) and Trivec's metadata; pull the "
            "model again"
        )
    return _describe(path, metadata)


def _describe(path: Path, metadata: dict[str, str]) -> GraphDescription:
    arithmetic = metadata.get(ARITHMETIC_KEY, "float32")
    if arithmetic not in get_args(Arithmetic):
        raise LoadError(
            f"{path.name} computes in `{arithmetic}`, which this version of Trivec does not know; update it"
        )
    weights = path.parent / DATA_FILE
    if not weights.is_file():
        raise LoadError(
            f"{weights.name}, the weights of {path.name}, is missing in {path.parent}; pull the model again"
        )
    info = EngineInfo(
        engine="onnxruntime",
        device="cpu",
        precision=arithmetic,
        modes=Mode.HYBRID,
        dense_dimension=int(metadata["trivec.dense_dimension"]),
        multi_vector_dimension=int(metadata["trivec.multi_vector_dimension"]),
        vocabulary_size=int(metadata["trivec.vocabulary_size"]),
        pooling=metadata["trivec.pooling"],
        pads=True,
        token_budget=0,
    )
    facts = GraphFacts(
        arithmetic=cast("Arithmetic", arithmetic),
        storage=metadata["trivec.precision"],
        weight_bytes=path.stat().st_size + weights.stat().st_size,
        hidden=info.dense_dimension,
    )
    return GraphDescription(info, facts, weights)
