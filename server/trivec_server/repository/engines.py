"""
The engines by the names that `backend` gives them, and the choice that `auto` makes. Only this module names an engine.

An engine's library is imported when the engine is built, not before.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from trivec_server.backends.hardware import cpu_has_bfloat16, nvidia_gpu_count
from trivec_server.backends.interface import Engine, EngineFactory, EngineRequest
from trivec_server.backends.tensor_interface import TensorEngine, TensorEngineFactory, TensorEngineRequest
from trivec_server.errors import LoadError
from trivec_server.types import InstanceKind

AUTO = "auto"
"""The `backend` that lets `choose_engine` decide."""


@contextmanager
def needs(engine: str, extra: str) -> Iterator[None]:
    """
    Around the import of an engine's library.

    Raises:
        LoadError: a package is missing; names the extra that brings it.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("trivec_server"):
            raise
        missing = f" (missing: {error.name})" if error.name else ""
        raise LoadError(f"the engine `{engine}` needs its packages{missing}: pip install 'trivec[{extra}]'") from error


def onnxruntime_engine(request: EngineRequest) -> Engine:
    """ONNX Runtime: any CPU; CUDA and TensorRT with the package onnxruntime-gpu."""
    with needs("onnxruntime", "server"):
        from trivec_server.backends.onnxruntime.engine import build_onnxruntime  # noqa: PLC0415 - as the module says
    return build_onnxruntime(request)


def openvino_engine(request: EngineRequest) -> Engine:
    """OpenVINO: the CPU."""
    with needs("openvino", "openvino"):
        from trivec_server.backends.openvino.engine import build_openvino  # noqa: PLC0415 - as the module says
    return build_openvino(request)


def pytorch_engine(request: EngineRequest) -> Engine:
    """PyTorch: CUDA GPUs, and the CPU."""
    with needs("pytorch", "torch"):
        from trivec_server.backends.pytorch import build_pytorch  # noqa: PLC0415 - as the module says
    return build_pytorch(request)


def flagembedding_engine(request: EngineRequest) -> Engine:
    """The reference implementation, to compare with."""
    with needs("flagembedding", "flagembedding"):
        from trivec_server.backends.flagembedding import build_flagembedding  # noqa: PLC0415 - as the module says
    return build_flagembedding(request)


ENGINES: Mapping[str, EngineFactory] = {
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
    "pytorch": pytorch_engine,
    "flagembedding": flagembedding_engine,
}


def onnxruntime_tensor_engine(request: TensorEngineRequest) -> TensorEngine:
    """ONNX Runtime for any ONNX file: any CPU; CUDA with the package onnxruntime-gpu."""
    with needs("onnxruntime", "server"):
        from trivec_server.backends.onnxruntime.tensors import (  # noqa: PLC0415 - as the module says
            build_onnxruntime_tensors,
        )
    return build_onnxruntime_tensors(request)


TENSOR_ENGINES: Mapping[str, TensorEngineFactory] = {"onnxruntime": onnxruntime_tensor_engine}
"""Those of models that take tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """
    What decides on the fastest engine: GPUs, bfloat16 instructions of the CPU, and the engines whose packages are
    installed; `gpu_engines` those of them that are built for GPUs.
    """

    gpus: int
    cpu_has_bfloat16: bool
    engines: frozenset[str]
    gpu_engines: frozenset[str]


def this_machine() -> Machine:
    """What is here. Looks for packages, and imports none."""
    engines = frozenset(name for name, package in _PACKAGES.items() if find_spec(package) is not None)
    gpu_engines = {"pytorch", "flagembedding"} & engines if _torch_has_cuda() else set()
    if _has_distribution("onnxruntime-gpu"):
        gpu_engines |= {"onnxruntime"}
    return Machine(
        gpus=nvidia_gpu_count(),
        cpu_has_bfloat16=cpu_has_bfloat16(),
        engines=engines,
        gpu_engines=frozenset(gpu_engines),
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine's name, and what the user should know of why it is this one."""

    name: str
    notes: tuple[str, ...] = ()


def choose_engine(machine: Machine, kind: InstanceKind, exported_for: str | None, precision: str | None) -> Choice:
    """
    What `auto` stands for: the engine that is fastest on the machine, of those that are installed. A version that was
    exported for an engine is run by that one. The order is measured: docs/benchmarks.md.

    Args:
        machine: Where it is to run.
        kind: Where the instances shall run.
        exported_for: The engine that the version's files were made for; None: any can run them.
        precision: What `config.pbtxt` asks for; None: each engine's own.

    Raises:
        LoadError: KIND_GPU was asked for and there is no engine for it, or no GPU.
    """
    if exported_for is not None:
        return Choice(exported_for, (f"backend auto: {exported_for}, which this version was exported for",))
    if kind is InstanceKind.GPU and not machine.gpus:
        raise LoadError(
            "instance_group asks for KIND_GPU, but no NVIDIA GPU is visible to this process; set KIND_CPU or KIND_AUTO"
        )
    notes: list[str] = []
    if kind is not InstanceKind.CPU and machine.gpus:
        if machine.gpu_engines & set(_GPU_RANKING):
            return _first(_GPU_RANKING, machine.gpu_engines, "GPU")
        if kind is InstanceKind.GPU:
            raise LoadError(f"no engine for GPUs is installed: {_MENDS[_GPU_RANKING[0]]}")
        notes.append(f"there is a GPU, but no engine for it is installed: {_MENDS[_GPU_RANKING[0]]}")
    choice = _first(_cpu_ranking(machine, precision), machine.engines, "CPU")
    return Choice(choice.name, (*notes, *choice.notes))


_GPU_RANKING = ("pytorch", "onnxruntime")
_PACKAGES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "pytorch": "torch",
    "flagembedding": "FlagEmbedding",
}
_MENDS = {
    "onnxruntime": "pip install 'trivec[server]'",
    "openvino": "pip install 'trivec[openvino]'",
    "pytorch": "pip install 'trivec[torch]'",
}


def _cpu_ranking(machine: Machine, precision: str | None) -> tuple[str, ...]:
    if precision == "int8":
        return ("openvino", "onnxruntime")
    if machine.cpu_has_bfloat16 and precision in (None, "bfloat16"):
        return ("openvino", "pytorch", "onnxruntime")
    return ("openvino", "onnxruntime", "pytorch")


def _first(ranking: tuple[str, ...], installed: frozenset[str], place: str) -> Choice:
    for position, name in enumerate(ranking):
        if name in installed:
            better = [f"{each} would be faster: {_MENDS[each]}" for each in ranking[:position]]
            return Choice(
                name, (f"backend auto: {name}, the fastest engine for this {place} that is installed", *better)
            )
    raise LoadError(f"no engine is installed: {_MENDS[ranking[0]]}")


def _torch_has_cuda() -> bool:
    """Whether the torch that is installed was built for CUDA, by what it says of itself in a file."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return False
    try:
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^cuda\b.*= *['\"]", text, re.MULTILINE) is not None


def _has_distribution(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
