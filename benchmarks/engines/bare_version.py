"""
A version with BGE-M3's shapes and random weights as the engines read it, without a checkpoint, a tokenizer or
`trivec pull`: where their packages are missing, an engine can still be measured.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from trivec_server.backends.graph.spec import EncoderSpec, HeadsSpec
from trivec_server.backends.weights.stored_model import StoredModel, write_stored_model

from benchmarks.engines.flops import EncoderShape

_VOCABULARY_SIZE = 250_002
_POSITIONS = 8194
_HEADS = 16
_SPREAD = 1.7
"""Times the inverse root of a layer's inputs: its outputs then spread about as its inputs do."""


class RandomTensors:
    """A TensorSource; the same name has the same numbers."""

    def __init__(self, shape: EncoderShape) -> None:
        self._shapes = dict(_shapes(shape))

    def names(self) -> Iterable[str]:
        return tuple(self._shapes)

    def get(self, name: str) -> NDArray[np.generic]:
        shape = self._shapes[name]
        random = np.random.default_rng(sum(name.encode()))
        if name.endswith("LayerNorm.weight"):
            return np.ones(shape, np.float32)
        spread = 1.0 if "embeddings" in name else _SPREAD / shape[-1] ** 0.5
        numbers = random.random(shape, np.float32)
        numbers -= np.float32(0.5)
        numbers *= np.float32(2 * spread)
        return numbers


def write_bare_version(directory: Path, shape: EncoderShape) -> Path:
    """Writes `model.safetensors` in float16 (1.1 GB for BGE-M3) into a directory, if it is not there."""
    if not (directory / "ready").exists():
        directory.mkdir(parents=True, exist_ok=True)
        spec = EncoderSpec(
            architecture="xlm-roberta",
            hidden=shape.hidden,
            layers=shape.layers,
            heads=_HEADS,
            intermediate=shape.intermediate,
            vocabulary_size=_VOCABULARY_SIZE,
            max_positions=_POSITIONS,
            layer_norm_eps=1e-5,
            position_offset=2,
            pooling="cls",
            precision="float16",
        )
        heads = HeadsSpec(multi_vector_dimension=shape.hidden)
        write_stored_model(directory, StoredModel(spec, heads, RandomTensors(shape)), "float16")
        (directory / "ready").touch()
    return directory


def _shapes(shape: EncoderShape) -> Iterable[tuple[str, tuple[int, ...]]]:
    hidden, inner = shape.hidden, shape.intermediate
    yield "embeddings.word_embeddings.weight", (_VOCABULARY_SIZE, hidden)
    yield "embeddings.position_embeddings.weight", (_POSITIONS, hidden)
    yield "embeddings.token_type_embeddings.weight", (1, hidden)
    yield from _pair("embeddings.LayerNorm", (hidden,))
    for layer in range(shape.layers):
        prefix = f"encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            yield from _pair(f"{prefix}.{name}", (hidden, hidden))
        yield from _pair(f"{prefix}.attention.output.LayerNorm", (hidden,))
        yield from _pair(f"{prefix}.intermediate.dense", (inner, hidden))
        yield from _pair(f"{prefix}.output.dense", (hidden, inner))
        yield from _pair(f"{prefix}.output.LayerNorm", (hidden,))
    yield from _pair("sparse_linear", (1, hidden))
    yield from _pair("colbert_linear", (hidden, hidden))


def _pair(name: str, shape: tuple[int, ...]) -> Iterable[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
