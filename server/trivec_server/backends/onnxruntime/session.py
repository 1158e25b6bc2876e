"""Sessions of ONNX Runtime: opened on the provider that was chosen or not at all, run, and their errors understood."""

import contextlib
import io
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trivec_server.backends.interface import EngineLost
from trivec_server.backends.onnxruntime.options import Options
from trivec_server.backends.onnxruntime.providers import NEEDS_GPU_PACKAGE, Placement
from trivec_server.errors import LoadError

Feeds: TypeAlias = Mapping[str, NDArray[np.int64 | np.bool_]]
Outputs: TypeAlias = list[NDArray[np.float32]]


def open_session(
    path: Path,
    placement: Placement,
    providers: Sequence[tuple[str, Options]],
    intra_op_threads: int,
    mend: str = "pull the model again",
) -> onnxruntime.InferenceSession:
    """
    Opens a graph. `mend`: what helps against a damaged one.

    Raises:
        LoadError: it is damaged, does not fit into memory, or ONNX Runtime would run it elsewhere than `placement`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    # The heads' flags are inputs with defaults, of which ONNX Runtime would warn.
    options.log_severity_level = 3
    # Lengths vary too much for memory patterns to pay.
    options.enable_mem_pattern = False
    # Idle threads must leave their cores to the tokenizer and the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen = [(name, dict(values)) for name, values in providers]
    missing = _load_cuda_libraries() if placement.device == "cuda" else ""
    try:
        # Without enable_fallback=0 a provider that fails is replaced by another, here and in any later run.
        session = onnxruntime.InferenceSession(str(path), options, providers=chosen, enable_fallback=0)
    except Exception as error:
        raise LoadError(_reason(error, path, placement, mend) + missing) from error
    if session.get_providers()[0] != placement.provider:
        raise LoadError(
            f"ONNX Runtime could not start {placement.provider} and offers {session.get_providers()[0]} instead: the "
            "driver, CUDA or cuDNN libraries are missing or do not fit onnxruntime-gpu; pip install "
            f"'onnxruntime-gpu[cuda,cudnn]' brings the libraries{missing}"
        )
    return session


_loading_libraries = threading.Lock()


def _load_cuda_libraries() -> str:
    """
    Finds the CUDA libraries that are installed as Python packages, which the dynamic loader would not. Returns what is
    missing, to end an error's message with: it may be none that is needed.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:
        return ""
    with _loading_libraries, contextlib.redirect_stdout(_OwnLines(sys.stdout)) as printed:
        preload()
    failed = [line for line in printed.getvalue().splitlines() if line.startswith("Failed to load")]
    return f" ({'; '.join(failed)})" if failed else ""


class _OwnLines(io.StringIO):
    """Standard output while ONNX Runtime loads libraries: keeps what this thread prints; others' lines pass."""

    def __init__(self, stdout: TextIO) -> None:
        super().__init__()
        self._stdout = stdout
        self._thread = threading.get_ident()

    def write(self, text: str, /) -> int:
        """As TextIO.write."""
        return super().write(text) if threading.get_ident() == self._thread else self._stdout.write(text)


def _reason(error: Exception, path: Path, placement: Placement, mend: str) -> str:
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    if _is_out_of_memory(str(error)):
        where = "this machine's memory" if placement.device == "cpu" else f"the memory of GPU {placement.device_index}"
        return f"{path.name} does not fit into {where} ({first_line})"
    if placement.device == "cuda" and any(sign in str(error) for sign in _DEVICE_SIGNS):
        return f"GPU {placement.device_index} cannot be used ({first_line}); check the driver and {NEEDS_GPU_PACKAGE}"
    if placement.tensorrt and "TensorRT" in str(error):
        return f"TensorRT cannot be used ({first_line}); pip install tensorrt, of the CUDA version of onnxruntime-gpu"
    return f"{path.name} cannot be loaded by ONNX Runtime ({first_line}); {mend}"


_MEMORY_SIGNS = (
    "allocate memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "smaller than requested bytes",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_DEVICE_SIGNS = ("CUDA failure", "CUBLAS failure", "CUDNN failure", "CUDA error", "CUDNN_FE failure")


def _is_out_of_memory(message: str) -> bool:
    return any(sign in message for sign in _MEMORY_SIGNS)


def understood(error: Exception) -> Exception:
    """
    What an error of a run means to the caller: MemoryError, EngineLost, or itself.

    Any failure of CUDA but a failed allocation leaves the process without a usable context.
    """
    message = str(error)
    if _is_out_of_memory(message):
        return MemoryError("ONNX Runtime could not allocate memory")
    if any(sign in message for sign in _DEVICE_SIGNS):
        return EngineLost(f"the GPU failed: {message.splitlines()[0]}")
    return error


class Runner(Protocol):
    """Runs a session. Raises what ONNX Runtime raises."""

    def run(self, outputs: Sequence[str], feeds: Feeds) -> Outputs:
        """The outputs by name, in the memory of the host."""

    def release_memory(self) -> None:
        """Gives back what the last runs took and the next may not need."""


class HostRunner:
    """Runs a session on the CPU."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._options = onnxruntime.RunOptions()
        # Without this the arena would keep what the largest batch ever took; without an arena every run would ask the
        # system for its memory piece by piece, which takes longer than the arithmetic of a long text.
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, outputs: Sequence[str], feeds: Feeds) -> Outputs:
        """As `Runner.run`."""
        arrays: Outputs = self._session.run(outputs, feeds, self._options)
        return arrays

    def release_memory(self) -> None:
        """Nothing: each run does."""


class DeviceRunner:
    """
    Runs a session with its inputs and outputs bound to a device's memory, so that each is copied once, and outputs not
    asked for are not copied at all. `device` is ONNX Runtime's name of its kind, such as `cuda`.
    """

    def __init__(self, session: onnxruntime.InferenceSession, device: str, device_index: int) -> None:
        self._session = session
        self._device = device
        self._index = device_index

    def run(self, outputs: Sequence[str], feeds: Feeds) -> Outputs:
        """As `Runner.run`."""
        binding = self._bind(outputs, feeds)
        self._session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]

    def release_memory(self) -> None:
        """Runs two tokens, with the arena told to give back afterwards what is free in it."""
        arena = "gpu" if self._device == "cuda" else self._device
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", f"{arena}:{self._index}")
        pair = np.array([[0, 2]], np.int64)
        feeds = {"input_ids": pair, "attention_mask": np.ones_like(pair)}
        binding = self._bind(["dense"], feeds)
        self._session.run_with_iobinding(binding, options)

    def _bind(self, outputs: Sequence[str], feeds: Feeds) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            # A flag stays on the host, where it is decided which branch of an `If` runs. What is bound there is not
            # copied: `feeds` must live as long as the binding.
            device, index = (self._device, self._index) if array.ndim else ("cpu", 0)
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, index))
        for name in outputs:
            binding.bind_output(name, self._device, self._index)
        return binding


class RunnersByLength:
    """Runs each batch in the session for its length. `runners`: with the most tokens that each takes, ascending."""

    def __init__(self, runners: Sequence[tuple[int, Runner]]) -> None:
        self._runners = runners

    def run(self, outputs: Sequence[str], feeds: Feeds) -> Outputs:
        """As `Runner.run`."""
        length = feeds["input_ids"].shape[1]
        runner = next(runner for tokens, runner in self._runners if length <= tokens)
        return runner.run(outputs, feeds)

    def release_memory(self) -> None:
        """As `Runner.release_memory`."""
        for _, runner in self._runners:
            runner.release_memory()


def int8_products_are_exact() -> bool:
    """
    Whether this CPU adds up products of uint8 and int8 exactly. Those with VNNI, AMX or Arm's dot product do; older x86
    ones add pairs in 16 bits, which overflow where large numbers meet.
    """
    depth = 64
    rows = helper.make_tensor_value_info("rows", TensorProto.UINT8, [16, depth])
    product = helper.make_tensor_value_info("product", TensorProto.INT32, [16, 32])
    weight = numpy_helper.from_array(np.full((depth, 32), 127, np.int8), "weight")
    node = helper.make_node("MatMulInteger", ["rows", "weight"], ["product"])
    graph = helper.make_graph([node], "largest_products", [rows], [product], [weight])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"rows": np.full((16, depth), 255, np.uint8)})
    return bool((found == 255 * 127 * depth).all())
