"""Builds the PyTorch engine: chooses the device and the precision, or says why what was asked for cannot be."""

from collections.abc import Mapping

import torch

from trivec_server.backends.graph.spec import EncoderSpec
from trivec_server.backends.hardware import cpu_has_bfloat16, nvidia_gpu_count, threads_per_instance
from trivec_server.backends.interface import Engine, EngineLost, EngineRequest
from trivec_server.backends.pytorch.attention import attend_by_length, packed_attention
from trivec_server.backends.pytorch.cpu_engine import CpuEngine, cpu_arithmetic
from trivec_server.backends.pytorch.cuda_engine import CudaEngine
from trivec_server.backends.pytorch.device_errors import device_errors, first_line
from trivec_server.backends.pytorch.encoder import AddNorm, Arithmetic, add_norm
from trivec_server.backends.pytorch.fuse import fuse
from trivec_server.backends.pytorch.linear import Float8Linear, Linear, LinearKind, PlainLinear, RowQuantizer, to_float8
from trivec_server.backends.weights.stored_model import open_stored_model
from trivec_server.errors import LoadError
from trivec_server.types import InstanceKind

NO_GPU = "no NVIDIA GPU is visible to this process"

_CPU_TYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CUDA_TYPES: Mapping[str, tuple[torch.dtype, tuple[int, int]]] = {
    "float32": (torch.float32, (0, 0)),
    "float16": (torch.float16, (0, 0)),
    "bfloat16": (torch.bfloat16, (8, 0)),
    "float8": (torch.bfloat16, (8, 9)),
}
"""The type of activations, and the least compute capability."""
_FLOAT8_MULTIPLE = 16
_TRIED_ROWS = 4000


def build_pytorch(request: EngineRequest) -> Engine:
    """
    Loads the weights of a version onto its device.

    Raises:
        LoadError: the weights are missing or damaged, or there is no such device, or it lacks the precision. With
            KIND_AUTO that holds for the CPU; what keeps it from the GPU is in the notes.
    """
    if request.accelerator is not None:
        raise LoadError(
            f"config.pbtxt asks for `{request.accelerator}`, which the pytorch engine cannot use; remove it"
        )
    wants_gpu = request.kind is InstanceKind.GPU or request.device_index is not None
    if request.kind is InstanceKind.CPU:
        return _build_cpu(request, ())
    obstacle = _cuda_obstacle()
    if obstacle is None:
        try:
            return _build_cuda(request)
        except LoadError as error:
            if wants_gpu:
                raise
            obstacle = str(error)
    elif wants_gpu:
        raise LoadError(f"instance_group asks for KIND_GPU, but {obstacle}; set KIND_CPU or KIND_AUTO")
    return _build_cpu(request, (f"on the CPU: {obstacle}",))


def _build_cpu(request: EngineRequest, notes: tuple[str, ...]) -> Engine:
    precision = request.precision or ("bfloat16" if cpu_has_bfloat16() else "float32")
    if precision not in _CPU_TYPES:
        raise LoadError(_no_such_precision(precision, "a CPU", _CPU_TYPES))
    if precision == "bfloat16" and not cpu_has_bfloat16():
        notes = (*notes, "this CPU has no bfloat16 instructions: precision float32 is faster")
    return CpuEngine(
        open_stored_model(request.version_dir),
        cpu_arithmetic(_CPU_TYPES[precision]),
        precision=precision,
        threads=threads_per_instance(request.intra_op_threads, request.instances),
        token_budget=request.token_budget,
        notes=notes,
    )


def _build_cuda(request: EngineRequest) -> Engine:
    index = request.device_index or 0
    if index >= torch.cuda.device_count():
        raise LoadError(
            f"instance_group names GPU {index}, but this process sees {torch.cuda.device_count()}, counted from 0; "
            "correct `gpus`"
        )
    device = torch.device("cuda", index)
    name, capability = _look_at(device)
    notes = [f"GPU {index}: {name}"]
    stored = open_stored_model(request.version_dir)
    precision = request.precision or "float16"
    _check_precision(precision, name, capability, stored.encoder)
    try:
        with device_errors():
            arithmetic = _cuda_arithmetic(device, capability, precision, stored.encoder, notes, request.comparing)
            return CudaEngine(
                stored,
                arithmetic,
                precision=precision,
                max_tokens=min(request.max_tokens, stored.encoder.max_tokens),
                instances=request.instances,
                memory_mb=request.device_memory_mb,
                token_budget=request.token_budget,
                has_graphs=not request.comparing,
                notes=tuple(notes),
            )
    except MemoryError as error:
        raise LoadError(f"the model does not fit into the memory of GPU {index} that it may take") from error
    except EngineLost as error:
        raise LoadError(f"GPU {index} cannot be used: {error}") from error


def _look_at(device: torch.device) -> tuple[str, tuple[int, int]]:
    """The name and the compute capability of a GPU. The first to use it, and so to see that it cannot be."""
    try:
        torch.cuda.set_device(device)
        return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    except Exception as error:  # torch has no one class for what a driver says
        raise LoadError(f"GPU {device.index} cannot be used: {first_line(error)}") from error


def _check_precision(precision: str, gpu: str, capability: tuple[int, int], spec: EncoderSpec) -> None:
    offered = [name for name, (_, least) in _CUDA_TYPES.items() if capability >= least]
    if precision not in offered:
        raise LoadError(_no_such_precision(precision, gpu, offered))
    if precision == "float8" and (spec.hidden % _FLOAT8_MULTIPLE or spec.intermediate % _FLOAT8_MULTIPLE):
        raise LoadError(
            f"precision float8 needs sizes that are multiples of {_FLOAT8_MULTIPLE}; this model has hidden "
            f"{spec.hidden} and intermediate {spec.intermediate}: set another precision"
        )


def _cuda_arithmetic(
    device: torch.device,
    capability: tuple[int, int],
    precision: str,
    spec: EncoderSpec,
    notes: list[str],
    may_be_slow: bool,
) -> Arithmetic:
    """How to compute on a GPU; adds to `notes` what is not as fast as it could be."""
    dtype = _CUDA_TYPES[precision][0]
    attention = packed_attention(dtype, spec.hidden // spec.heads, capability)
    if attention is None:
        notes.append(f"attention runs once per length of text: flash attention has no {precision} on this GPU")
    quantize: RowQuantizer = to_float8
    fused_norm: AddNorm | None = None
    if dtype is not torch.float32 and not may_be_slow:
        hidden, inner = (
            torch.randn(_TRIED_ROWS, n, dtype=dtype, device=device) for n in (spec.hidden, spec.intermediate)
        )
        weight, bias = hidden[0].clone(), hidden[1].clone()
        fused_norm = fuse("layer norm", add_norm, [(hidden, hidden * 2, weight, bias, spec.layer_norm_eps)], notes)
        if precision == "float8":
            # Step by step, bringing activations to float8 takes about as long as float8 saves.
            quantize = fuse("float8", to_float8, [(hidden,), (inner,)], notes)
    linear = _float8_linear(device, quantize) if precision == "float8" else _plain_linear(device, dtype)
    return Arithmetic(device, dtype, linear, attention or attend_by_length, fused_norm)


def _plain_linear(device: torch.device, dtype: torch.dtype) -> LinearKind:
    def linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        return PlainLinear(weight.to(device, dtype).contiguous(), bias.to(device, dtype))

    return linear


def _float8_linear(device: torch.device, quantize: RowQuantizer) -> LinearKind:
    def linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        return Float8Linear(weight.to(device).contiguous(), bias.to(device), quantize)

    return linear


def _cuda_obstacle() -> str | None:
    """Why no GPU can be used; None if one can."""
    if nvidia_gpu_count() == 0:
        return NO_GPU
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a build of torch with CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} cannot use the GPU: its CUDA {torch.version.cuda} may need a newer driver"
    return None


def _no_such_precision(precision: str, device: str, offered: Mapping[str, object] | list[str]) -> str:
    return f"precision {precision}: the pytorch engine on {device} has {', '.join(offered)}; correct config.pbtxt"
