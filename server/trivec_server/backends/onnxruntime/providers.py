"""Which of ONNX Runtime's execution providers a version runs on: decisions, nothing is opened."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from trivec_server.backends.graph.spec import Arithmetic
from trivec_server.backends.interface import EngineRequest
from trivec_server.backends.tensor_interface import TensorEngineRequest
from trivec_server.errors import LoadError
from trivec_server.types import InstanceKind

TENSORRT = "TensorrtExecutionProvider"
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

NEEDS_GPU_PACKAGE = "pip uninstall onnxruntime, then pip install onnxruntime-gpu"


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
    obstacle = _device_obstacle(request.device_index, machine)
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
        return _device_obstacle(request.device_index, machine) or int8
    return _device_obstacle(request.device_index, machine)


def _device_obstacle(device_index: int | None, machine: Machine) -> str | None:
    """Why nothing can run on this GPU here; None if it can."""
    if not machine.gpus:
        return "no NVIDIA GPU is visible to this process; set KIND_CPU or KIND_AUTO"
    if device_index is not None and device_index >= machine.gpus:
        seen = f"this process sees {machine.gpus}, counted from 0"
        return f"GPU {device_index} is not there: {seen}; correct `gpus` in instance_group"
    if CUDA not in machine.available:
        return f"the package onnxruntime that is installed has no CUDA provider: {NEEDS_GPU_PACKAGE}"
    return None


def _refuse_gpu_settings(request: EngineRequest, obstacle: str | None) -> None:
    because = f" ({obstacle})" if request.kind is InstanceKind.AUTO and obstacle else ""
    if request.accelerator is not None:
        raise LoadError(f"the accelerator `{request.accelerator}` needs a GPU{because}; remove it or set KIND_GPU")
    _refuse_gpu_index(request, obstacle)


def _refuse_gpu_index(request: EngineRequest | TensorEngineRequest, obstacle: str | None) -> None:
    because = f" ({obstacle})" if request.kind is InstanceKind.AUTO and obstacle else ""
    if request.device_index is not None:
        raise LoadError(f"instance_group names `gpus`, but would run on the CPU{because}: remove them or set KIND_GPU")


def place_tensors(request: TensorEngineRequest, machine: Machine) -> Placement:
    """
    Where a model that takes tensors runs: any graph may be tried on a GPU.

    Raises:
        LoadError: the device asked for is not here.
    """
    obstacle = _device_obstacle(request.device_index, machine)
    if request.kind is InstanceKind.CPU or (request.kind is InstanceKind.AUTO and obstacle is not None):
        return place_tensors_on_cpu(request, machine, obstacle)
    if obstacle is not None:
        raise LoadError(f"instance_group asks for KIND_GPU, but {obstacle}")
    return Placement(device="cuda", device_index=request.device_index or 0)


def place_tensors_on_cpu(request: TensorEngineRequest, machine: Machine, obstacle: str | None) -> Placement:
    """
    The CPU, because it is asked for, or because of an obstacle where `KIND_AUTO` leaves the choice.

    Raises:
        LoadError: a GPU is named.
    """
    _refuse_gpu_index(request, obstacle)
    return _cpu(request.kind, machine, obstacle)


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
    return _cpu(request.kind, machine, obstacle)


def _cpu(kind: InstanceKind, machine: Machine, obstacle: str | None) -> Placement:
    idle_gpu = kind is InstanceKind.AUTO and machine.gpus > 0
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
