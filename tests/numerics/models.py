"""
Small models of BGE-M3's shape with random weights, as directories in Hugging Face's layout, made without torch.

Every weight is exactly representable in float16: FlagEmbedding 1.4.2 by default loads half-precision weights even on
a CPU, and so cannot change them. The scales keep the outputs telling: attention is neither uniform nor one-hot, so
that the first token's vector depends on the text, and most but not all token weights are above zero.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from trivec_server.repository.mini import build_tokenizer
from trivec_server.repository.mini_file import MiniFile, find_mini_file

from tests.numerics.random_numbers import RandomNumbers
from tests.numerics.torch_archive import write_torch_archive

VOCABULARY_SIZE = 250002
MAX_TOKENS = 8192
_POSITIONS = MAX_TOKENS + 2  # XLM-RoBERTa counts positions from the padding id + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What a random model is made from; the same shape gives the same model, to the bit."""

    name: str
    seed: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int


SHAPES = (
    ModelShape(name="random-64", seed=5, hidden_size=64, layers=2, heads=4, intermediate_size=160),
    ModelShape(name="random-128", seed=9, hidden_size=128, layers=3, heads=4, intermediate_size=320),
)


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """The tensors of a model under the names that checkpoints give them."""

    encoder: Mapping[str, NDArray[np.float32]]
    sparse_linear: Mapping[str, NDArray[np.float16]]
    colbert_linear: Mapping[str, NDArray[np.float16]]

    def digest(self) -> str:
        """SHA-256 over all names and bytes, in hexadecimal."""
        digest = hashlib.sha256()
        for part in (self.encoder, self.sparse_linear, self.colbert_linear):
            for name, tensor in part.items():
                digest.update(name.encode())
                digest.update(tensor.tobytes())
        return digest.hexdigest()


def make_weights(shape: ModelShape) -> ModelWeights:
    """Makes the weights of `shape`."""
    numbers = RandomNumbers(shape.seed)
    encoder = _embeddings(shape, numbers)
    for layer in range(shape.layers):
        encoder |= _layer(shape, numbers, f"encoder.layer.{layer}")
    encoder |= _linear(numbers, "pooler.dense", shape.hidden_size, shape.hidden_size, gain=1.0)
    sparse = _linear(numbers, "sparse", shape.hidden_size, 1, gain=0.2)
    sparse["sparse.bias"] += np.float32(0.125)
    colbert = _linear(numbers, "colbert", shape.hidden_size, shape.hidden_size, gain=1.0)
    return ModelWeights(encoder, _head(sparse), _head(colbert))


def write_model(shape: ModelShape, directory: Path) -> str:
    """
    Writes the model of `shape` into `directory`, which must exist.

    Returns:
        The digest of its weights.
    """
    weights = make_weights(shape)
    save_file(dict(weights.encoder), directory / "model.safetensors", metadata={"format": "pt"})
    write_torch_archive(directory / "sparse_linear.pt", weights.sparse_linear)
    write_torch_archive(directory / "colbert_linear.pt", weights.colbert_linear)
    _write_json(directory / "config.json", _config(shape))
    write_tokenizer(directory)
    return weights.digest()


def write_tokenizer(directory: Path) -> None:
    """
    Writes XLM-RoBERTa's tokenizer: `tokenizer.json` and the two files that transformers reads beside it.

    The class named there makes transformers use `tokenizer.json` as it is, instead of building a tokenizer of its own.
    """
    special_tokens = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False},
    }
    tokenizer_config = special_tokens | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    file = MiniFile(find_mini_file())
    build_tokenizer(file.pieces, file.scores).save(str(directory / "tokenizer.json"), pretty=False)
    _write_json(directory / "special_tokens_map.json", special_tokens)
    _write_json(directory / "tokenizer_config.json", tokenizer_config)


def _embeddings(shape: ModelShape, numbers: RandomNumbers) -> dict[str, NDArray[np.float32]]:
    width = shape.hidden_size
    return {
        "embeddings.word_embeddings.weight": numbers.uniform((VOCABULARY_SIZE, width), limit=1.0),
        "embeddings.position_embeddings.weight": numbers.uniform((_POSITIONS, width), limit=0.5),
        "embeddings.token_type_embeddings.weight": numbers.uniform((1, width), limit=0.25),
        **_layer_norm(numbers, "embeddings.LayerNorm", width),
    }


def _layer(shape: ModelShape, numbers: RandomNumbers, prefix: str) -> dict[str, NDArray[np.float32]]:
    width, inner = shape.hidden_size, shape.intermediate_size
    return {
        **_linear(numbers, f"{prefix}.attention.self.query", width, width, gain=1.4),
        **_linear(numbers, f"{prefix}.attention.self.key", width, width, gain=1.4),
        **_linear(numbers, f"{prefix}.attention.self.value", width, width, gain=0.9),
        **_linear(numbers, f"{prefix}.attention.output.dense", width, width, gain=0.9),
        **_layer_norm(numbers, f"{prefix}.attention.output.LayerNorm", width),
        **_linear(numbers, f"{prefix}.intermediate.dense", width, inner, gain=1.0),
        **_linear(numbers, f"{prefix}.output.dense", inner, width, gain=1.0),
        **_layer_norm(numbers, f"{prefix}.output.LayerNorm", width),
    }


def _linear(
    numbers: RandomNumbers, prefix: str, inputs: int, outputs: int, *, gain: float
) -> dict[str, NDArray[np.float32]]:
    """A layer whose outputs have the standard deviation `gain`, if its inputs have 1; [outputs, inputs]."""
    limit = gain * (3 / inputs) ** 0.5
    return {
        f"{prefix}.weight": numbers.uniform((outputs, inputs), limit=limit),
        f"{prefix}.bias": numbers.uniform((outputs,), limit=0.05 * gain),
    }


def _layer_norm(numbers: RandomNumbers, prefix: str, width: int) -> dict[str, NDArray[np.float32]]:
    around_one = (1 + numbers.uniform((width,), limit=0.25)).astype(np.float16).astype(np.float32)
    return {f"{prefix}.weight": around_one, f"{prefix}.bias": numbers.uniform((width,), limit=0.1)}


def _head(linear: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float16]]:
    """BGE-M3's heads are stored as a bare `weight` and `bias` in float16."""
    return {name.rpartition(".")[2]: tensor.astype(np.float16) for name, tensor in linear.items()}


def _config(shape: ModelShape) -> dict[str, object]:
    return {
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate_size,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "vocab_size": VOCABULARY_SIZE,
        "max_position_embeddings": _POSITIONS,
        "type_vocab_size": 1,
        "position_embedding_type": "absolute",
        "attention_probs_dropout_prob": 0.1,
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "output_past": True,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
