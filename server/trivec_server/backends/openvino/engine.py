"""
The OpenVINO engine, on the CPU: in bfloat16 where the CPU multiplies that by instructions of its own.

It runs the model of `graph.py` over tokens without padding, from the files that `trivec export` writes, or
built in memory from the version's weights.
"""

import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import openvino
from numpy.typing import NDArray

from trivec_server.backends.graph.spec import NORM_EPS, EncoderSpec
from trivec_server.backends.hardware import cpu_has_bfloat16, threads_per_instance
from trivec_server.backends.host_memory import give_memory_back
from trivec_server.backends.interface import Engine, EngineInfo, EngineOutput, EngineRequest, TokenBatch
from trivec_server.backends.openvino.files import BIN_FILE, XML_FILE, OpenedFiles, read_files
from trivec_server.backends.openvino.graph import WeightType, keep_halves, write_openvino
from trivec_server.backends.openvino.packing import pack
from trivec_server.backends.openvino.probe import bfloat16_is_right
from trivec_server.backends.openvino.tables import Tables
from trivec_server.backends.weights.stored_model import open_stored_model
from trivec_server.errors import LoadError
from trivec_server.types import InstanceKind, Mode

_TOKEN_BUDGET = 640
"""Where matrix products are fastest (`packing.padded_size`); larger batches only wait longer."""
_TRIM_TOKENS = 512
"""Batches from this size on take so long that 2 ms for giving memory back do not count."""
_LARGE_TOKENS = 2048
_FIRST_RUN_TOKENS = 16
_QUANTIZATION_GROUP = 32
_WRONG_BFLOAT16 = "this release of OpenVINO computes bfloat16 wrongly on this CPU"
_IN_MEMORY_NOTE = "openvino: built from the weights in memory; `trivec export` makes it load faster and hold less"


def build_openvino(request: EngineRequest) -> Engine:
    """
    Opens the version's export for OpenVINO, or else builds the same model of the version's weights.

    Raises:
        LoadError: a GPU was asked for, or a precision that this engine, CPU or version lacks, or a file is missing,
            damaged or of another exporter.
    """
    if request.kind is InstanceKind.GPU:
        raise LoadError("instance_group asks for KIND_GPU; the openvino engine runs on the CPU: set KIND_CPU")
    if request.device_index is not None:
        raise LoadError("instance_group names `gpus`; the openvino engine runs on the CPU: remove them")
    return OpenVinoEngine(_share(request), request.token_budget or _TOKEN_BUDGET)


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class _Compiled:
    """A model in OpenVINO's hands. One for all instances of a version in this process: they share its weights."""

    model: openvino.CompiledModel
    files: OpenedFiles
    precision: str
    notes: tuple[str, ...]


_shared: "weakref.WeakValueDictionary[tuple[object, ...], _Compiled]" = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def _share(request: EngineRequest) -> _Compiled:
    """The model that another instance of the same version has compiled, or else a new one."""
    threads = threads_per_instance(request.intra_op_threads, request.instances)
    stamps = [path.stat().st_mtime_ns for path in sorted(request.version_dir.glob("*")) if path.is_file()]
    key = (request.version_dir, request.precision, threads, request.instances, *stamps)
    with _sharing:
        compiled = _shared.get(key)
        if compiled is None:
            compiled = _compile(request, threads)
            _shared[key] = compiled
        return compiled


def _compile(request: EngineRequest, threads: int) -> _Compiled:
    core = openvino.Core()
    if (request.version_dir / XML_FILE).is_file():
        files = read_files(request.version_dir, core)
        precision, notes = _exported_precision(request.precision, files)
    else:
        if (request.version_dir / BIN_FILE).is_file():
            raise LoadError(f"{XML_FILE} is missing beside {BIN_FILE}; run `trivec export` again")
        precision, notes = _own_precision(request.precision)
        files = _in_memory(request.version_dir, precision)
        notes = (*notes, _IN_MEMORY_NOTE)
    keep_halves(files.model)
    config = {
        "INFERENCE_PRECISION_HINT": _hint(precision),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": str(request.instances),
        "INFERENCE_NUM_THREADS": str(threads * request.instances),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_QUANTIZATION_GROUP),
        # Pinned threads would fight with those of other instances and processes for the same cores.
        "ENABLE_CPU_PINNING": "NO",
    }
    try:
        model = core.compile_model(files.model, "CPU", config)
    except RuntimeError as error:
        raise LoadError(
            f"the model cannot be compiled by OpenVINO ({_first_line(error)}); run `trivec export` again, or serve the "
            "version that `trivec pull` made with another backend"
        ) from error
    return _Compiled(model=model, files=files, precision=precision, notes=notes)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _hint(precision: str) -> str:
    """
    OpenVINO's name of the arithmetic. Weights in int8 are widened to bfloat16 where the CPU multiplies that; elsewhere
    the other side of the product is rounded to int8 at run time, in groups that share a scale.
    """
    if precision == "float32" or (precision == "int8" and not (cpu_has_bfloat16() and bfloat16_is_right())):
        return "f32"
    return "bf16"


_Choice: TypeAlias = tuple[str, tuple[str, ...]]
"""A precision, and what to say of it."""


def _exported_precision(asked: str | None, files: OpenedFiles) -> _Choice:
    """What to compute an exported model in."""
    if files.weights != "int8":
        return _own_precision(files.precision if asked is None and files.precision == "float32" else asked)
    if asked not in {None, "int8"}:
        raise LoadError(f"precision {asked} is not possible with this version: its weights are int8")
    return "int8", ()


def _own_precision(asked: str | None) -> _Choice:
    """What to compute in where the weights do not say it."""
    if asked == "int8":
        raise LoadError("precision int8 needs a version with int8 weights: run `trivec export` with --precision int8")
    if asked not in {None, "float32", "bfloat16"}:
        raise LoadError(f"the openvino engine cannot compute in {asked}: use float32, bfloat16 or int8")
    if asked == "float32" or (asked is None and not cpu_has_bfloat16()):
        return "float32", ()
    if not cpu_has_bfloat16():
        raise LoadError("precision bfloat16 needs a CPU with AVX512-BF16, AMX or Arm's BF16: use float32")
    if bfloat16_is_right():
        return "bfloat16", ()
    if asked == "bfloat16":
        raise LoadError(f"{_WRONG_BFLOAT16}: use float32")
    return "float32", (f"openvino: {_WRONG_BFLOAT16}, so it computes in float32",)


def _in_memory(version_dir: Path, precision: str) -> OpenedFiles:
    """The model, made of the version's weights. Where the arithmetic is not exact, halves of them are enough."""
    stored = open_stored_model(version_dir)
    weights: WeightType = "float32" if precision == "float32" else "float16"
    return OpenedFiles(
        model=write_openvino(stored, weights, lambda array: array),
        encoder=stored.encoder,
        heads=stored.heads,
        weights=weights,
        precision=precision,
        tables=Tables.of(stored.encoder, stored.heads, stored.tensors),
    )


class OpenVinoEngine:
    """One stream of a compiled model."""

    def __init__(self, compiled: _Compiled, token_budget: int) -> None:
        self._compiled = compiled
        self._files = compiled.files
        self._request = compiled.model.create_infer_request()
        spec, heads = self._files.encoder, self._files.heads
        self._info = EngineInfo(
            engine="openvino",
            device="cpu",
            precision=compiled.precision,
            modes=Mode.HYBRID,
            dense_dimension=spec.hidden,
            multi_vector_dimension=heads.multi_vector_dimension,
            vocabulary_size=spec.vocabulary_size,
            pooling=spec.pooling,
            pads=False,
            token_budget=token_budget,
            notes=compiled.notes,
        )
        # The first run brings the weights into the order in which they are multiplied; after it the file's pages,
        # which hold them as they were, can go.
        ids = np.zeros(min(_FIRST_RUN_TOKENS, spec.max_tokens), np.int64)
        self.run(TokenBatch(ids, np.array([len(ids)])), Mode.HYBRID)
        self._files.release()

    @property
    def info(self) -> EngineInfo:
        """What this engine is; constant."""
        return self._info

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        """
        One forward pass. Vectors are float32 whatever `half` says: they are here already.

        Raises:
            MemoryError: an allocation failed.
        """
        spec, tables = self._files.encoder, self._files.tables
        packed = pack(batch, spec)
        words = np.zeros((packed.size, spec.hidden), np.float32)
        tables.word_rows(batch.token_ids, words[: len(batch.token_ids)])
        inputs = {
            **packed.inputs(),
            "words": words,
            "vector_tokens": np.arange(packed.size if Mode.MULTI_VECTOR in modes else 0, dtype=np.int32),
        }
        try:
            outputs = self._request.infer(inputs, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            if "bad_alloc" in str(error) or "allocate" in str(error):
                raise MemoryError("OpenVINO could not allocate memory") from error
            raise
        output = self._collect(batch, modes, {port.any_name: array for port, array in outputs.items()})
        if packed.size > _LARGE_TOKENS:
            # OpenVINO would keep its largest buffers, and a request its largest outputs.
            self._request = self._compiled.model.create_infer_request()
            self._compiled.model.release_memory()
        if packed.size >= _TRIM_TOKENS:
            give_memory_back()
        return output

    def close(self) -> None:
        """Releases the stream, and the model if no other instance uses it."""
        del self._request, self._compiled

    def _collect(self, batch: TokenBatch, modes: Mode, arrays: dict[str, NDArray[np.float32]]) -> EngineOutput:
        """Copies what was asked for out of OpenVINO's memory, which the next run writes to."""
        dense = token_weights = vectors = None
        if Mode.DENSE in modes:
            dense = _pooled(arrays["hidden"], batch.lengths, self._files.encoder)
        if Mode.SPARSE in modes:
            fixed = self._files.tables.token_weights(batch.token_ids)
            token_weights = arrays["token_weights"][: len(batch.token_ids)].copy() if fixed is None else fixed
        if Mode.MULTI_VECTOR in modes:
            ends = np.cumsum(batch.lengths)
            starts = ends - batch.lengths + 1
            rows = zip(starts.tolist(), ends.tolist(), strict=True)
            vectors = [_normalized(arrays["multi_vector"][start:end]) for start, end in rows]
        return EngineOutput(dense=dense, token_weights=token_weights, multi_vector=vectors)


def _pooled(hidden: NDArray[np.float32], lengths: NDArray[np.int64], spec: EncoderSpec) -> NDArray[np.float32]:
    """The dense vectors [B, H] of hidden states [N, H]."""
    starts = np.cumsum(lengths) - lengths
    if spec.pooling == "cls":
        return _normalized(hidden[starts])
    means: NDArray[np.float32] = np.add.reduceat(hidden[: lengths.sum()], starts, axis=0)
    means /= lengths[:, None]
    return _normalized(means)


def _normalized(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy of rows with a length of one."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    unit: NDArray[np.float32] = rows / np.maximum(norms, np.float32(NORM_EPS))[:, None]
    return unit
