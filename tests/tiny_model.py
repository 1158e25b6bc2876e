"""A random model of BGE-M3's shape, small enough to make for each test, as a directory in the hub's layout."""

import json
from collections.abc import Mapping
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


def write_tiny_model(directory: Path, *, seed: int = 7, vocabulary_size: int = 40) -> None:
    """Writes config.json, tokenizer.json, model.safetensors and both heads; the same seed gives the same files."""
    random = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(tiny_config(vocabulary_size), indent=2))
    write_tiny_tokenizer(directory / "tokenizer.json")
    save_file(dict(tiny_encoder(random, vocabulary_size)), directory / "model.safetensors")
    write_torch_archive(directory / "sparse_linear.pt", linear_head(random, 1))
    write_torch_archive(directory / "colbert_linear.pt", linear_head(random, HIDDEN))


def tiny_config(vocabulary_size: int = 40) -> dict[str, object]:
    """The model's config.json."""
    return {
        "model_type": "xlm-roberta",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": INTERMEDIATE,
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


def tiny_encoder(random: np.random.Generator, vocabulary_size: int = 40) -> Arrays:
    """The encoder's tensors under the names that checkpoints give them."""
    return {
        "embeddings.word_embeddings.weight": _numbers(random, vocabulary_size, HIDDEN),
        "embeddings.position_embeddings.weight": _numbers(random, POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": _numbers(random, 1, HIDDEN),
        **_layer_norm(random, "embeddings.LayerNorm"),
        **{name: array for layer in range(LAYERS) for name, array in _layer(random, f"encoder.layer.{layer}").items()},
    }


def linear_head(random: np.random.Generator, outputs: int) -> Arrays:
    """A head's tensors: `weight` [outputs, HIDDEN] and `bias` [outputs]."""
    return {"weight": _numbers(random, outputs, HIDDEN), "bias": _numbers(random, outputs)}


def _layer(random: np.random.Generator, prefix: str) -> Arrays:
    return {
        **_linear(random, f"{prefix}.attention.self.query", HIDDEN, HIDDEN),
        **_linear(random, f"{prefix}.attention.self.key", HIDDEN, HIDDEN),
        **_linear(random, f"{prefix}.attention.self.value", HIDDEN, HIDDEN),
        **_linear(random, f"{prefix}.attention.output.dense", HIDDEN, HIDDEN),
        **_layer_norm(random, f"{prefix}.attention.output.LayerNorm"),
        **_linear(random, f"{prefix}.intermediate.dense", HIDDEN, INTERMEDIATE),
        **_linear(random, f"{prefix}.output.dense", INTERMEDIATE, HIDDEN),
        **_layer_norm(random, f"{prefix}.output.LayerNorm"),
    }


def _linear(random: np.random.Generator, prefix: str, inputs: int, outputs: int) -> Arrays:
    return {f"{prefix}.weight": _numbers(random, outputs, inputs), f"{prefix}.bias": _numbers(random, outputs)}


def _layer_norm(random: np.random.Generator, prefix: str) -> Arrays:
    return {f"{prefix}.weight": 1 + _numbers(random, HIDDEN), f"{prefix}.bias": _numbers(random, HIDDEN)}


def _numbers(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return random.normal(0, 0.2, shape).astype(np.float32)
