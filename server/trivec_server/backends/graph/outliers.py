"""
The channels of an encoder whose numbers are far larger than the others', found by running it over random tokens.

Trained transformers have a few such channels, the same ones whatever the text: with m3-mini, 2 or 3 of 384 reach 20 to
40 where the others stay near 1.5, and those found with random tokens are those found with texts. Rounded with one scale
for all channels, the others would keep 5 bits.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.graph.spec import QUANTIZATION_BLOCK, EncoderSpec, TensorSource
from trivec_server.errors import LoadError
from trivec_server.types import CLS_TOKEN_ID, EOS_TOKEN_ID, UNK_TOKEN_ID

Floats = NDArray[np.float32]

_TEXTS = 4
_TOKENS = 64
_SEED = 20
_RATIO = 4.0
"""An outlier's largest number is more than this many times the median of all channels' largest ones."""
MOST_OUTLIERS = 8
"""For each input of a matrix product: their products stay in float32, so they should be few."""

INPUTS = ("attention.self", "attention.output.dense", "intermediate.dense", "output.dense")
"""What a layer's matrix products take: the first is the same for query, key and value."""


def find_outliers(spec: EncoderSpec, tensors: TensorSource) -> Mapping[str, tuple[int, ...]]:
    """
    The outliers of each input in INPUTS of each layer, ascending, by names such as `encoder.layer.0.attention.self`.

    One matrix is in memory at a time. The same weights give the same outliers.

    Raises:
        LoadError: a tensor is missing or of another shape than `spec` says.
    """
    try:
        # Weights that are not finite give none, and are refused where they are rounded.
        with np.errstate(all="ignore"):
            return _Forward(spec, tensors).outliers()
    except (ValueError, IndexError) as error:
        raise LoadError(f"the encoder cannot be run: a tensor has another shape than expected ({error})") from error


class _Forward:
    """
    The encoder in NumPy. GELU is the approximation by tanh, which is near enough to find large numbers.

    Letters in comments: B texts, T tokens, N attention heads, D = hidden / N.
    """

    def __init__(self, spec: EncoderSpec, tensors: TensorSource) -> None:
        self._spec = spec
        self._tensors = tensors
        self._names = frozenset(tensors.names())
        self._found: dict[str, tuple[int, ...]] = {}

    def outliers(self) -> Mapping[str, tuple[int, ...]]:
        """As `find_outliers`."""
        x = self._embeddings()
        for layer in range(self._spec.layers):
            x = self._layer(x, f"encoder.layer.{layer}")
        return self._found

    def _layer(self, x: Floats, prefix: str) -> Floats:
        self._note(f"{prefix}.attention.self", x)
        context = self._attention(x, f"{prefix}.attention.self")
        self._note(f"{prefix}.attention.output.dense", context)
        x = self._layer_norm(
            x + self._linear(context, f"{prefix}.attention.output.dense"), f"{prefix}.attention.output"
        )
        self._note(f"{prefix}.intermediate.dense", x)
        inner = self._linear(x, f"{prefix}.intermediate.dense")
        inner = inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3))) / 2
        self._note(f"{prefix}.output.dense", inner)
        return self._layer_norm(x + self._linear(inner, f"{prefix}.output.dense"), f"{prefix}.output")

    def _note(self, name: str, x: Floats) -> None:
        largest = np.abs(x).max(axis=(0, 1))
        order = np.argsort(-largest, kind="stable")[: min(MOST_OUTLIERS, len(largest) // 2)]
        high = order[largest[order] > _RATIO * np.median(largest)]
        self._found[name] = tuple(sorted(high.tolist()))

    def _embeddings(self) -> Floats:
        spec = self._spec
        tokens = min(_TOKENS, spec.max_tokens)
        first = min(UNK_TOKEN_ID + 1, spec.vocabulary_size - 1)
        ids = np.random.default_rng(_SEED).integers(first, spec.vocabulary_size, (_TEXTS, tokens))
        ids[:, 0] = CLS_TOKEN_ID
        ids[:, -1] = EOS_TOKEN_ID
        positions = np.arange(spec.position_offset, spec.position_offset + tokens)
        x = self._word_rows(ids) + self._rows("embeddings.position_embeddings.weight", positions)
        return self._layer_norm(x + self._rows("embeddings.token_type_embeddings.weight", np.array([0])), "embeddings")

    def _word_rows(self, ids: NDArray[np.int64]) -> Floats:
        if self._spec.word_embeddings == "full":
            return self._rows("embeddings.word_embeddings.weight", ids)
        half = QUANTIZATION_BLOCK // 2
        blocks = self._get("embeddings.word_embeddings.blocks")[ids].astype(np.uint8).reshape(*ids.shape, -1, half)
        scales = self._rows("embeddings.word_embeddings.scales", ids)[..., None]
        nibbles = np.concatenate([blocks & 15, blocks >> 4], axis=-1).astype(np.float32)
        return np.asarray(((nibbles - 8) * scales).reshape(*ids.shape, -1), np.float32)

    def _attention(self, x: Floats, prefix: str) -> Floats:
        heads, size = self._spec.heads, self._spec.hidden // self._spec.heads
        query, key, value = (
            self._linear(x, f"{prefix}.{part}").reshape(*x.shape[:2], heads, size).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )  # [B, N, T, D]
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(math.sqrt(size))
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        context = scores / scores.sum(axis=-1, keepdims=True) @ value
        return np.asarray(context.transpose(0, 2, 1, 3).reshape(x.shape))

    def _linear(self, x: Floats, prefix: str) -> Floats:
        return np.asarray(x @ self._floats(f"{prefix}.weight").T + self._floats(f"{prefix}.bias"))

    def _layer_norm(self, x: Floats, prefix: str) -> Floats:
        centered = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + np.float32(self._spec.layer_norm_eps))
        scale, bias = (self._floats(f"{prefix}.LayerNorm.{part}") for part in ("weight", "bias"))
        return np.asarray(centered / deviation * scale + bias)

    def _rows(self, name: str, ids: NDArray[np.int64]) -> Floats:
        return self._get(name)[ids].astype(np.float32)

    def _floats(self, name: str) -> Floats:
        return np.asarray(self._get(name), np.float32)

    def _get(self, name: str) -> NDArray[np.generic]:
        if name not in self._names:
            raise LoadError(f"tensor {name} is missing")
        return self._tensors.get(name)
