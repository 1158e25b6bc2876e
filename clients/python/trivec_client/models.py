"""What the server says of its models."""

from dataclasses import dataclass
from typing import Literal

from trivec.v1 import embedding_pb2 as pb

from trivec_client.requests import MODES, ModeName

ModelState = Literal["LOADING", "READY", "UNAVAILABLE", "UNLOADING"]

_STATES: dict[pb.ModelState.ValueType, ModelState] = {
    pb.MODEL_STATE_LOADING: "LOADING",
    pb.MODEL_STATE_READY: "READY",
    pb.MODEL_STATE_UNAVAILABLE: "UNAVAILABLE",
    pb.MODEL_STATE_UNLOADING: "UNLOADING",
}
_MODE_NAMES: dict[pb.Mode.ValueType, ModeName] = {value: name for name, value in MODES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreWeights:
    """The factors of the weighted sums of scores. None is negative, one at least is above zero."""

    dense: float = 1.0
    sparse: float = 1.0
    multi_vector: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What requests to a model are limited to; the fields are those of the contract's ModelLimits."""

    max_tokens: int
    max_texts_per_request: int
    max_request_bytes: int
    max_response_bytes: int
    max_chunk_bytes: int
    max_queued_tokens: int
    max_stream_requests: int
    batch_token_budget: int
    priority_levels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One version of a model; the fields are those of the contract's Model."""

    name: str
    version: int
    state: ModelState
    state_reason: str
    modes: tuple[ModeName, ...]
    dense_dimension: int
    multi_vector_dimension: int
    vocabulary_size: int
    engine: str
    device: str
    precision: str
    content_digest: str
    demonstration: bool
    limits: ModelLimits
    score_weights: ScoreWeights
    pooling: str
    query_prefix: str
    passage_prefix: str
    notes: tuple[str, ...] = ()


def parse_model(model: pb.Model) -> ModelInfo:
    """A Model of the contract as a value. A mode or state newer than this client is left out or UNAVAILABLE."""
    limits = model.limits
    return ModelInfo(
        name=model.name,
        version=model.version,
        state=_STATES.get(model.state, "UNAVAILABLE"),
        state_reason=model.state_reason,
        modes=tuple(_MODE_NAMES[mode] for mode in model.modes if mode in _MODE_NAMES),
        dense_dimension=model.dense_dimension,
        multi_vector_dimension=model.multi_vector_dimension,
        vocabulary_size=model.vocabulary_size,
        engine=model.engine,
        device=model.device,
        precision=model.precision,
        content_digest=model.content_digest,
        demonstration=model.demonstration,
        limits=ModelLimits(
            max_tokens=limits.max_tokens,
            max_texts_per_request=limits.max_texts_per_request,
            max_request_bytes=limits.max_request_bytes,
            max_response_bytes=limits.max_response_bytes,
            max_chunk_bytes=limits.max_chunk_bytes,
            max_queued_tokens=limits.max_queued_tokens,
            max_stream_requests=limits.max_stream_requests,
            batch_token_budget=limits.batch_token_budget,
            priority_levels=limits.priority_levels,
        ),
        score_weights=parse_weights(model.score_weights),
        pooling=model.pooling,
        query_prefix=model.query_prefix,
        passage_prefix=model.passage_prefix,
        notes=tuple(model.notes),
    )


def parse_weights(weights: pb.ScoreWeights) -> ScoreWeights:
    """ScoreWeights of the contract as a value."""
    return ScoreWeights(dense=weights.dense, sparse=weights.sparse, multi_vector=weights.multi_vector)
