"""A version's record as the `Model` message of GetModel and ListModels."""

from trivec.v1 import embedding_pb2 as pb

from trivec_server.repository.registry import State, TensorVersion, VersionRecord
from trivec_server.settings import Limits
from trivec_server.types import Mode

_STATES = {
    State.LOADING: pb.MODEL_STATE_LOADING,
    State.READY: pb.MODEL_STATE_READY,
    State.UNAVAILABLE: pb.MODEL_STATE_UNAVAILABLE,
    State.UNLOADING: pb.MODEL_STATE_UNLOADING,
}
_MODES = (
    (Mode.DENSE, pb.MODE_DENSE),
    (Mode.SPARSE, pb.MODE_SPARSE),
    (Mode.MULTI_VECTOR, pb.MODE_MULTI_VECTOR),
)


def describe_version(record: VersionRecord, limits: Limits) -> pb.Model:
    """Everything that is known of the version: of one that is not READY, its name, state and reason."""
    model = pb.Model(
        name=record.key.name, version=record.key.version, state=_STATES[record.state], state_reason=record.reason
    )
    served = record.served
    if served is None:
        return model
    if isinstance(served, TensorVersion):
        model.engine, model.device = served.loaded.info.engine, served.loaded.info.device
        model.notes.extend(served.loaded.info.notes)
        model.content_digest = served.loaded.content_digest
        return model
    loaded = served.loaded
    info, settings = loaded.info, loaded.settings
    model.MergeFrom(
        pb.Model(
            modes=[wire for mode, wire in _MODES if mode in info.modes],
            dense_dimension=info.dense_dimension,
            multi_vector_dimension=info.multi_vector_dimension,
            vocabulary_size=info.vocabulary_size,
            engine=info.engine,
            device=info.device,
            precision=info.precision,
            notes=info.notes,
            content_digest=loaded.manifest.content_digest,
            demonstration=loaded.manifest.model.demonstration,
            score_weights=pb.ScoreWeights(
                dense=settings.score_weights.dense,
                sparse=settings.score_weights.sparse,
                multi_vector=settings.score_weights.multi_vector,
            ),
            pooling=info.pooling,
            query_prefix=settings.query_prefix,
            passage_prefix=settings.passage_prefix,
            limits=pb.ModelLimits(
                max_tokens=loaded.max_tokens,
                max_texts_per_request=limits.max_texts_per_request,
                max_request_bytes=limits.max_request_bytes,
                max_response_bytes=limits.max_response_bytes,
                max_chunk_bytes=limits.max_chunk_bytes,
                max_queued_tokens=limits.max_queued_tokens,
                max_stream_requests=limits.max_stream_requests,
                batch_token_budget=settings.batching.token_budget or info.token_budget,
                priority_levels=settings.batching.priority_levels,
                max_text_bytes=limits.max_text_bytes,
            ),
        )
    )
    return model
