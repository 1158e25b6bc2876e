"""Which of ONNX Runtime's execution providers a version runs on, with what options: decisions, nothing is opened."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from trivec_server.backends.graph.spec import Arithmetic
from trivec_server.backends.interface import EngineRequest
from trivec_server.errors import LoadError
from trivec_server.types import InstanceKind

Options: TypeAlias = Mapping[str, str]

TENSORRT = "TensorrtExecutionProvider"
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

NEEDS_GPU_PACKAGE = "pip uninstall onnxruntime, then pip install onnxruntime-gpu"

_MEGABYTE = 1_000_000
_TENSORRT_TOKENS = 512
"""The length that TensorRT tunes for, if texts may be so long."""
_TENSORRT_PAGE_TOKENS = 8192
"""The padded tokens of a batch that TensorRT is built for, unless a budget is configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """
    What decides where a graph can run: what it computes in, how its weights are stored, the size of its files, and the
    size of a hidden state.
    """

    arithmetic: Arithmetic
    storage: str
    weight_bytes: int
    hidden: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this process has: ONNX Runtime's providers, and the GPUs that the driver shows."""

    available: Collection[str]
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """
    Where a version runs. `notes`: for `EngineInfo.notes`.
    """

    device: Literal["cpu", "cuda"]
    device_index: int = 0
    tensorrt: bool = False
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The device as EngineInfo has it."""
        return "cpu" if self.device == "cpu" else f"cuda:{self.device_index}"

    @property
    def provider(self) -> str:
        """The provider that must be the session's first."""
        if self.device == "cpu":
            return CPU
        return TENSORRT if self.tensorrt else CUDA


def check_precision(asked: str | None, facts: GraphFacts) -> None:
    """
    Raises:
        LoadError: another precision is asked for than the graph computes in.
    """
    if asked is None or asked == facts.arithmetic:
        return
    stored = f" (its weights are stored as {facts.storage})" if facts.storage != facts.arithmetic else ""
    raise LoadError(
        f"config.pbtxt asks for precision {asked}, but this version's graph computes in {facts.arithmetic}{stored}; "
        f"remove the parameter, or make such a version with `trivec export --engine onnxruntime --precision {asked}`"
    )


def check_machine(request: EngineRequest, machine: Machine) -> None:
    """
    Whether what is asked for is here, whatever the graph.

    Raises:
        LoadError: it is not.
    """
    _wants_tensorrt(request.accelerator)
    obstacle = _machine_obstacle(request, machine)
    if request.kind is InstanceKind.CPU or (request.kind is InstanceKind.AUTO and obstacle is not None):
        _refuse_gpu_settings(request, obstacle)
    elif obstacle is not None:
        raise LoadError(f"instance_group asks for KIND_GPU, but {obstacle}")


def place(request: EngineRequest, facts: GraphFacts, machine: Machine) -> Placement:
    """
    Where a version runs.

    Raises:
        LoadError: what is asked for is not here, or the graph is not for it.
    """
    tensorrt = _wants_tensorrt(request.accelerator)
    obstacle = _obstacle(request, facts, machine)
    if request.kind is InstanceKind.CPU or (request.kind is InstanceKind.AUTO and obstacle is not None):
        return place_on_cpu(request, facts, machine, obstacle)
    if obstacle is not None:
        raise LoadError(f"instance_group asks for KIND_GPU, but {obstacle}")
    if tensorrt:
        _check_tensorrt(facts, machine)
    notes = () if facts.arithmetic == "float16" else (_FASTER_ON_GPU,)
    return Placement(device="cuda", device_index=request.device_index or 0, tensorrt=tensorrt, notes=notes)


_FASTER_ON_GPU = (
    "on a GPU this version computes in float32; `trivec export --engine onnxruntime --precision float16` makes one "
    "that uses the GPU's float16 matrix units"
)


def _wants_tensorrt(accelerator: str | None) -> bool:
    if accelerator not in (None, "tensorrt"):
        raise LoadError(f"the engine onnxruntime has no execution accelerator `{accelerator}`; it has `tensorrt`")
    return accelerator == "tensorrt"


def _obstacle(request: EngineRequest, facts: GraphFacts, machine: Machine) -> str | None:
    """Why this version cannot run on a GPU here; None if it can."""
    if facts.arithmetic == "int8":
        int8 = "an int8 version of the engine onnxruntime runs on the CPU only: set KIND_CPU, or use a float16 version"
        return _machine_obstacle(request, machine) or int8
    return _machine_obstacle(request, machine)


def _machine_obstacle(request: EngineRequest, machine: Machine) -> str | None:
    if not machine.gpus:
        return "no NVIDIA GPU is visible to this process; set KIND_CPU or KIND_AUTO"
    if request.device_index is not None and request.device_index >= machine.gpus:
        return f"GPU {request.device_index} is not there: this process sees {machine.gpus}, counted from 0"
    if CUDA not in machine.available:
        return f"the package onnxruntime that is installed has no CUDA provider: {NEEDS_GPU_PACKAGE}"
    return None


def _refuse_gpu_settings(request: EngineRequest, obstacle: str | None) -> None:
    because = f" ({obstacle})" if request.kind is InstanceKind.AUTO and obstacle else ""
    if request.accelerator is not None:
        raise LoadError(f"the accelerator `{request.accelerator}` needs a GPU{because}; remove it or set KIND_GPU")
    if request.device_index is not None:
        raise LoadError(f"instance_group names `gpus`, but would run on the CPU{because}: remove them or set KIND_GPU")


def place_on_cpu(request: EngineRequest, facts: GraphFacts, machine: Machine, obstacle: str | None) -> Placement:
    """
    The CPU, because it is asked for, or because of an obstacle where `KIND_AUTO` leaves the choice.

    Raises:
        LoadError: something is asked for that only a GPU has, or the graph is for GPUs.
    """
    _refuse_gpu_settings(request, obstacle)
    # For a comparison it will do: ONNX Runtime then puts casts around what its CPU kernels lack.
    if facts.arithmetic == "float16" and not request.comparing:
        because = f" ({obstacle})" if obstacle and machine.gpus else ""
        raise LoadError(
            f"this version computes in float16, which ONNX Runtime does on GPUs only{because}; on the CPU use the "
            "version that `trivec pull` made, or export one with `--precision int8`"
        )
    idle_gpu = request.kind is InstanceKind.AUTO and machine.gpus > 0
    return Placement(device="cpu", notes=(f"a GPU is visible but not used: {obstacle}",) if idle_gpu else ())


def _check_tensorrt(facts: GraphFacts, machine: Machine) -> None:
    if TENSORRT not in machine.available:
        raise LoadError(
            f"the package onnxruntime that is installed has no TensorRT provider: {NEEDS_GPU_PACKAGE} and tensorrt"
        )
    if facts.arithmetic != "float16":
        raise LoadError(
            f"the accelerator `tensorrt` needs a float16 version, this one computes in {facts.arithmetic}; make one "
            "with `trivec export --engine onnxruntime --precision float16`"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """`token_budget`: padded tokens of a batch. `rows`: the most texts in one run; None: no limit."""

    token_budget: int
    rows: int | None = None


_CPU_TOKEN_BUDGET = 1024
_CUDA_TOKEN_BUDGET = 32_768
"""More does not make a large GPU faster: its matrix products are at their full rate with 10,000 rows and more."""
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
"""Of the attention scores that the portable graph holds, see `graph_attention.SCORE_ELEMENTS`."""


def batch_limits(request: EngineRequest, facts: GraphFacts, placement: Placement) -> BatchLimits:
    """
    How large batches may be: as configured, else what fits `device_memory_mb`, at most 32,768 padded tokens on a GPU.

    Raises:
        LoadError: the weights alone are larger than `device_memory_mb`.
    """
    if placement.device == "cpu":
        return BatchLimits(token_budget=request.token_budget or _CPU_TOKEN_BUDGET)
    budget = request.token_budget or _fitting_tokens(request.device_memory_mb, facts)
    if not placement.tensorrt:
        return BatchLimits(token_budget=budget)
    budget = min(budget, request.token_budget or _TENSORRT_PAGE_TOKENS)
    return BatchLimits(token_budget=budget, rows=max(1, budget // _tuned_tokens(request)))


def _fitting_tokens(device_memory_mb: int | None, facts: GraphFacts) -> int:
    if device_memory_mb is None:
        return _CUDA_TOKEN_BUDGET
    room = device_memory_mb * _MEGABYTE - facts.weight_bytes - _CONTEXT_BYTES - _SCORE_BYTES
    tokens = room // (_NUMBERS_PER_TOKEN * 4 * facts.hidden)
    if tokens < _LEAST_CUDA_TOKEN_BUDGET:
        need = facts.weight_bytes + _CONTEXT_BYTES + _SCORE_BYTES
        need += _LEAST_CUDA_TOKEN_BUDGET * _NUMBERS_PER_TOKEN * 4 * facts.hidden
        raise LoadError(
            f"device_memory_mb is {device_memory_mb}, but this version needs {-(-need // _MEGABYTE)} at least: "
            "raise it, or use a version of a lower precision"
        )
    return min(tokens, _CUDA_TOKEN_BUDGET)


def _tuned_tokens(request: EngineRequest) -> int:
    return min(request.max_tokens, _TENSORRT_TOKENS)


def provider_options(
    request: EngineRequest, facts: GraphFacts, placement: Placement, limits: BatchLimits, cache_dir: Path
) -> tuple[tuple[str, Options], ...]:
    """
    The providers of a session with their options, in the order of preference. `cache_dir` is where TensorRT keeps what
    it has built.
    """
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
    if not placement.tensorrt:
        return chosen
    return ((TENSORRT, MappingProxyType(_tensorrt_options(request, placement, limits, cache_dir))), *chosen)


def _tensorrt_options(
    request: EngineRequest, placement: Placement, limits: BatchLimits, cache_dir: Path
) -> dict[str, str]:
    rows, tuned = limits.rows or 1, _tuned_tokens(request)
    shapes = {"min": (1, 2), "opt": (rows, tuned), "max": (rows, request.max_tokens)}
    options = {
        f"trt_profile_{which}_shapes": ",".join(f"{name}:{batch}x{tokens}" for name in ("input_ids", "attention_mask"))
        for which, (batch, tokens) in shapes.items()
    }
    return options | {
        "device_id": str(placement.device_index),
        "trt_fp16_enable": "1",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache_dir),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache_dir),
    }


def tensorrt_cache_dir(user_cache: Path, weights: Path, limits: BatchLimits) -> Path:
    """
    A directory for the engines that TensorRT builds of these weights, which hold the weights themselves. ONNX Runtime
    names them by the graph alone, so other weights, and other shapes, need another directory.
    """
    facts = weights.stat()
    key = f"{weights.resolve()} {facts.st_size} {facts.st_mtime_ns} {limits.token_budget} {limits.rows}"
    return user_cache / "trivec" / "tensorrt" / sha256(key.encode()).hexdigest()[:16]
