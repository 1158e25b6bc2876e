"""The domain's values: what a request asks for, what a model is set to. No gRPC, no engine, no I/O."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

CLS_TOKEN_ID = 0
PAD_TOKEN_ID = 1
EOS_TOKEN_ID = 2
UNK_TOKEN_ID = 3

SPARSE_EXCLUDED_TOKEN_IDS = (CLS_TOKEN_ID, PAD_TOKEN_ID, EOS_TOKEN_ID, UNK_TOKEN_ID)
"""Ids that never appear in a sparse vector. `<mask>` may (FlagEmbedding 1.4.2, `m3.py`, `_process_token_weights`)."""


class Mode(enum.Flag):
    """A set of embeddings: DENSE, SPARSE, MULTI_VECTOR, or any union of them."""

    DENSE = enum.auto()
    SPARSE = enum.auto()
    MULTI_VECTOR = enum.auto()
    HYBRID = DENSE | SPARSE | MULTI_VECTOR


class InputType(enum.Enum):
    """What a text is for; selects the prefix of the model."""

    NONE = enum.auto()
    QUERY = enum.auto()
    PASSAGE = enum.auto()


class Truncation(enum.Enum):
    """What to do with a text of too many tokens."""

    ERROR = enum.auto()
    RIGHT = enum.auto()
    LEFT = enum.auto()


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """The name of a model and one of its versions."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class ScoreWeights:
    """The factors of the weighted sums of scores. None is negative, one at least is above zero."""

    dense: float = 1.0
    sparse: float = 1.0
    multi_vector: float = 1.0


class TimeoutAction(enum.Enum):
    """What happens to a request whose queue timeout passes (Triton's ModelQueuePolicy.TimeoutAction)."""

    REJECT = enum.auto()
    DELAY = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """
    Triton's ModelQueuePolicy. `timeout_us` 0: no timeout. `max_queue_size` counts requests, 0: no limit.
    `allow_timeout_override`: a request's own timeout, where it is shorter, counts instead.
    """

    timeout_action: TimeoutAction = TimeoutAction.REJECT
    timeout_us: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingSettings:
    """
    How requests are gathered into batches.

    `max_batch_size` counts texts, or rows of tensors, `preferred_batch_sizes` too (ascending, each at most
    `max_batch_size`); 0: a model of tensors without a batch dimension, whose requests run as they are. Without
    `joins_requests` each request is a batch by itself. `priority_levels` 0 means one level; level 1 is served first.
    `token_budget` None: the engine's own.
    """

    max_batch_size: int = 64
    joins_requests: bool = True
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    priority_levels: int = 0
    default_priority_level: int = 0
    queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policies: Mapping[int, QueuePolicy] = field(default_factory=lambda: MappingProxyType({}))
    token_budget: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """
    An input or output of a model that takes tensors.

    `datatype` is KServe's name: BOOL, UINT8 to UINT64, INT8 to INT64, FP16, FP32, FP64, BF16 or BYTES. `shape` leaves
    the batch dimension out; -1 varies. `reshape`: the shape that the model itself takes or gives, where it is another
    one, of as many elements between any two dimensions that vary; () for a scalar, where `shape` has one element.
    `optional`: a request may leave the input out. `allow_ragged`: requests whose shapes differ are padded with zeros
    (BYTES: with empty elements) to run together.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    optional: bool = False
    allow_ragged: bool = False


class WarmupData(enum.Enum):
    """What a warm-up fills a tensor with: zeros (BYTES: empty elements), random numbers, or what a file holds."""

    ZERO = enum.auto()
    RANDOM = enum.auto()
    FILE = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupTensor:
    """
    One input of a warm-up: one row of `shape`, repeated for all rows. `filename` is that of a file in the model's
    directory `warmup`, for `WarmupData.FILE`, which holds the row as raw tensor contents.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: WarmupData = WarmupData.ZERO
    filename: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorWarmup:
    """A batch to run before a model that takes tensors is ready: `count` times `batch_size` rows."""

    name: str
    inputs: tuple[WarmupTensor, ...]
    batch_size: int = 1
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSettings:
    """
    What `config.pbtxt` says of a model that takes tensors. Empty `inputs` or `outputs`: those of the model's file.
    `model_filename` is the file's path in the version's directory. `parameters` are all keys of the file, as they are.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    model_filename: str = "model.onnx"
    warmups: tuple[TensorWarmup, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class InstanceKind(enum.Enum):
    """Triton's ModelInstanceGroup.Kind, less KIND_MODEL."""

    AUTO = enum.auto()
    GPU = enum.auto()
    CPU = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceGroup:
    """Engine instances of one kind. `gpus` empty: every GPU."""

    kind: InstanceKind = InstanceKind.AUTO
    count: int = 1
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """Which versions to serve: the `latest` n, or the `specific` ones, or all where both are None."""

    latest: int | None = 1
    specific: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """Batches to run before a model is ready: `count` times `batch_size` texts of `tokens` tokens."""

    name: str
    batch_size: int = 1
    tokens: int = 16
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """
    One `config.pbtxt`, read and checked.

    What is None was not set: the version's manifest decides (`pooling`, `precision`, `max_tokens`), and where both
    speak they must agree (`pooling`, `precision`, dimensions) or the manifest's is the upper bound (`max_tokens`).
    `declared_modes` are the outputs that the file declares: the model must have each of them. `accelerator` is the
    execution accelerator on GPUs. `worker_process`: whether each engine instance has a process of its own; None: on
    GPUs only. `response_cache`: results are kept for requests that are the same. `tensors`: None for an embedding
    model; of a model that takes tensors, what concerns embeddings keeps its default.
    """

    name: str
    backend: str
    version_policy: VersionPolicy = VersionPolicy()
    batching: BatchingSettings = BatchingSettings()
    instance_groups: tuple[InstanceGroup, ...] = (InstanceGroup(),)
    warmups: tuple[Warmup, ...] = ()
    declared_modes: Mode | None = None
    dense_dimension: int | None = None
    multi_vector_dimension: int | None = None
    pooling: str | None = None
    precision: str | None = None
    max_tokens: int | None = None
    query_prefix: str = ""
    passage_prefix: str = ""
    score_weights: ScoreWeights = ScoreWeights()
    intra_op_threads: int | None = None
    accelerator: str | None = None
    device_memory_mb: int | None = None
    worker_process: bool | None = None
    response_cache: bool = False
    tensors: TensorSettings | None = None
    warnings: tuple[str, ...] = ()
