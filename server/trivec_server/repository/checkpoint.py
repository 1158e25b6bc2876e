"""
A checkpoint of BGE-M3's shape, as the hub keeps it: which files it needs, what encoder they describe, its weights.

BGE-M3 is a BERT or XLM-RoBERTa encoder with two linear heads, `sparse_linear.pt` and `colbert_linear.pt`.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, Protocol, cast

from trivec_server.backends.graph.spec import EncoderSpec, HeadsSpec, Precision
from trivec_server.backends.weights.weight_files import (
    WeightFiles,
    open_safetensors,
    open_sharded_safetensors,
    open_torch,
    read_shard_index,
)
from trivec_server.errors import CommandError, LoadError
from trivec_server.repository.manifest import ModelFacts, Source
from trivec_server.repository.space import SpaceNeed
from trivec_server.types import PAD_TOKEN_ID, Mode

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
SPARSE_FILE = "sparse_linear.pt"
MULTI_VECTOR_FILE = "colbert_linear.pt"
POOLING_FILE = "1_Pooling/config.json"

_PURPOSES: Mapping[str, str] = {
    CONFIG_FILE: "the shape of the encoder",
    TOKENIZER_FILE: "the tokenizer",
    SPARSE_FILE: "the head that gives the sparse vectors",
    MULTI_VECTOR_FILE: "the head that gives the multi-vectors",
}
_SINGLE = "model.safetensors"
_SHARD_INDEX = "model.safetensors.index.json"
_TORCH = "pytorch_model.bin"
_PREFIXES = ("roberta.", "bert.", "model.")
_LARGEST_JSON_BYTES = 1 << 20


class FileSource(Protocol):
    """Where a checkpoint's files come from."""

    @property
    def source(self) -> Source:
        """What the manifest says of it."""

    def names(self) -> frozenset[str]:
        """The names of all files there."""

    def where(self) -> str:
        """A phrase that says where a file that is not in `names` was looked for."""

    def download_need(self, names: Iterable[str]) -> SpaceNeed:
        """The room that `fetch` will need for these files: 0 bytes if all are here."""

    def fetch(self, name: str) -> Path:
        """
        The file on disk, downloaded if need be.

        Raises:
            CommandError: it cannot be had.
        """


class LocalDirectory:
    """A checkpoint in a directory of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def source(self) -> Source:
        """The directory as the user wrote it."""
        return Source(kind="directory", name=str(self._path))

    def names(self) -> frozenset[str]:
        """The names of the files in it, and of the pooling's."""
        try:
            names = {path.name for path in self._path.iterdir() if path.is_file()}
        except OSError as error:
            raise CommandError(f"{self._path}: cannot be read: {error.strerror}") from None
        return frozenset(names | ({POOLING_FILE} if (self._path / POOLING_FILE).is_file() else set()))

    def where(self) -> str:
        """The directory."""
        return str(self._path)

    def download_need(self, names: Iterable[str]) -> SpaceNeed:
        """Nothing: the files are here."""
        return SpaceNeed(self._path, 0, "nothing", "")

    def fetch(self, name: str) -> Path:
        """The file in the directory."""
        return self._path / name


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """What is known of a checkpoint before its large files are there."""

    spec: EncoderSpec
    weight_file: str
    files: tuple[str, ...]

    def output_bytes(self) -> int:
        """About how large the graph and its weights will be; the tokenizer and some room are counted in."""
        spec = self.spec
        rows = spec.vocabulary_size + spec.max_positions + 1
        layer = 4 * spec.hidden * spec.hidden + 2 * spec.hidden * spec.intermediate
        head = spec.hidden * spec.hidden
        numbers = rows * spec.hidden + spec.layers * layer + head
        return numbers * (2 if spec.precision == "float16" else 4) + numbers // 50 + (32 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files are all here and whose heads fit its encoder. `tensors` holds encoder and heads."""

    facts: ModelFacts
    spec: EncoderSpec
    heads: HeadsSpec
    tensors: WeightFiles
    tokenizer: Path


def plan_checkpoint(source: FileSource, precision: Precision) -> CheckpointPlan:
    """
    Reads the small files of a checkpoint and decides which others it needs.

    Raises:
        CommandError: a file is missing, or the encoder is of a kind that Trivec does not serve.
    """
    names = source.names()
    for name, purpose in _PURPOSES.items():
        if name not in names:
            raise CommandError(f"no {name}, {purpose}, in {source.where()}: Trivec serves models of BGE-M3's shape")
    weight_file = next((name for name in (_SINGLE, _SHARD_INDEX, _TORCH) if name in names), None)
    if weight_file is None:
        raise CommandError(f"no weights, {_SINGLE}, {_SHARD_INDEX} or {_TORCH}, in {source.where()}")
    shards = set(read_shard_index(source.fetch(weight_file)).values()) if weight_file == _SHARD_INDEX else set()
    for shard in sorted(shards - names):
        raise CommandError(f"no {shard}, a part of the weights, in {source.where()}")
    pooling = _read_pooling(source.fetch(POOLING_FILE)) if POOLING_FILE in names else "cls"
    spec = _read_config(source.fetch(CONFIG_FILE), pooling, precision)
    return CheckpointPlan(spec=spec, weight_file=weight_file, files=(*_PURPOSES, weight_file, *sorted(shards)))


def open_checkpoint(source: FileSource, plan: CheckpointPlan) -> Checkpoint:
    """
    Opens the files of a plan, all of which `source` now has at hand.

    Raises:
        CommandError: a file cannot be had.
        LoadError: a file is damaged, was refused, or a head does not fit the encoder.
    """
    openers: Mapping[str, Callable[..., WeightFiles]] = {
        _SINGLE: open_safetensors,
        _SHARD_INDEX: open_sharded_safetensors,
        _TORCH: open_torch,
    }
    paths = {name: source.fetch(name) for name in plan.files}
    encoder = openers[plan.weight_file](paths[plan.weight_file], _PREFIXES)
    sparse, multi_vector = open_torch(paths[SPARSE_FILE]), open_torch(paths[MULTI_VECTOR_FILE])
    _check_head(sparse, plan.spec.hidden, 1)
    dimension = _check_head(multi_vector, plan.spec.hidden, None)
    facts = ModelFacts(
        architecture=plan.spec.architecture,
        pooling=plan.spec.pooling,
        precision=plan.spec.precision,
        modes=Mode.HYBRID,
        dense_dimension=plan.spec.hidden,
        multi_vector_dimension=dimension,
        vocabulary_size=plan.spec.vocabulary_size,
        max_tokens=plan.spec.max_tokens,
    )
    return Checkpoint(
        facts=facts,
        spec=plan.spec,
        heads=HeadsSpec(multi_vector_dimension=dimension),
        tensors=WeightFiles.joined({"": encoder, "sparse_linear.": sparse, "colbert_linear.": multi_vector}),
        tokenizer=paths[TOKENIZER_FILE],
    )


def _check_head(head: WeightFiles, hidden: int, outputs: int | None) -> int:
    """Checks a linear layer [outputs, hidden] with bias [outputs]; None allows any number. Returns the number."""
    shape = head.shape("weight")
    wanted = "D" if outputs is None else str(outputs)
    if len(shape) != 2 or shape[1] != hidden or shape[0] < 1 or (outputs is not None and shape[0] != outputs):
        raise LoadError(
            f"{head.path('weight')}: weight has shape {list(shape)}, but the encoder needs [{wanted}, {hidden}]"
        )
    if head.shape("bias") != shape[:1]:
        raise LoadError(
            f"{head.path('bias')}: bias has shape {list(head.shape('bias'))}, but its weight needs [{shape[0]}]"
        )
    return shape[0]


def _read_config(path: Path, pooling: Literal["cls", "mean"], precision: Precision) -> EncoderSpec:
    fields = _ConfigFields(path)
    architecture = fields.text("model_type")
    if architecture not in ("bert", "xlm-roberta"):
        fields.fail("model_type", f"{architecture!r} is not served; bert and xlm-roberta are")
    if fields.text("hidden_act", "gelu") != "gelu":
        fields.fail("hidden_act", f"{fields.text('hidden_act')!r} is not served; gelu is")
    if fields.text("position_embedding_type", "absolute") != "absolute":
        fields.fail("position_embedding_type", f"{fields.text('position_embedding_type')!r} is not served; absolute is")
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden % heads:
        fields.fail("num_attention_heads", f"{heads} heads do not divide hidden_size {hidden}")
    # RoBERTa numbers positions from the padding id + 1, and so loses that many rows of its table.
    offset = PAD_TOKEN_ID + 1 if architecture == "xlm-roberta" else 0
    if architecture == "xlm-roberta" and (pad := fields.value("pad_token_id", PAD_TOKEN_ID)) != PAD_TOKEN_ID:
        fields.fail("pad_token_id", f"must be {PAD_TOKEN_ID} for xlm-roberta, not {pad!r}")
    positions = fields.integer("max_position_embeddings")
    if positions < offset + 2:
        fields.fail("max_position_embeddings", f"{positions} leaves no room for a text of 2 tokens")
    return EncoderSpec(
        architecture=cast("Literal['bert', 'xlm-roberta']", architecture),
        hidden=hidden,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        intermediate=fields.integer("intermediate_size"),
        vocabulary_size=fields.integer("vocab_size"),
        max_positions=positions,
        layer_norm_eps=fields.real("layer_norm_eps", 1e-12),
        position_offset=offset,
        pooling=pooling,
        precision=precision,
    )


def _read_pooling(path: Path) -> Literal["cls", "mean"]:
    """How sentence-transformers pools this model: one name, or flags `pooling_mode_*` of which one is set."""
    fields = _ConfigFields(path)
    flags = [name for name in fields.names() if name.startswith("pooling_mode_") and fields.value(name) is True]
    chosen = fields.text("pooling_mode") if "pooling_mode" in fields.names() else ", ".join(flags)
    if chosen in ("cls", "pooling_mode_cls_token"):
        return "cls"
    if chosen in ("mean", "pooling_mode_mean_tokens"):
        return "mean"
    return fields.fail("pooling_mode", f"{chosen or 'none'} is not served; cls_token or mean_tokens is")


class _ConfigFields:
    """The members of a JSON file of the hub, read with their types checked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            if path.stat().st_size > _LARGEST_JSON_BYTES:
                raise CommandError(f"{path}: over {_LARGEST_JSON_BYTES} bytes, too long for a configuration")
            document = json.loads(path.read_bytes())
        except OSError as error:
            raise CommandError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise CommandError(f"{path}: is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise CommandError(f"{path}: is not a JSON object")
        self._members = cast("dict[str, object]", document)

    def names(self) -> list[str]:
        return list(self._members)

    def value(self, name: str, default: object = None) -> object:
        value = self._members.get(name, default)
        return self.fail(name, "missing") if value is None else value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.value(name, default)
        return value if isinstance(value, str) else self.fail(name, f"must be a text, not {value!r}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            return self.fail(name, f"must be a whole number from 1, not {value!r}")
        return value

    def real(self, name: str, default: float) -> float:
        value = self.value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
            return self.fail(name, f"must be a number between 0 and 1, not {value!r}")
        return float(value)

    def fail(self, name: str, problem: str) -> NoReturn:
        raise CommandError(f"{self._path}: {name}: {problem}")
