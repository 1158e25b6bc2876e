"""What a graph is built from: the encoder's shape, the kinds of heads, and a source of tensors."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trivec_server.errors import LoadError

Precision: TypeAlias = Literal["float32", "float16"]
"""How matrices are stored."""

Arithmetic: TypeAlias = Literal["float32", "float16", "int8"]
"""In what the encoder's layers are computed."""

MODEL_FILE = "model.onnx"
"""The graph's file in a version's directory."""

NORM_EPS = 1e-12
"""The least norm to divide by (torch.nn.functional.normalize)."""

QUANTIZATION_BLOCK = 32
"""Weights that share one scale in the `blocks4` storage of word embeddings."""


class TensorSource(Protocol):
    """
    The tensors of a model, by Hugging Face's names less a `bert.` or `roberta.` prefix. Linear weights are [out, in].

    Heads go by `sparse_linear.weight` [1, hidden], `sparse_linear.bias` [1], `colbert_linear.weight` [D2, hidden],
    `colbert_linear.bias` [D2]; other kinds of heads and storage name theirs in `HeadsSpec` and `EncoderSpec`.
    """

    def names(self) -> Iterable[str]:
        """Every tensor that `get` can give."""

    def get(self, name: str) -> NDArray[np.generic]:
        """
        One tensor. Each is asked for once, for int8 twice, so nothing needs to be kept.

        Raises:
            LoadError: it cannot be read.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """
    The shape of an encoder, in the terms of its `config.json`.

    `position_offset` is the position of the first token: 0 for BERT, the padding id + 1 = 2 for XLM-RoBERTa.

    `precision` is how matrices are stored. With `float16` they are half as large on disk; the graph casts them to
    float32 and computes in float32, so an engine that folds constants needs as much memory for the encoder's layers as
    with `float32`, while embedding rows stay halves until they are looked up. Vectors (biases, layer norms) are always
    float32.

    `word_embeddings`: `full` is one matrix. `blocks4` is 4 bits a weight, in blocks of 32 that share a scale:
    `embeddings.word_embeddings.blocks` uint8 [V, hidden / 2], where byte j of a block holds weight j in its low half
    and weight j + 16 in its high half, and `embeddings.word_embeddings.scales` float16 [V, hidden / 32]; the value is
    (half byte - 8) x scale.

    Raises:
        LoadError: the numbers do not fit together.
    """

    architecture: Literal["bert", "xlm-roberta"]
    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary_size: int
    max_positions: int
    layer_norm_eps: float
    position_offset: int
    pooling: Literal["cls", "mean"]
    precision: Precision = "float32"
    word_embeddings: Literal["full", "blocks4"] = "full"

    def __post_init__(self) -> None:
        sizes = ("hidden", "layers", "heads", "intermediate", "vocabulary_size", "max_positions")
        for name in sizes:
            if getattr(self, name) < 1:
                raise LoadError(f"encoder: {name} is {getattr(self, name)}, must be at least 1")
        if self.hidden % self.heads:
            raise LoadError(f"encoder: hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.word_embeddings == "blocks4" and self.hidden % QUANTIZATION_BLOCK:
            raise LoadError(f"encoder: hidden {self.hidden} is not a multiple of the block of {QUANTIZATION_BLOCK}")
        if not 0 <= self.position_offset < self.max_positions:
            raise LoadError(f"encoder: position_offset {self.position_offset} is outside 0..{self.max_positions - 1}")

    @property
    def max_tokens(self) -> int:
        """The longest sequence that has a position for each token, special tokens included."""
        return self.max_positions - self.position_offset


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsSpec:
    """
    How sparse weights and multi-vectors come about.

    `sparse`: `linear` is relu(h w + b) of each token's hidden state h. `table` is a fixed weight for each id, not below
    0: `sparse_table.weight` [V]. Multi-vectors are a projection of hidden states to `multi_vector_dimension`.
    """

    multi_vector_dimension: int
    sparse: Literal["linear", "table"] = "linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphForm:
    """
    For what a graph is written.

    `attention`: `stepped` is in standard operators and holds a bounded part of the scores at once; `fused` is ONNX
    Runtime's MultiHeadAttention, which on CUDA holds none; `whole` is in standard operators without a loop, for
    TensorRT, which fuses them itself. `flags`: a head can be left out of a run, see `flag_of`.

    Fused operators bring nothing on the CPU: with 4 layers of BGE-M3's size, MultiHeadAttention gave 0.96 to 0.97 of
    the speed of `stepped` at 4 texts of 128 tokens and 0.99 to 1.00 at 8 of 512, since ONNX Runtime fuses GELU and
    layer norms by itself and matrix products take 90% of the time.
    """

    arithmetic: Arithmetic = "float32"
    attention: Literal["stepped", "fused", "whole"] = "stepped"
    flags: bool = True


PORTABLE = GraphForm()
"""Standard operators only: any engine can run it."""
CPU_INT8 = GraphForm(arithmetic="int8")
CUDA_FLOAT16 = GraphForm(arithmetic="float16", attention="fused")
TENSORRT_FLOAT16 = GraphForm(arithmetic="float16", attention="whole", flags=False)

_ENCODER_KEY = "trivec.encoder"
_HEADS_KEY = "trivec.heads"


def render_specs(encoder: EncoderSpec, heads: HeadsSpec) -> dict[str, str]:
    """Both specs as text metadata of a file that holds a model's weights."""
    return {_ENCODER_KEY: json.dumps(asdict(encoder)), _HEADS_KEY: json.dumps(asdict(heads))}


def parse_specs(metadata: Mapping[str, str]) -> tuple[EncoderSpec, HeadsSpec]:
    """
    What `render_specs` wrote.

    Raises:
        LoadError: it is not there, or does not describe an encoder.
    """
    if not metadata.keys() >= {_ENCODER_KEY, _HEADS_KEY}:
        raise LoadError("it does not say what encoder its weights belong to")
    try:
        return EncoderSpec(**json.loads(metadata[_ENCODER_KEY])), HeadsSpec(**json.loads(metadata[_HEADS_KEY]))
    except (ValueError, TypeError) as error:
        raise LoadError(f"what it says of its encoder is damaged ({error})") from None


def flag_of(output: str) -> str:
    """
    The name of the input, bool [], that says if an output is computed. It need not be fed and is then true.

    Where false is fed, the output is empty and its head does not run. ONNX Runtime runs every node of a graph whatever
    outputs are asked for (`RunOptions.only_execute_path_to_fetches` acts in its training builds only).
    """
    return f"with_{output}"
