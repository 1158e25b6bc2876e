"""
Any ONNX file on ONNX Runtime: the CPU and CUDA.

BYTES are ONNX's strings, which are UTF-8. NumPy has no BF16: its arrays are uint16, and pass through OrtValues.
"""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from trivec_server.backends.hardware import nvidia_gpu_count, threads_per_instance
from trivec_server.backends.host_memory import give_memory_back
from trivec_server.backends.interface import EngineLost
from trivec_server.backends.onnxruntime.options import Options
from trivec_server.backends.onnxruntime.providers import (
    CPU,
    CUDA,
    Machine,
    Placement,
    place_tensors,
    place_tensors_on_cpu,
)
from trivec_server.backends.onnxruntime.session import open_session, understood
from trivec_server.backends.tensor_interface import TensorEngine, TensorEngineInfo, TensorEngineRequest
from trivec_server.errors import ComputeError, InvalidTensor, LoadError
from trivec_server.types import InstanceKind, TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""KServe's name of each type of ONNX Runtime that has one."""
_MEND = "put a whole ONNX file there, with the files that hold its weights"


def build_onnxruntime_tensors(request: TensorEngineRequest) -> TensorEngine:
    """
    Opens an ONNX file.

    Raises:
        LoadError: the device asked for is not there, or the file is missing, damaged, or takes what is no tensor.
    """
    if not request.model_file.is_file():
        raise LoadError(f"{request.model_file}: not found; {_MEND}")
    machine = Machine(available=tuple(onnxruntime.get_available_providers()), gpus=nvidia_gpu_count())
    placement = place_tensors(request, machine)
    try:
        return _build(request, placement)
    except LoadError as error:
        if placement.device == "cpu" or request.kind is not InstanceKind.AUTO:
            raise
        return _build(request, place_tensors_on_cpu(request, machine, str(error)))


def _build(request: TensorEngineRequest, placement: Placement) -> TensorEngine:
    threads = threads_per_instance(request.intra_op_threads, request.instances)
    session = open_session(request.model_file, placement, _providers(placement), threads, _MEND)
    return OnnxRuntimeTensorEngine(session, _describe(session, request.model_file, placement))


def _providers(placement: Placement) -> tuple[tuple[str, Options], ...]:
    if placement.device == "cpu":
        return ((CPU, {}),)
    options = {"device_id": str(placement.device_index), "arena_extend_strategy": "kSameAsRequested"}
    return ((CUDA, options), (CPU, {}))


def _describe(session: onnxruntime.InferenceSession, path: Path, placement: Placement) -> TensorEngineInfo:
    """
    Raises:
        LoadError: an input is no tensor of a known type, or no output is one.
    """
    needed, defaulted, given = session.get_inputs(), session.get_overridable_initializers(), session.get_outputs()
    for argument in needed:
        if argument.type not in _DATATYPES:
            raise LoadError(f"{path.name}: input '{argument.name}' is a {argument.type}, which no request can bring")
    types = {_DATATYPES.get(argument.type) for argument in (*needed, *given)}
    if "BF16" in types and "tensor(string)" in {argument.type for argument in needed}:
        raise LoadError(
            f"{path.name}: ONNX Runtime takes no strings from Python beside BF16; change BF16 to FP32 in it"
        )
    served = [argument for argument in given if argument.type in _DATATYPES]
    if not served:
        raise LoadError(f"{path.name} has no output that is a tensor of a type that can be served")
    left_out = [f"{argument.name} ({argument.type})" for argument in given if argument not in served]
    notes = (f"outputs that are no tensors are left out: {', '.join(left_out)}",) if left_out else ()
    settable = [argument for argument in defaulted if argument.type in _DATATYPES]
    return TensorEngineInfo(
        engine="onnxruntime",
        device=placement.name,
        inputs=(*map(_spec, needed), *(_spec(argument, optional=True) for argument in settable)),
        outputs=tuple(map(_spec, served)),
        symbols={
            argument.name: tuple(size if isinstance(size, str) else "" for size in argument.shape)
            for argument in (*needed, *settable, *served)
        },
        unranked=_unranked(path, {argument.name for argument in (*needed, *served) if not argument.shape}),
        notes=(*placement.notes, *notes),
    )


def _spec(argument: onnxruntime.NodeArg, *, optional: bool = False) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in argument.shape)
    return TensorSpec(name=argument.name, datatype=_DATATYPES[argument.type], shape=shape, optional=optional)


def _unranked(path: Path, shapeless: set[str]) -> frozenset[str]:
    """Which of these have any shape: ONNX Runtime shows them as it shows scalars."""
    if not shapeless:
        return frozenset()
    graph = onnx.load(path, load_external_data=False).graph
    ranked = {value.name for value in (*graph.input, *graph.output) if value.type.tensor_type.HasField("shape")}
    return frozenset(shapeless - ranked)


class OnnxRuntimeTensorEngine:
    """One session on a device."""

    def __init__(self, session: onnxruntime.InferenceSession, info: TensorEngineInfo) -> None:
        self._session = session
        self._info = info
        self._input_types = {spec.name: spec.datatype for spec in info.inputs}
        self._output_types = {spec.name: spec.datatype for spec in info.outputs}
        self._has_bfloat16 = "BF16" in {*self._input_types.values(), *self._output_types.values()}
        self._options = onnxruntime.RunOptions()
        self._shrinking = onnxruntime.RunOptions()
        arena = info.device.replace("cuda", "gpu") if info.device != "cpu" else "cpu:0"
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
        self._shrink = info.device == "cpu"

    @property
    def info(self) -> TensorEngineInfo:
        """What this engine is; constant."""
        return self._info

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """As `TensorEngine.run`."""
        feeds = {name: self._taken(name, array) for name, array in inputs.items()}
        # On the CPU the arena gives back what it does not need with each run, which costs a microsecond; on a GPU,
        # where it costs more, only once memory has run out.
        options = self._shrinking if self._shrink else self._options
        self._shrink = self._info.device == "cpu"
        try:
            if self._has_bfloat16:
                return self._run_bound(feeds, outputs, options)
            arrays = self._session.run(list(outputs), feeds, options)
        except Exception as error:
            meaning = understood(error)
            self._shrink |= isinstance(meaning, MemoryError)
            if isinstance(meaning, MemoryError | EngineLost):
                raise meaning from error
            raise ComputeError(f"the model failed on these tensors: {' '.join(str(error).split())}") from error
        return {name: self._given(name, array) for name, array in zip(outputs, arrays, strict=True)}

    def close(self) -> None:
        """Releases the session, and what it held of the system's memory."""
        del self._session
        give_memory_back()

    def _run_bound(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str], options: onnxruntime.RunOptions
    ) -> Mapping[str, NDArray[Any]]:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            if self._input_types[name] == "BF16":
                bits = np.ascontiguousarray(array)
                kind = onnx.TensorProto.BFLOAT16
                value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)
            else:
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, options)
        return {
            name: _bits(value) if self._output_types[name] == "BF16" else self._given(name, value.numpy())
            for name, value in zip(outputs, binding.get_outputs(), strict=True)
        }

    def _taken(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if self._input_types[name] != "BYTES":
            return array
        return _object_array(_decoded(name, array.ravel().tolist()), array.shape)

    def _given(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if self._output_types[name] != "BYTES":
            return array
        return _object_array((text.encode() for text in array.ravel().tolist()), array.shape)


def _decoded(name: str, elements: Iterable[bytes]) -> Iterable[str]:
    for position, element in enumerate(elements):
        try:
            yield element.decode()
        except UnicodeDecodeError as error:
            raise InvalidTensor(
                f"element {position} of input '{name}' is not UTF-8 (byte 0x{element[error.start]:02x} at "
                f"{error.start}): this model takes text"
            ) from None


def _object_array(elements: Iterable[object], shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.empty(shape, np.object_)
    array.ravel()[:] = list(elements)
    return array


def _bits(value: onnxruntime.OrtValue) -> NDArray[np.uint16]:
    """A BF16 tensor in the memory of the host, which ONNX Runtime gives no other way."""
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    if not count:
        return np.zeros(shape, np.uint16)
    return np.frombuffer(ctypes.string_at(value.data_ptr(), 2 * count), np.uint16).reshape(shape)
