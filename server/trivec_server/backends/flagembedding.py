"""
The reference engine: FlagEmbedding's `BGEM3FlagModel` itself, to compare with.

It gets token ids, so what is used of the model is its forward pass, called and read as `encode_single_device` of
FlagEmbedding 1.4.2 does. Only this module imports FlagEmbedding and transformers.
"""

import contextlib
import gc
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import transformers
from FlagEmbedding import BGEM3FlagModel
from numpy.typing import NDArray
from safetensors.numpy import save_file

from trivec_server.backends.graph.spec import EncoderSpec, HeadsSpec
from trivec_server.backends.hardware import threads_per_instance
from trivec_server.backends.interface import Engine, EngineInfo, EngineLost, EngineOutput, EngineRequest, TokenBatch
from trivec_server.backends.weights.stored_model import StoredModel, open_stored_model
from trivec_server.errors import LoadError
from trivec_server.types import CLS_TOKEN_ID, EOS_TOKEN_ID, PAD_TOKEN_ID, InstanceKind, Mode

Floats: TypeAlias = NDArray[np.float32]

_CPU_PRECISIONS = ("float32",)
_GPU_PRECISIONS = ("float16", "bfloat16", "float32")
"""The first is taken where none is asked for."""
_CPU_TOKEN_BUDGET = 1024
_GPU_TOKEN_BUDGET = 16384
_TOKENIZER_FILE = "tokenizer.json"
_HEADS = ("sparse_linear", "colbert_linear")
_POSITION_OFFSETS = {"bert": 0, "xlm-roberta": PAD_TOKEN_ID + 1}
_REFERENCE_NOTE = "the reference implementation: for comparison, not for speed"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the model runs: a device of torch, the precision of its weights, and what the user should know."""

    device: str
    precision: str
    notes: tuple[str, ...]

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"


def build_flagembedding(request: EngineRequest) -> Engine:
    """
    Loads the weights of a version into a `BGEM3FlagModel`.

    Raises:
        LoadError: the device is not there, the precision is not one that FlagEmbedding has on it, or the version's
            model is not one that FlagEmbedding can run.
    """
    if request.accelerator is not None:
        raise LoadError(f"the flagembedding engine has no accelerator `{request.accelerator}`: remove it")
    place = _choose_place(request)
    stored = open_stored_model(request.version_dir)
    _check_model(stored)
    torch.set_num_threads(threads_per_instance(request.intra_op_threads, request.instances))
    with _load_errors(place):
        if place.is_gpu and request.device_memory_mb is not None:
            total_bytes = torch.cuda.get_device_properties(place.device).total_memory
            share = min(1.0, request.device_memory_mb * 1e6 / total_bytes)
            torch.cuda.set_per_process_memory_fraction(share, place.device)
        return FlagEmbeddingEngine(stored, request.version_dir / _TOKENIZER_FILE, place, request.token_budget)


class FlagEmbeddingEngine:
    """A `BGEM3FlagModel` on one device."""

    def __init__(self, stored: StoredModel, tokenizer_path: Path, place: _Place, token_budget: int | None) -> None:
        encoder, heads = stored.encoder, stored.heads
        self._place = place
        self._info = EngineInfo(
            engine="flagembedding",
            device=place.device,
            precision=place.precision,
            modes=Mode.HYBRID,
            dense_dimension=encoder.hidden,
            multi_vector_dimension=heads.multi_vector_dimension,
            vocabulary_size=encoder.vocabulary_size,
            pooling=encoder.pooling,
            pads=True,
            token_budget=token_budget or (_GPU_TOKEN_BUDGET if place.is_gpu else _CPU_TOKEN_BUDGET),
            notes=(*place.notes, _REFERENCE_NOTE),
        )
        try:
            # What torch has mapped stays readable when the directory is gone.
            with tempfile.TemporaryDirectory(prefix="trivec-flagembedding-") as directory:
                _write_checkpoint(Path(directory), stored, tokenizer_path)
                self._model = _load(Path(directory), encoder, heads, place)
        except OSError as error:
            raise LoadError(
                f"FlagEmbedding reads weights from files of its own, and those cannot be written ({error}): make room "
                f"in {tempfile.gettempdir()} or set TMPDIR"
            ) from error

    @property
    def info(self) -> EngineInfo:
        """What this engine is; constant."""
        return self._info

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        """
        One forward pass over the padded batch. Vectors are float32 whatever `half` says, as those of `encode`.

        Raises:
            MemoryError: an allocation failed.
            EngineLost: the GPU failed.
        """
        mask = torch.arange(int(batch.lengths.max())) < torch.from_numpy(batch.lengths)[:, None]  # [B, T]
        input_ids = torch.full(mask.shape, PAD_TOKEN_ID)
        input_ids[mask] = torch.from_numpy(batch.token_ids)
        try:
            with torch.inference_mode():
                output = self._model.model(
                    {
                        "input_ids": input_ids.to(self._place.device),
                        "attention_mask": mask.long().to(self._place.device),
                    },
                    return_dense=Mode.DENSE in modes,
                    return_sparse=Mode.SPARSE in modes,
                    return_colbert_vecs=Mode.MULTI_VECTOR in modes,
                )
                arrays = {name: _to_numpy(tensor) for name, tensor in output.items()}
        except RuntimeError as error:
            meaning = _understood(error, self._place.device)
            if meaning is error:
                raise
            if isinstance(meaning, MemoryError) and self._place.is_gpu:
                torch.cuda.empty_cache()
            raise meaning from error
        dense, weights, vectors = (arrays.get(name) for name in ("dense_vecs", "sparse_vecs", "colbert_vecs"))
        return EngineOutput(
            dense=dense if dense is None or self._place.precision == "float32" else _unit_rows(dense),
            token_weights=None if weights is None else weights[:, :, 0][mask.numpy()],
            multi_vector=None if vectors is None else _unpadded(vectors, batch.lengths.tolist()),
        )

    def close(self) -> None:
        """Releases the model and, on a GPU, its memory."""
        del self._model
        gc.collect()
        if self._place.is_gpu:
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _load_errors(place: _Place) -> Iterator[None]:
    """
    Raises:
        LoadError: what has failed is the device.
    """
    try:
        yield
    except RuntimeError as error:
        match _understood(error, place.device):
            case MemoryError():
                mend = "raise device_memory_mb, or set precision float16" if place.is_gpu else "end what else runs here"
                raise LoadError(f"the model does not fit into the memory of {place.device}: {mend}") from error
            case EngineLost() as loss:
                raise LoadError(f"{loss}; look at `nvidia-smi`, or name another GPU in instance_group") from error
            case _:
                raise


_MEMORY_SIGNS = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")


def _understood(error: RuntimeError, device: str) -> Exception:
    """
    What torch's error means to the caller: MemoryError, EngineLost, or itself. Those of cuBLAS are plain
    RuntimeErrors, and a full memory may be told by an AcceleratorError.
    """
    reason = _first_line(error)
    if isinstance(error, torch.OutOfMemoryError) or any(sign in reason for sign in _MEMORY_SIGNS):
        return MemoryError(f"torch could not allocate memory on {device}")
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in reason:
        return EngineLost(f"{device} failed: {reason}")
    return error


def _choose_place(request: EngineRequest) -> _Place:
    device, notes = "cpu", tuple[str, ...]()
    if request.kind is InstanceKind.CPU or (request.kind is InstanceKind.AUTO and not torch.cuda.is_available()):
        if request.device_index is not None:
            raise LoadError("instance_group names `gpus`, but no CUDA GPU is asked for or usable: remove them")
        if request.kind is InstanceKind.AUTO:
            notes = ("there is no CUDA GPU that torch can use: runs on the CPU",)
    elif not torch.cuda.is_available():
        raise LoadError(
            f"instance_group asks for KIND_GPU, but {_why_no_gpu()}; set KIND_CPU, or KIND_AUTO for whichever is there"
        )
    else:
        index, count = request.device_index or 0, torch.cuda.device_count()
        if index >= count:
            raise LoadError(
                f"instance_group names GPU {index}, but torch sees {count}: 0 to {count - 1}; correct `gpus`"
            )
        device = f"cuda:{index}"
    precisions = _CPU_PRECISIONS if device == "cpu" else _GPU_PRECISIONS
    precision = request.precision or precisions[0]
    if precision not in precisions:
        raise LoadError(
            f"precision {precision} is not one that the flagembedding engine has on {device}; use one of: "
            f"{', '.join(precisions)}"
        )
    return _Place(device, precision, notes)


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is installed without CUDA"
    return "torch sees no CUDA GPU"


def _check_model(stored: StoredModel) -> None:
    """
    Raises:
        LoadError: it has parts that FlagEmbedding has not.
    """
    encoder = stored.encoder
    reason = None
    if stored.heads.sparse != "linear":
        reason = f"sparse weights come from a {stored.heads.sparse} of ids, not from a linear layer"
    elif encoder.word_embeddings != "full":
        reason = f"word embeddings are stored as {encoder.word_embeddings}"
    elif encoder.position_offset != _POSITION_OFFSETS[encoder.architecture]:
        reason = f"positions begin at {encoder.position_offset}, not {_POSITION_OFFSETS[encoder.architecture]}"
    if reason is not None:
        raise LoadError(
            f'FlagEmbedding cannot run this model: its {reason}; set backend to "auto" or to another engine'
        )


def _write_checkpoint(directory: Path, stored: StoredModel, tokenizer_path: Path) -> None:
    """The weights as files in the hub's layout, in float32: the precision is chosen when they are loaded."""
    if not tokenizer_path.is_file():
        raise LoadError(f"{tokenizer_path.name} is missing in {tokenizer_path.parent}; pull the model again")
    (directory / _TOKENIZER_FILE).write_bytes(tokenizer_path.read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(_config(stored.encoder)), encoding="utf-8")
    for head in _HEADS:
        tensors = {part: torch.from_numpy(_float32(stored, f"{head}.{part}")) for part in ("weight", "bias")}
        torch.save(tensors, directory / f"{head}.pt")
    names = [name for name in stored.tensors.names() if name.startswith(("embeddings.", "encoder."))]
    save_file({name: _float32(stored, name) for name in names}, directory / "model.safetensors", {"format": "pt"})


def _float32(stored: StoredModel, name: str) -> Floats:
    return np.array(stored.tensors.get(name), np.float32, order="C")


def _config(encoder: EncoderSpec) -> dict[str, object]:
    """The `config.json` of an encoder, which transformers reads."""
    return {
        "model_type": encoder.architecture,
        "hidden_size": encoder.hidden,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.intermediate,
        "hidden_act": "gelu",
        "layer_norm_eps": encoder.layer_norm_eps,
        "vocab_size": encoder.vocabulary_size,
        "max_position_embeddings": encoder.max_positions,
        "type_vocab_size": 1,
        "bos_token_id": CLS_TOKEN_ID,
        "pad_token_id": PAD_TOKEN_ID,
        "eos_token_id": EOS_TOKEN_ID,
    }


_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
"""The class makes transformers take `tokenizer.json` as it is. No text is tokenized with it."""


def _load(directory: Path, encoder: EncoderSpec, heads: HeadsSpec, place: _Place) -> BGEM3FlagModel:
    # transformers would draw progress bars and report on weights that are left out on purpose, such as the pooler's.
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    logging.getLogger("FlagEmbedding").setLevel(logging.ERROR)
    model = BGEM3FlagModel(
        str(directory),
        use_fp16=place.precision == "float16",
        use_bf16=place.precision == "bfloat16",
        devices=place.device,
        pooling_method=encoder.pooling,
        colbert_dim=heads.multi_vector_dimension,
    )
    model.model.to(place.device)
    model.model.eval()
    return model


def _to_numpy(tensor: torch.Tensor) -> Floats:
    array: Floats = tensor.float().cpu().numpy()
    return array


def _unit_rows(vectors: Floats) -> Floats:
    """Divided by their length once more: a bfloat16 quotient's rows are up to 0.002 longer or shorter than 1."""
    rows: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return rows


def _unpadded(vectors: Floats, lengths: list[int]) -> list[Floats]:
    """Each text's rows of [B, T - 1, D], as copies: views would keep the whole batch in memory."""
    return [vectors[row, : length - 1].copy() for row, length in enumerate(lengths)]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
