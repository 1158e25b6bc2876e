"""Asks a running server over gRPC with the generated stubs and reads the answers as arrays."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
import numpy as np
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb
from trivec.v1 import embedding_pb2_grpc

from tests.numerics.embeddings import TextEmbedding

_MESSAGE_BYTES = 64 * 1024 * 1024
_TIMEOUT_S = 300.0


@contextmanager
def connect(target: str) -> Iterator[embedding_pb2_grpc.EmbeddingServiceStub]:
    """A stub for the server at `target`, for large answers."""
    options = [("grpc.max_receive_message_length", _MESSAGE_BYTES), ("grpc.max_send_message_length", _MESSAGE_BYTES)]
    with grpc.insecure_channel(target, options=options) as channel:
        yield embedding_pb2_grpc.EmbeddingServiceStub(channel)


def embed_request(
    model: str, texts: Sequence[str], *, max_tokens: int = 0, input_type: pb.InputType.ValueType = pb.INPUT_TYPE_NONE
) -> pb.EmbedRequest:
    """All three embeddings of `texts`, packed, truncated on the right as FlagEmbedding does."""
    return pb.EmbedRequest(
        model=model,
        texts=texts,
        modes=[pb.MODE_HYBRID],
        input_type=input_type,
        truncation=pb.TRUNCATION_RIGHT,
        max_tokens=max_tokens,
        encoding=pb.VECTOR_ENCODING_FLOAT32,
    )


def embed(stub: embedding_pb2_grpc.EmbeddingServiceStub, request: pb.EmbedRequest) -> list[TextEmbedding]:
    """One Embed call."""
    response = stub.Embed(request, timeout=_TIMEOUT_S)
    return [_read([part]) for part in response.embeddings]


def embed_each(
    stub: embedding_pb2_grpc.EmbeddingServiceStub, requests: Sequence[pb.EmbedRequest]
) -> list[TextEmbedding]:
    """
    One EmbedStream call with all requests under way together; multi-vectors arrive in parts of 64 KiB.

    Returns:
        The embeddings of all requests, in the order of the requests.
    """
    parts: dict[tuple[int, int], list[pb.Embedding]] = {}
    messages = (
        pb.EmbedStreamRequest(id=str(number), request=request, chunk_bytes=65536)
        for number, request in enumerate(requests)
    )
    for response in stub.EmbedStream(messages, timeout=_TIMEOUT_S):
        assert not response.HasField("error"), f"request {response.id}: {response.error.message}"
        for part in response.response.embeddings:
            parts.setdefault((int(response.id), part.index), []).append(part)
    return [_read(parts[key]) for key in sorted(parts)]


def score(
    stub: embedding_pb2_grpc.EmbeddingServiceStub,
    model: str,
    query: str,
    passages: Sequence[str],
    weights: tuple[float, float, float] | None,
) -> NDArray[np.float64]:
    """
    One Score call.

    Args:
        stub: The server.
        model: The model's name.
        query: The query.
        passages: The passages.
        weights: Factors for dense, sparse and multi-vector; None leaves them to the model.

    Returns:
        float64 [passages, 5]: dense, sparse, multi-vector, sparse + dense, hybrid.
    """
    factors = None if weights is None else pb.ScoreWeights(dense=weights[0], sparse=weights[1], multi_vector=weights[2])
    request = pb.ScoreRequest(
        model=model, query=query, passages=passages, weights=factors, truncation=pb.TRUNCATION_RIGHT
    )
    response = stub.Score(request, timeout=_TIMEOUT_S)
    assert [entry.index for entry in response.scores] == list(range(len(passages)))
    rows = [
        [entry.dense, entry.sparse, entry.multi_vector, entry.sparse_dense, entry.hybrid] for entry in response.scores
    ]
    return np.array(rows, dtype=np.float64)


def score_pairs(
    stub: embedding_pb2_grpc.EmbeddingServiceStub,
    model: str,
    pairs: Sequence[tuple[str, str]],
    weights: tuple[float, float, float] | None,
) -> NDArray[np.float64]:
    """Scores (query, passage) pairs with one Score call per query; float64 [pairs, 5], in the order of `pairs`."""
    rows_by_query: dict[str, list[int]] = {}
    for row, (query, _) in enumerate(pairs):
        rows_by_query.setdefault(query, []).append(row)
    scores = np.full((len(pairs), 5), np.nan)
    for query, rows in rows_by_query.items():
        scores[rows] = score(stub, model, query, [pairs[row][1] for row in rows], weights)
    return scores


def token_ids(
    stub: embedding_pb2_grpc.EmbeddingServiceStub, model: str, texts: Sequence[str]
) -> list[NDArray[np.int64]]:
    """One Tokenize call: the ids of each text, truncated on the right."""
    request = pb.TokenizeRequest(model=model, texts=texts, truncation=pb.TRUNCATION_RIGHT)
    response = stub.Tokenize(request, timeout=_TIMEOUT_S)
    return [np.array(text.ids, dtype=np.int64) for text in response.texts]


def _read(parts: Sequence[pb.Embedding]) -> TextEmbedding:
    """One text from its messages: the first has everything but later rows."""
    first = parts[0]
    next_row = 0
    for part in parts:
        assert part.multi_vector.first_row == next_row
        next_row += part.multi_vector.rows
    assert next_row == first.multi_vector.total_rows
    rows = np.frombuffer(b"".join(part.multi_vector.data for part in parts), dtype="<f4")
    return TextEmbedding(
        token_count=first.token_count,
        dense=np.frombuffer(first.dense.data, dtype="<f4"),
        sparse_ids=np.array(first.sparse.ids, dtype=np.int64),
        sparse_weights=np.array(first.sparse.weights, dtype=np.float32),
        multi_vector=rows.reshape(-1, first.multi_vector.dimension),  # [T - 1, D]
    )
