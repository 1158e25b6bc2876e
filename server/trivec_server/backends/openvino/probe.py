"""
Whether OpenVINO's bfloat16 arithmetic is right on this CPU.

OpenVINO 2026.4 multiplies bfloat16 matrices wrongly on some CPUs that have AVX512-BF16 and no AMX
(https://github.com/openvinotoolkit/openvino/issues/38256), without an error.
"""

from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
import openvino
from numpy.typing import NDArray

from trivec_server.backends.graph.spec import EncoderSpec, HeadsSpec
from trivec_server.backends.interface import TokenBatch
from trivec_server.backends.openvino.graph import keep_halves, write_openvino
from trivec_server.backends.openvino.packing import pack
from trivec_server.backends.weights.stored_model import StoredModel

_SPEC = EncoderSpec(
    architecture="bert",
    hidden=256,
    layers=1,
    heads=4,
    intermediate=512,
    vocabulary_size=8,
    max_positions=128,
    layer_norm_eps=1e-12,
    position_offset=0,
    pooling="cls",
)
_LENGTHS = (100, 3, 57)
_LEAST_COSINE = 0.999


@cache
def bfloat16_is_right() -> bool:
    """Runs one layer of random weights in bfloat16 and in float32 and compares the two; once in a process."""
    exact, rounded = (_hidden(hint) for hint in ("f32", "bf16"))
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
    cosines = (exact * rounded).sum(axis=1) / norms
    return bool((cosines >= _LEAST_COSINE).all())  # False too for NaN


def _hidden(hint: str) -> NDArray[np.float32]:
    random = np.random.default_rng(0)
    model = write_openvino(_random_model(random), "float16", lambda array: array)
    keep_halves(model)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    lengths = np.array(_LENGTHS)
    packed = pack(TokenBatch(np.zeros(lengths.sum(), np.int64), lengths), _SPEC)
    words = random.standard_normal((packed.size, _SPEC.hidden), np.float32)
    nothing = np.empty(0, np.int32)
    outputs = compiled({**packed.inputs(), "words": words, "vector_tokens": nothing})
    hidden: NDArray[np.float32] = outputs["hidden"][: lengths.sum()]
    return hidden


def _random_model(random: np.random.Generator) -> StoredModel:
    hidden, inner = _SPEC.hidden, _SPEC.intermediate
    layer = "encoder.layer.0"
    linears = {
        **{f"{layer}.attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")},
        f"{layer}.attention.output.dense": (hidden, hidden),
        f"{layer}.intermediate.dense": (inner, hidden),
        f"{layer}.output.dense": (hidden, inner),
        "colbert_linear": (hidden, hidden),
        "sparse_linear": (1, hidden),
    }
    norms = ("embeddings.LayerNorm", f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm")
    tensors: dict[str, NDArray[np.float32]] = {
        "embeddings.position_embeddings.weight": random.standard_normal((_SPEC.max_positions, hidden), np.float32),
        "embeddings.token_type_embeddings.weight": np.zeros((1, hidden), np.float32),
    }
    for name, (outputs, inputs) in linears.items():
        weight = random.standard_normal((outputs, inputs), np.float32) / np.float32(np.sqrt(inputs))
        tensors |= {f"{name}.weight": weight, f"{name}.bias": np.zeros(outputs, np.float32)}
    for name in norms:
        tensors |= {f"{name}.weight": np.ones(hidden, np.float32), f"{name}.bias": np.zeros(hidden, np.float32)}
    return StoredModel(_SPEC, HeadsSpec(multi_vector_dimension=hidden), _Tensors(tensors))


class _Tensors:
    """A TensorSource in memory."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        return self._tensors

    def get(self, name: str) -> NDArray[np.generic]:
        return self._tensors[name]
