"""
The ONNX Runtime engine, on the CPU.

It runs the three-output graph that `graph.py` writes: `input_ids` and `attention_mask` int64 [B, T] and a flag per
head in; `dense` [B, D], `token_weights` [B, T] and `multi_vector` [B, T - 1, D] out, all float32.
"""

import ctypes
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from trivec_server.backends.graph_spec import flag_of
from trivec_server.backends.hardware import threads_per_instance
from trivec_server.backends.interface import Engine, EngineInfo, EngineOutput, EngineRequest, TokenBatch
from trivec_server.errors import LoadError
from trivec_server.types import PAD_TOKEN_ID, InstanceKind, Mode

_CPU_TOKEN_BUDGET = 1024
_TRIM_TOKENS = 256
"""Batches from this size on take so long that 2 ms for giving memory back do not count."""
_LIBC = ctypes.CDLL(None)
_OUTPUT_NAMES = {Mode.DENSE: "dense", Mode.SPARSE: "token_weights", Mode.MULTI_VECTOR: "multi_vector"}
_REQUIRED_METADATA = (
    "trivec.pooling",
    "trivec.precision",
    "trivec.vocabulary_size",
    "trivec.dense_dimension",
    "trivec.multi_vector_dimension",
)


def build_onnxruntime(request: EngineRequest) -> Engine:
    """
    Opens `model.onnx` of a version directory.

    Raises:
        LoadError: a GPU was asked for, or the graph is missing, damaged, or not one that Trivec wrote.
    """
    if request.kind is InstanceKind.GPU:
        raise LoadError("instance_group asks for KIND_GPU; the onnxruntime engine runs on the CPU: set KIND_CPU")
    if request.device_index is not None:
        raise LoadError("instance_group names `gpus`; the onnxruntime engine runs on the CPU: remove them")
    threads = threads_per_instance(request.intra_op_threads, request.instances)
    return OnnxRuntimeEngine(request.version_dir / "model.onnx", threads)


class OnnxRuntimeEngine:
    """A session on the CPU."""

    def __init__(self, path: Path, intra_op_threads: int) -> None:
        if not path.is_file():
            raise LoadError(f"{path.name} is missing in {path.parent}; pull the model again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        # The heads' flags are inputs with defaults, of which ONNX Runtime would warn.
        options.log_severity_level = 3
        # Lengths vary too much for memory patterns to pay.
        options.enable_mem_pattern = False
        # Idle threads must leave their cores to the tokenizer and the event loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise LoadError(f"{path.name} cannot be loaded by ONNX Runtime ({reason}); pull the model again") from error
        self._info = _read_info(self._session, path)
        self._run_options = onnxruntime.RunOptions()
        # Without this the arena would keep what the largest batch ever took; without an arena every run would ask the
        # system for its memory piece by piece, which takes longer than the arithmetic of a long text.
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    @property
    def info(self) -> EngineInfo:
        """What this engine is; constant."""
        return self._info

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        """
        One forward pass over the padded batch. Vectors are float32 whatever `half` says: they are here already.

        Raises:
            MemoryError: an allocation failed.
        """
        input_ids, attention_mask = _pad(batch)
        wanted = [mode for mode in _OUTPUT_NAMES if mode in modes]
        # Not fetching an output does not keep ONNX Runtime from computing it; its flag does.
        flags = {flag_of(name): np.asarray(mode in modes) for mode, name in _OUTPUT_NAMES.items()}
        try:
            arrays = self._session.run(
                [_OUTPUT_NAMES[mode] for mode in wanted],
                {"input_ids": input_ids, "attention_mask": attention_mask, **flags},
                self._run_options,
            )
        except Exception as error:
            if "allocate memory" in str(error) or "bad_alloc" in str(error):
                raise MemoryError("ONNX Runtime could not allocate memory") from error
            raise
        if input_ids.size >= _TRIM_TOKENS:
            _give_memory_back()
        outputs: dict[Mode, NDArray[np.float32]] = dict(zip(wanted, arrays, strict=True))
        weights = outputs.get(Mode.SPARSE)
        vectors = outputs.get(Mode.MULTI_VECTOR)
        return EngineOutput(
            dense=outputs.get(Mode.DENSE),
            token_weights=None if weights is None else weights[attention_mask.astype(np.bool_)],
            multi_vector=None if vectors is None else _unpadded(vectors, batch.lengths.tolist()),
        )

    def close(self) -> None:
        """Releases the session."""
        del self._session


def _give_memory_back() -> None:
    """Lets glibc return freed memory to the system, which it otherwise keeps; other C libraries have no such call."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)


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


def _read_info(session: onnxruntime.InferenceSession, path: Path) -> EngineInfo:
    metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    missing = [key for key in _REQUIRED_METADATA if key not in metadata]
    outputs = {output.name for output in session.get_outputs()}
    modes = Mode(0)
    for mode, name in _OUTPUT_NAMES.items():
        if name in outputs:
            modes |= mode
    if missing or modes != Mode.HYBRID:
        wanted = ", ".join(_OUTPUT_NAMES.values())
        raise LoadError(
            f"{path.name} is not a graph written by `trivec pull`: it must have the outputs {wanted} (found "
            f"{', '.join(sorted(outputs))}) and Trivec's metadata; pull the model again"
        )
    return EngineInfo(
        engine="onnxruntime",
        device="cpu",
        precision="float32",
        modes=modes,
        dense_dimension=int(metadata["trivec.dense_dimension"]),
        multi_vector_dimension=int(metadata["trivec.multi_vector_dimension"]),
        vocabulary_size=int(metadata["trivec.vocabulary_size"]),
        pooling=metadata["trivec.pooling"],
        pads=True,
        token_budget=_CPU_TOKEN_BUDGET,
    )
