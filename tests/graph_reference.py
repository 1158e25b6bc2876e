"""A small random encoder with heads, and its forward pass in plain NumPy, to compare graphs with."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from trivec_server.backends.graph.spec import EncoderSpec, HeadsSpec

Array = NDArray[np.generic]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

VOCABULARY = 101
OUTPUTS = ("dense", "token_weights", "multi_vector")

XLM_ROBERTA = EncoderSpec(
    architecture="xlm-roberta",
    hidden=32,
    layers=2,
    heads=4,
    intermediate=64,
    vocabulary_size=VOCABULARY,
    max_positions=66,
    layer_norm_eps=1e-5,
    position_offset=2,
    pooling="cls",
)
BERT = replace(XLM_ROBERTA, architecture="bert", position_offset=0, layer_norm_eps=1e-12, pooling="mean")
LINEAR_HEADS = HeadsSpec(multi_vector_dimension=24)
TABLE_HEADS = HeadsSpec(sparse="table", multi_vector_dimension=24)


class ArraySource:
    """Tensors out of a dictionary."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.tensors = dict(tensors)

    def names(self) -> Iterable[str]:
        return self.tensors

    def get(self, name: str) -> Array:
        return self.tensors[name]


def random_tensors(spec: EncoderSpec, multi_vector_dimension: int = 24, seed: int = 7) -> dict[str, Array]:
    random = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.2, mean: float = 0.0) -> Array:
        return (mean + scale * random.standard_normal(shape)).astype(np.float32)

    size, inner = spec.hidden, spec.intermediate
    tensors: dict[str, Array] = {
        "embeddings.word_embeddings.weight": normal(spec.vocabulary_size, size, scale=1.0),
        "embeddings.position_embeddings.weight": normal(spec.max_positions, size, scale=1.0),
        "embeddings.token_type_embeddings.weight": normal(2, size, scale=1.0),
        "sparse_linear.weight": normal(1, size),
        "sparse_linear.bias": normal(1),
        "colbert_linear.weight": normal(multi_vector_dimension, size),
        "colbert_linear.bias": normal(multi_vector_dimension),
        "sparse_table.weight": np.abs(normal(spec.vocabulary_size)),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(spec.layers):
        prefix = f"encoder.layer.{layer}"
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
        square = [f"{prefix}.attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]
        shapes = dict.fromkeys(square, (size, size))
        shapes |= {f"{prefix}.intermediate.dense": (inner, size), f"{prefix}.output.dense": (size, inner)}
        for name, (outputs, inputs) in shapes.items():
            tensors[f"{name}.weight"] = normal(outputs, inputs)
            tensors[f"{name}.bias"] = normal(outputs)
    for name in norms:
        tensors[f"{name}.weight"] = normal(size, mean=1.0)
        tensors[f"{name}.bias"] = normal(size)
    return tensors


@dataclass(frozen=True)
class Forward:
    """The reference: one text after the other, without padding, in float64."""

    spec: EncoderSpec
    heads: HeadsSpec
    tensors: Mapping[str, Array]

    def __call__(self, ids: Ids) -> tuple[Floats, Floats, Floats]:
        hidden = self._hidden(ids)
        dense = hidden[0] if self.spec.pooling == "cls" else hidden.mean(axis=0)
        if self.heads.sparse == "table":
            weights = self._get("sparse_table.weight")[ids]
        else:
            weights = np.maximum(self._linear(hidden, "sparse_linear"), 0)[:, 0]
        vectors = self._linear(hidden[1:], "colbert_linear")
        return (
            dense / np.linalg.norm(dense),
            weights,
            vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        )

    def _hidden(self, ids: Ids) -> Floats:
        positions = np.arange(len(ids))
        if self.spec.architecture == "xlm-roberta":
            real = (ids != 1).astype(np.int64)
            positions = np.cumsum(real) * real + 1
        x = self._get("embeddings.word_embeddings.weight")[ids]
        x = x + self._get("embeddings.position_embeddings.weight")[positions]
        x = self._norm(x + self._get("embeddings.token_type_embeddings.weight")[0], "embeddings.LayerNorm")
        for layer in range(self.spec.layers):
            prefix = f"encoder.layer.{layer}"
            context = self._attention(x, f"{prefix}.attention.self")
            x = self._norm(
                x + self._linear(context, f"{prefix}.attention.output.dense"), f"{prefix}.attention.output.LayerNorm"
            )
            inner = self._linear(x, f"{prefix}.intermediate.dense")
            inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
            x = self._norm(x + self._linear(inner, f"{prefix}.output.dense"), f"{prefix}.output.LayerNorm")
        return x

    def _attention(self, x: Floats, prefix: str) -> Floats:
        split = (len(x), self.spec.heads, -1)
        query, key, value = (
            self._linear(x, f"{prefix}.{part}").reshape(split).transpose(1, 0, 2) for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(self.spec.hidden // self.spec.heads)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        context = scores / scores.sum(axis=-1, keepdims=True) @ value
        return np.asarray(context.transpose(1, 0, 2).reshape(len(x), -1))

    def _linear(self, x: Floats, prefix: str) -> Floats:
        return np.asarray(x @ self._get(f"{prefix}.weight").T + self._get(f"{prefix}.bias"))

    def _norm(self, x: Floats, prefix: str) -> Floats:
        centered = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + self.spec.layer_norm_eps)
        return np.asarray(centered / deviation * self._get(f"{prefix}.weight") + self._get(f"{prefix}.bias"))

    def _get(self, name: str) -> Floats:
        return self.tensors[name].astype(np.float64)


def pad(texts: list[Ids]) -> dict[str, Ids]:
    """Right-padded with the padding id 1."""
    width = max(map(len, texts))
    ids = np.ones((len(texts), width), np.int64)
    mask = np.zeros((len(texts), width), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def random_texts(*lengths: int) -> list[Ids]:
    random = np.random.default_rng(3)
    return [np.concatenate([[0], random.integers(4, VOCABULARY, length - 2), [2]]) for length in lengths]
