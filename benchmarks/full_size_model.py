"""
A model with the shapes of BGE-M3 (568 million parameters) and random weights, in the hub's layout: what memory and
speed depend on without a download. Written tensor by tensor, so that making it takes little memory.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.numerics.models import write_tokenizer
from tests.numerics.torch_archive import write_torch_archive

HIDDEN = 1024
LAYERS = 24
HEADS = 16
INTERMEDIATE = 4096
VOCABULARY_SIZE = 250_002
MAX_TOKENS = 8192
POSITIONS = MAX_TOKENS + 2  # XLM-RoBERTa counts positions from the padding id + 1
_BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Numbers of a uniform distribution: `center` plus or minus `spread`, float32 of this shape."""

    name: str
    shape: tuple[int, ...]
    spread: float
    center: float = 0.0

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


def write_full_size_model(directory: Path, seed: int = 11) -> None:
    """
    Writes config.json, the tokenizer, model.safetensors (2.3 GB, float32) and both heads into a directory that exists.

    The spreads keep the outputs telling, so that the model passes the self-check of a version.
    """
    random = np.random.default_rng(seed)
    write_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps(_config(), indent=2), encoding="utf-8")
    _write_safetensors(directory / "model.safetensors", _encoder(), random)
    for name, outputs, gain in (("sparse", 1, 0.2), ("colbert", HIDDEN, 1.0)):
        # Most weights of tokens are above zero.
        weight, bias = _linear("head", HIDDEN, outputs, gain, bias=0.125 if name == "sparse" else 0.0)
        numbers = {"weight": _numbers(weight, random), "bias": _numbers(bias, random)}
        write_torch_archive(directory / f"{name}_linear.pt", numbers)


def _encoder() -> list[_Tensor]:
    return [
        _Tensor("embeddings.word_embeddings.weight", (VOCABULARY_SIZE, HIDDEN), 1.0),
        _Tensor("embeddings.position_embeddings.weight", (POSITIONS, HIDDEN), 0.5),
        _Tensor("embeddings.token_type_embeddings.weight", (1, HIDDEN), 0.25),
        *_layer_norm("embeddings.LayerNorm"),
        *(tensor for layer in range(LAYERS) for tensor in _layer(f"encoder.layer.{layer}")),
    ]


def _layer(prefix: str) -> list[_Tensor]:
    return [
        *_linear(f"{prefix}.attention.self.query", HIDDEN, HIDDEN, 1.4),
        *_linear(f"{prefix}.attention.self.key", HIDDEN, HIDDEN, 1.4),
        *_linear(f"{prefix}.attention.self.value", HIDDEN, HIDDEN, 0.9),
        *_linear(f"{prefix}.attention.output.dense", HIDDEN, HIDDEN, 0.9),
        *_layer_norm(f"{prefix}.attention.output.LayerNorm"),
        *_linear(f"{prefix}.intermediate.dense", HIDDEN, INTERMEDIATE, 1.0),
        *_linear(f"{prefix}.output.dense", INTERMEDIATE, HIDDEN, 1.0),
        *_layer_norm(f"{prefix}.output.LayerNorm"),
    ]


def _linear(prefix: str, inputs: int, outputs: int, gain: float, bias: float = 0.0) -> list[_Tensor]:
    """A layer whose outputs have the standard deviation `gain`, if its inputs have 1."""
    spread = gain * (3 / inputs) ** 0.5
    return [
        _Tensor(f"{prefix}.weight", (outputs, inputs), spread),
        _Tensor(f"{prefix}.bias", (outputs,), 0.05 * gain, bias),
    ]


def _layer_norm(prefix: str) -> list[_Tensor]:
    return [
        _Tensor(f"{prefix}.weight", (HIDDEN,), 0.25, 1.0),
        _Tensor(f"{prefix}.bias", (HIDDEN,), 0.1),
    ]


def _write_safetensors(path: Path, tensors: list[_Tensor], random: np.random.Generator) -> None:
    """The format: the header's length as uint64, the header in JSON, then the numbers in the header's order."""
    header: dict[str, object] = {}
    offset = 0
    for tensor in tensors:
        end = offset + 4 * tensor.size
        header[tensor.name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for block in _blocks(tensor, random):
                file.write(block.data)


def _numbers(tensor: _Tensor, random: np.random.Generator) -> NDArray[np.float32]:
    return np.concatenate(list(_blocks(tensor, random))).reshape(tensor.shape)


def _blocks(tensor: _Tensor, random: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """The tensor's numbers, flat, in pieces."""
    for start in range(0, tensor.size, _BLOCK_NUMBERS):
        block = random.random(min(_BLOCK_NUMBERS, tensor.size - start), np.float32)
        block *= np.float32(2 * tensor.spread)
        block += np.float32(tensor.center - tensor.spread)
        yield block


def _config() -> dict[str, object]:
    return {
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INTERMEDIATE,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "vocab_size": VOCABULARY_SIZE,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    }
