"""A random model of BGE-M3's shape, small enough to make for each test, as a directory in the hub's layout."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tests.numerics.torch_archive import write_torch_archive

HIDDEN = 32
LAYERS = 2
INTERMEDIATE = 64
POSITIONS = 66
MAX_TOKENS = 64
PIECES = ("▁", "▁hello", "▁world", "▁the", "a", "b", "c", "d", "e", "l", "o", "r", "人", "工", "智", "能")

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class TinyShape:
    """How much a model computes."""

    hidden: int = HIDDEN
    layers: int = LAYERS
    intermediate: int = INTERMEDIATE


TINY = TinyShape()


def write_tiny_model(directory: Path, *, seed: int = 7, vocabulary_size: int = 40, shape: TinyShape = TINY) -> None:
    """Writes config.json, tokenizer.json, model.safetensors and both heads; the same seed gives the same files."""
    random = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(tiny_config(vocabulary_size, shape), indent=2))
    write_tiny_tokenizer(directory / "tokenizer.json")
    save_file(dict(tiny_encoder(random, vocabulary_size, shape)), directory / "model.safetensors")
    write_torch_archive(directory / "sparse_linear.pt", linear_head(random, 1, shape))
    write_torch_archive(directory / "colbert_linear.pt", linear_head(random, shape.hidden, shape))


def tiny_config(vocabulary_size: int = 40, shape: TinyShape = TINY) -> dict[str, object]:
    """The model's config.json."""
    return {
        "model_type": "xlm-roberta",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": 4,
        "intermediate_size": shape.intermediate,
        "hidden_act": "gelu",
        "vocab_size": vocabulary_size,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    }


def write_tiny_tokenizer(path: Path) -> None:
    """A Unigram tokenizer with XLM-RoBERTa's special tokens in their places."""
    special = ("<s>", "<pad>", "</s>", "<unk>")
    vocabulary = [(token, 0.0) for token in special] + [(piece, -2.0 - i / 8) for i, piece in enumerate(PIECES)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(path))


def tiny_encoder(random: np.random.Generator, vocabulary_size: int = 40, shape: TinyShape = TINY) -> Arrays:
    """The encoder's tensors under the names that checkpoints give them."""
    width, layers = shape.hidden, range(shape.layers)
    return {
        "embeddings.word_embeddings.weight": _numbers(random, vocabulary_size, width),
        "embeddings.position_embeddings.weight": _numbers(random, POSITIONS, width),
        "embeddings.token_type_embeddings.weight": _numbers(random, 1, width),
        **_layer_norm(random, "embeddings.LayerNorm", width),
        **{name: array for layer in layers for name, array in _layer(random, f"encoder.layer.{layer}", shape).items()},
    }


def linear_head(random: np.random.Generator, outputs: int, shape: TinyShape = TINY) -> Arrays:
    """A head's tensors: `weight` [outputs, hidden] and `bias` [outputs]."""
    return {"weight": _numbers(random, outputs, shape.hidden), "bias": _numbers(random, outputs)}


def _layer(random: np.random.Generator, prefix: str, shape: TinyShape) -> Arrays:
    width, inner = shape.hidden, shape.intermediate
    return {
        **_linear(random, f"{prefix}.attention.self.query", width, width),
        **_linear(random, f"{prefix}.attention.self.key", width, width),
        **_linear(random, f"{prefix}.attention.self.value", width, width),
        **_linear(random, f"{prefix}.attention.output.dense", width, width),
        **_layer_norm(random, f"{prefix}.attention.output.LayerNorm", width),
        **_linear(random, f"{prefix}.intermediate.dense", width, inner),
        **_linear(random, f"{prefix}.output.dense", inner, width),
        **_layer_norm(random, f"{prefix}.output.LayerNorm", width),
    }


def _linear(random: np.random.Generator, prefix: str, inputs: int, outputs: int) -> Arrays:
    return {f"{prefix}.weight": _numbers(random, outputs, inputs), f"{prefix}.bias": _numbers(random, outputs)}


def _layer_norm(random: np.random.Generator, prefix: str, width: int) -> Arrays:
    return {f"{prefix}.weight": 1 + _numbers(random, width), f"{prefix}.bias": _numbers(random, width)}


def _numbers(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return random.normal(0, 0.2, shape).astype(np.float32)
