"""How large ONNX Runtime's batches may be, and the options of its providers: decisions, nothing is opened."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from trivec_server.backends.interface import EngineRequest
from trivec_server.backends.onnxruntime.providers import CPU, CUDA, TENSORRT, GraphFacts, Placement
from trivec_server.errors import LoadError

Options: TypeAlias = Mapping[str, str]

_MEGABYTE = 1_000_000
_CPU_TOKEN_BUDGET = 1024
_CUDA_TOKEN_BUDGET = 32_768
"""More does not make a large GPU faster: its matrix products are at their full rate with 10,000 rows and more."""
_TENSORRT_TOKEN_BUDGET = 8192
_TENSORRT_TOKENS = 512
"""TensorRT is built for batches of texts up to this length, and for longer texts one at a time."""
_LEAST_CUDA_TOKEN_BUDGET = 256
_NUMBERS_PER_TOKEN = 32
"""
What a layer and the heads hold at once for one token, in float32 numbers, by hidden size: hidden state, residual,
query, key, value, context (6), the feed-forward's inside twice (8), the heads' vectors and their copies (4), and as
much again for what the arena cannot fit together.
"""
_CONTEXT_BYTES = 800 * _MEGABYTE
"""Of the CUDA context, cuBLAS's workspace and the kernels."""
_SCORE_BYTES = 3 * 64 * (1 << 20)
"""Of the attention scores that the portable graph holds, see `SCORE_ELEMENTS` in `backends/graph/attention.py`."""


@dataclass(frozen=True, slots=True)
class RunShape:
    """The most texts of one run, and the most tokens of each."""

    rows: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """
    `token_budget`: padded tokens of a batch. `shapes`: the runs that TensorRT is built for, shorter texts first, each
    with a session of its own: of several profiles ONNX Runtime uses only the first. Empty: one session for all runs.
    """

    token_budget: int
    shapes: tuple[RunShape, ...] = ()

    def rows(self, longest: int) -> int | None:
        """The most texts of one run in which the longest has so many tokens; None: no limit."""
        return next((shape.rows for shape in self.shapes if longest <= shape.tokens), None)


def batch_limits(request: EngineRequest, facts: GraphFacts, placement: Placement) -> BatchLimits:
    """
    How large batches may be: as configured, else what fits `device_memory_mb`, at most 32,768 padded tokens on a GPU,
    8192 with TensorRT.

    Raises:
        LoadError: the weights alone are larger than `device_memory_mb`.
    """
    if placement.device == "cpu":
        return BatchLimits(token_budget=request.token_budget or _CPU_TOKEN_BUDGET)
    if not placement.tensorrt:
        return BatchLimits(token_budget=request.token_budget or _fitting_tokens(request.device_memory_mb, facts, 1))
    lengths = sorted({min(request.max_tokens, _TENSORRT_TOKENS), request.max_tokens})
    fitting = _fitting_tokens(request.device_memory_mb, facts, len(lengths))
    budget = request.token_budget or min(fitting, _TENSORRT_TOKEN_BUDGET)
    short = RunShape(max(1, budget // lengths[0]), lengths[0])
    return BatchLimits(token_budget=budget, shapes=(short, *(RunShape(1, length) for length in lengths[1:])))


def _fitting_tokens(device_memory_mb: int | None, facts: GraphFacts, sessions: int) -> int:
    if device_memory_mb is None:
        return _CUDA_TOKEN_BUDGET
    token_bytes = _NUMBERS_PER_TOKEN * 4 * facts.hidden
    tokens = _room_bytes(device_memory_mb, facts, sessions) // token_bytes
    if tokens < _LEAST_CUDA_TOKEN_BUDGET:
        need = _LEAST_CUDA_TOKEN_BUDGET * token_bytes - _room_bytes(0, facts, sessions)
        raise LoadError(
            f"device_memory_mb is {device_memory_mb}, but this version needs {-(-need // _MEGABYTE)} at least: "
            "raise it, or use a version of a lower precision"
        )
    return min(tokens, _CUDA_TOKEN_BUDGET)


def _room_bytes(device_memory_mb: int, facts: GraphFacts, sessions: int) -> int:
    """What is left for batches beside the weights, which each session has for itself."""
    return device_memory_mb * _MEGABYTE - sessions * facts.weight_bytes - _CONTEXT_BYTES - _SCORE_BYTES


def provider_options(
    request: EngineRequest, facts: GraphFacts, placement: Placement, tensorrt: Options | None = None
) -> tuple[tuple[str, Options], ...]:
    """The providers of a session with their options, in the order of preference; TensorRT's as given."""
    if placement.device == "cpu":
        return ((CPU, MappingProxyType({})),)
    cuda = {
        "device_id": str(placement.device_index),
        "arena_extend_strategy": "kSameAsRequested",
        # TF32 rounds to 10 bits: as exact as float16, but not as what float32 promises.
        "use_tf32": "1" if facts.arithmetic == "float16" else "0",
    }
    if request.device_memory_mb is not None:
        cuda["gpu_mem_limit"] = str(request.device_memory_mb * _MEGABYTE)
    chosen: tuple[tuple[str, Options], ...] = ((CUDA, MappingProxyType(cuda)), (CPU, MappingProxyType({})))
    return chosen if tensorrt is None else ((TENSORRT, tensorrt), *chosen)


def tensorrt_options(
    request: EngineRequest, facts: GraphFacts, placement: Placement, shape: RunShape, sessions: int, cache_dir: Path
) -> Options:
    """
    TensorRT's options for runs up to a shape, for which it is tuned.

    Args:
        request: What the engine is built from.
        facts: Of the graph.
        placement: Where it runs.
        shape: The largest run.
        sessions: How many there are, which share `device_memory_mb`.
        cache_dir: Where TensorRT keeps what it has built.
    """
    runs = {"min": (1, 2), "opt": (shape.rows, shape.tokens), "max": (shape.rows, shape.tokens)}
    options = {
        f"trt_profile_{which}_shapes": ",".join(f"{name}:{rows}x{tokens}" for name in ("input_ids", "attention_mask"))
        for which, (rows, tokens) in runs.items()
    }
    if request.device_memory_mb is not None:
        # The other half is for what lies between the layers.
        workspace_bytes = _room_bytes(request.device_memory_mb, facts, sessions) // (2 * sessions)
        options["trt_max_workspace_size"] = str(workspace_bytes)
    options |= {
        "device_id": str(placement.device_index),
        "trt_fp16_enable": "1",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache_dir),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache_dir),
    }
    return MappingProxyType(options)


def tensorrt_cache_dir(
    user_cache: Path, weights: Path, request: EngineRequest, shape: RunShape, library_version: str
) -> Path:
    """
    A directory for the engine that TensorRT builds of these weights, which holds the weights themselves. ONNX Runtime
    names it by the graph alone, so all else that it is built from makes another directory.
    """
    facts = weights.stat()
    parts = (
        weights.resolve(),
        facts.st_size,
        facts.st_mtime_ns,
        request.max_tokens,
        request.device_memory_mb,
        shape,
        library_version,
    )
    return user_cache / "trivec" / "tensorrt" / sha256(repr(parts).encode()).hexdigest()[:16]
