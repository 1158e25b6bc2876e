"""Builds the PyTorch engine: chooses the device and the precision, or says why what was asked for cannot be."""

import torch

from trivec_server.backends.hardware import cpu_has_bfloat16, threads_per_instance
from trivec_server.backends.interface import Engine, EngineRequest
from trivec_server.backends.pytorch_engine import CpuEngine, cpu_arithmetic
from trivec_server.backends.stored_model import open_stored_model
from trivec_server.errors import LoadError

_CPU_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_pytorch(request: EngineRequest) -> Engine:
    """
    Loads the weights of a version onto its device.

    Raises:
        LoadError: the weights are missing or damaged, or there is no such device, or it lacks the precision.
    """
    return _build_cpu(request, ())


def _build_cpu(request: EngineRequest, notes: tuple[str, ...]) -> Engine:
    precision = request.precision or ("bfloat16" if cpu_has_bfloat16() else "float32")
    if precision not in _CPU_TYPES:
        raise LoadError(f"precision {precision}: the pytorch engine on a CPU has {', '.join(_CPU_TYPES)}")
    return CpuEngine(
        open_stored_model(request.version_dir),
        cpu_arithmetic(_CPU_TYPES[precision]),
        precision=precision,
        threads=threads_per_instance(request.intra_op_threads, request.instances),
        token_budget=request.token_budget,
        notes=notes,
    )
