"""
The engines by the names that `backend` gives them, and the choice that `auto` makes. Only this module names an engine.

An engine's library is imported when the engine is built, not before.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from trivec_server.backends.hardware import cpu_has_bfloat16, nvidia_gpu_count
from trivec_server.backends.interface import Engine, EngineFactory, EngineRequest
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
        from trivec_server.backends.onnxruntime import build_onnxruntime  # noqa: PLC0415 - as the module says
    return build_onnxruntime(request)


def openvino_engine(request: EngineRequest) -> Engine:
    """OpenVINO: the CPU."""
    with needs("openvino", "openvino"):
        from trivec_server.backends.openvino import build_openvino  # noqa: PLC0415 - as the module says
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


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine's name, and what the user should know of why it is this one."""

    name: str
    notes: tuple[str, ...] = ()


def choose_engine(kind: InstanceKind, exported_for: str | None, precision: str | None) -> Choice:
    """
    What `auto` stands for: the engine that is fastest on this machine, of those whose packages are installed. A version
    that was exported for an engine is run by that one. The order is measured: docs/benchmarks.md.

    Args:
        kind: Where the instances shall run.
        exported_for: The engine that the version's files were made for; None: any can run them.
        precision: What `config.pbtxt` asks for; None: each engine's own.

    Raises:
        LoadError: KIND_GPU was asked for and there is no engine for it, or no GPU.
    """
    if exported_for is not None:
        return Choice(exported_for, (f"backend auto: {exported_for}, which this version was exported for",))
    on_gpu = kind is not InstanceKind.CPU and nvidia_gpu_count() > 0
    if kind is InstanceKind.GPU and not on_gpu:
        raise LoadError(NO_GPU)
    ranking = _GPU_RANKING if on_gpu else _cpu_ranking(precision)
    place = "GPU" if on_gpu else _cpu_name()
    better: list[str] = []
    for name in ranking:
        if _installed(name, on_gpu=on_gpu):
            notes = [f"backend auto: {name}, the fastest engine for this {place} that is installed"]
            notes += [f"{each} would be faster: {_mend(each, on_gpu=on_gpu)}" for each in better]
            return Choice(name, tuple(notes))
        better.append(name)
    if kind is InstanceKind.GPU:
        raise LoadError(f"no engine for GPUs is installed: {_mend(ranking[0], on_gpu=True)}")
    choice = choose_engine(InstanceKind.CPU, None, precision)
    note = f"there is a GPU, but no engine for it is installed: {_mend(ranking[0], on_gpu=True)}"
    return Choice(choice.name, (note, *choice.notes))


NO_GPU = "instance_group asks for KIND_GPU, but no NVIDIA GPU is visible to this process; set KIND_CPU or KIND_AUTO"

_GPU_RANKING = ("pytorch", "onnxruntime")
_PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "pytorch": "torch"}
_EXTRAS = {"onnxruntime": "server", "openvino": "openvino", "pytorch": "torch"}


def _cpu_ranking(precision: str | None) -> tuple[str, ...]:
    if precision == "int8":
        return ("openvino", "onnxruntime")
    if cpu_has_bfloat16() and precision in (None, "bfloat16"):
        return ("openvino", "pytorch", "onnxruntime")
    return ("openvino", "onnxruntime", "pytorch")


def _cpu_name() -> str:
    return "CPU, which has bfloat16 instructions" if cpu_has_bfloat16() else "CPU"


def _installed(engine: str, *, on_gpu: bool) -> bool:
    if on_gpu and engine == "onnxruntime":
        return _has_distribution("onnxruntime-gpu")
    return find_spec(_PACKAGES[engine]) is not None


def _has_distribution(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _mend(engine: str, *, on_gpu: bool) -> str:
    if on_gpu and engine == "onnxruntime":
        return "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    return f"pip install 'trivec[{_EXTRAS[engine]}]'"
