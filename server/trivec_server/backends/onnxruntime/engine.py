"""
The ONNX Runtime engine: CPU in float32 and int8, CUDA in float32 and float16, TensorRT.

It runs the three-output graph that `backends/graph` writes: `input_ids` and `attention_mask` int64 [B, T] and a flag
per head in; `dense` [B, D], `token_weights` [B, T] and `multi_vector` [B, T - 1, D] out, all float32.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from trivec_server.backends.graph.spec import MODEL_FILE, flag_of
from trivec_server.backends.hardware import nvidia_gpu_count, threads_per_instance
from trivec_server.backends.host_memory import give_memory_back
from trivec_server.backends.interface import Engine, EngineInfo, EngineOutput, EngineRequest, TokenBatch
from trivec_server.backends.onnxruntime.export import TENSORRT_MODEL_FILE
from trivec_server.backends.onnxruntime.graph_facts import OUTPUT_NAMES, GraphDescription, read_description
from trivec_server.backends.onnxruntime.options import (
    BatchLimits,
    Options,
    RunShape,
    batch_limits,
    provider_options,
    tensorrt_cache_dir,
    tensorrt_options,
)
from trivec_server.backends.onnxruntime.providers import (
    Machine,
    Placement,
    check_machine,
    check_precision,
    place,
    place_on_cpu,
)
from trivec_server.backends.onnxruntime.session import (
    DeviceRunner,
    Feeds,
    HostRunner,
    Runner,
    RunnersByLength,
    int8_products_are_exact,
    open_session,
    understood,
)
from trivec_server.errors import LoadError
from trivec_server.types import PAD_TOKEN_ID, InstanceKind, Mode

_TRIM_TOKENS = 256
"""Batches from this size on take so long that 2 ms for giving memory back do not count."""
_OVERFLOWS = (
    "this CPU adds int8 products in 16 bits, which can overflow: results may be further from float32 than the parity "
    "report says; a CPU with VNNI, or a float32 version, does not have this"
)


def build_onnxruntime(request: EngineRequest) -> Engine:
    """
    Opens `model.onnx` of a version directory, or `model.tensorrt.onnx` for TensorRT.

    Raises:
        LoadError: the device, provider or precision asked for is not there, or the graph is missing, damaged, or not
            one that Trivec wrote.
    """
    machine = Machine(available=tuple(onnxruntime.get_available_providers()), gpus=nvidia_gpu_count())
    check_machine(request, machine)
    description = read_description(request.version_dir / MODEL_FILE)
    check_precision(request.precision, description.facts)
    placement = place(request, description.facts, machine)
    try:
        return _build(request, description, placement)
    except LoadError as error:
        if placement.device == "cpu" or request.kind is not InstanceKind.AUTO or request.accelerator is not None:
            raise
        return _build(request, description, place_on_cpu(request, description.facts, machine, str(error)))


def _build(request: EngineRequest, description: GraphDescription, placement: Placement) -> Engine:
    limits = batch_limits(request, description.facts, placement)
    path = request.version_dir / (TENSORRT_MODEL_FILE if placement.tensorrt else MODEL_FILE)
    if not path.is_file():
        raise LoadError(f"{path.name} is missing in {path.parent}; export the version again")
    threads = threads_per_instance(request.intra_op_threads, request.instances)
    sessions = [
        open_session(path, placement, provider_options(request, description.facts, placement, tensorrt), threads)
        for tensorrt in _tensorrt(request, description, placement, limits.shapes)
    ]
    notes = placement.notes
    if description.facts.arithmetic == "int8" and not int8_products_are_exact():
        notes = (*notes, _OVERFLOWS)
    info = replace(description.info, device=placement.name, token_budget=limits.token_budget, notes=notes)
    flags = {each.name for each in sessions[0].get_overridable_initializers()}
    return OnnxRuntimeEngine(info, _runner(sessions, placement, limits.shapes), flags, limits)


def _tensorrt(
    request: EngineRequest, description: GraphDescription, placement: Placement, shapes: tuple[RunShape, ...]
) -> list[Options | None]:
    """TensorRT's options for each session; None for the one session of another provider."""
    if not shapes:
        return [None]
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    options: list[Options | None] = []
    for shape in shapes:
        path = tensorrt_cache_dir(user_cache, description.weights, request, shape, onnxruntime.__version__)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LoadError(
                f"{path}, for what TensorRT builds, cannot be made ({error}); set XDG_CACHE_HOME"
            ) from error
        options.append(tensorrt_options(request, description.facts, placement, shape, len(shapes), path))
    return options


def _runner(sessions: list[onnxruntime.InferenceSession], placement: Placement, shapes: tuple[RunShape, ...]) -> Runner:
    if placement.device == "cpu":
        return HostRunner(sessions[0])
    runners = [DeviceRunner(session, placement.device, placement.device_index) for session in sessions]
    if not shapes:
        return runners[0]
    return RunnersByLength([(shape.tokens, runner) for shape, runner in zip(shapes, runners, strict=True)])


class OnnxRuntimeEngine:
    """One session on a device, or several for texts of different lengths."""

    def __init__(self, info: EngineInfo, runner: Runner, flags: set[str], limits: BatchLimits) -> None:
        self._info = info
        self._runner = runner
        self._flags = flags
        self._limits = limits

    @property
    def info(self) -> EngineInfo:
        """What this engine is; constant."""
        return self._info

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        """
        One forward pass over the padded batch. Vectors are float32 whatever `half` says.

        Raises:
            MemoryError: an allocation failed.
            EngineLost: the GPU failed.
        """
        rows = self._limits.rows(int(batch.lengths.max()))
        parts = [self._run(part, modes) for part in _split(batch, rows)]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def close(self) -> None:
        """Releases the sessions."""
        del self._runner

    def _run(self, batch: TokenBatch, modes: Mode) -> EngineOutput:
        input_ids, attention_mask = _pad(batch)
        wanted = [mode for mode in OUTPUT_NAMES if mode in modes]
        # Not fetching an output does not keep ONNX Runtime from computing it; its flag does.
        flags = {flag_of(name): np.asarray(mode in modes) for mode, name in OUTPUT_NAMES.items()}
        feeds: Feeds = {name: value for name, value in flags.items() if name in self._flags}
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask, **feeds}
        try:
            arrays = self._runner.run([OUTPUT_NAMES[mode] for mode in wanted], feeds)
        except Exception as error:
            meaning = understood(error)
            if meaning is error:
                raise
            if isinstance(meaning, MemoryError):
                self._runner.release_memory()
            raise meaning from error
        if input_ids.size >= _TRIM_TOKENS and self._info.device == "cpu":
            give_memory_back()
        outputs: dict[Mode, NDArray[np.float32]] = dict(zip(wanted, arrays, strict=True))
        weights = outputs.get(Mode.SPARSE)
        vectors = outputs.get(Mode.MULTI_VECTOR)
        return EngineOutput(
            dense=outputs.get(Mode.DENSE),
            token_weights=None if weights is None else weights[attention_mask.astype(np.bool_)],
            multi_vector=None if vectors is None else _unpadded(vectors, batch.lengths.tolist()),
        )


def _split(batch: TokenBatch, rows: int | None) -> Iterator[TokenBatch]:
    """The batch in parts of at most `rows` texts."""
    count = len(batch.lengths)
    bounds = np.concatenate([[0], np.cumsum(batch.lengths)])
    for start in range(0, count, rows or count):
        end = min(count, start + (rows or count))
        yield TokenBatch(batch.token_ids[bounds[start] : bounds[end]], batch.lengths[start:end])


def _joined(parts: list[EngineOutput]) -> EngineOutput:
    dense = [part.dense for part in parts if part.dense is not None]
    weights = [part.token_weights for part in parts if part.token_weights is not None]
    vectors = [part.multi_vector for part in parts if part.multi_vector is not None]
    return EngineOutput(
        dense=np.concatenate(dense) if dense else None,
        token_weights=np.concatenate(weights) if weights else None,
        multi_vector=[each for part in vectors for each in part] if vectors else None,
    )


def _unpadded(vectors: NDArray[np.float32], lengths: list[int]) -> list[NDArray[np.float32]]:
    """Each text's rows of [B, T - 1, D]; copies where there are several, or each would keep the others in memory."""
    if len(lengths) == 1:
        return [vectors[0]]
    return [vectors[row, : length - 1].copy() for row, length in enumerate(lengths)]


def _pad(batch: TokenBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`input_ids` and `attention_mask`, int64 [B, T], padded on the right."""
    shape = (len(batch.lengths), int(batch.lengths.max()))
    mask = np.arange(shape[1]) < batch.lengths[:, None]  # [B, T]
    input_ids = np.full(shape, PAD_TOKEN_ID, np.int64)
    input_ids[mask] = batch.token_ids
    return input_ids, mask.astype(np.int64)
