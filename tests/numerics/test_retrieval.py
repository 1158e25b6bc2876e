"""m3-mini, served, finds the right passage in a small set in four languages."""

import numpy as np
import pytest
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.numerics import grpc_calls
from tests.numerics.embeddings import TextEmbedding
from tests.numerics.figures import show
from tests.numerics.retrieval_set import PASSAGES, QUERIES

_MODEL = "m3-mini"
_KEYS = tuple(PASSAGES)
_RIGHT = np.array([_KEYS.index(query.passage) for query in QUERIES])
_WITHIN_LANGUAGE = np.array([not query.crosses_languages for query in QUERIES])
_SPARSE_SCORE, _SCORE_NAMES = 1, ("dense", "sparse", "multi-vector", "sparse + dense", "hybrid")


@pytest.fixture(scope="module")
def scores(mini_stub: EmbeddingServiceStub) -> NDArray[np.float64]:
    """Scores of every query with every passage from their embeddings, [queries, passages, 5]."""
    query_texts, passage_texts = [query.text for query in QUERIES], list(PASSAGES.values())
    queries = grpc_calls.embed(mini_stub, grpc_calls.embed_request(_MODEL, query_texts, input_type=pb.INPUT_TYPE_QUERY))
    passages = grpc_calls.embed(
        mini_stub, grpc_calls.embed_request(_MODEL, passage_texts, input_type=pb.INPUT_TYPE_PASSAGE)
    )
    weights = mini_stub.GetModel(pb.GetModelRequest(model=_MODEL)).model.score_weights
    return np.array([[_score(query, passage, weights) for passage in passages] for query in queries])


def _score(query: TextEmbedding, passage: TextEmbedding, weights: pb.ScoreWeights) -> tuple[float, ...]:
    """The five scores, by the formulas in `embedding.proto`."""
    dense = float(query.dense @ passage.dense)
    _, in_query, in_passage = np.intersect1d(query.sparse_ids, passage.sparse_ids, return_indices=True)
    sparse = float(query.sparse_weights[in_query] @ passage.sparse_weights[in_passage])
    multi_vector = float((query.multi_vector @ passage.multi_vector.T).max(axis=1).mean())
    sparse_dense = (dense * weights.dense + sparse * weights.sparse) / (weights.dense + weights.sparse)
    total = weights.dense + weights.sparse + weights.multi_vector
    hybrid = (dense * weights.dense + sparse * weights.sparse + multi_vector * weights.multi_vector) / total
    return dense, sparse, multi_vector, sparse_dense, hybrid


def test_the_set_is_large_enough_and_consistent() -> None:
    languages = {query.language for query in QUERIES}
    for language in languages:
        assert sum(query.language == language and not query.crosses_languages for query in QUERIES) >= 5
        assert sum(key.startswith(language) for key in PASSAGES) >= 15

    assert len(languages) == 4
    assert len(QUERIES) >= 20
    assert len(PASSAGES) >= 60
    assert {query.passage for query in QUERIES} <= set(PASSAGES)


@pytest.mark.parametrize("name", ["dense", "multi-vector", "hybrid"])
def test_the_right_passage_is_first_for_nine_queries_in_ten(
    name: str, scores: NDArray[np.float64], capsys: pytest.CaptureFixture[str]
) -> None:
    first = scores[:, :, _SCORE_NAMES.index(name)].argmax(axis=1)
    right = first == _RIGHT

    show(capsys, _figures(name, right, first))
    assert right.mean() >= 0.9


def test_sparse_finds_the_right_passage_for_seven_queries_in_ten_of_its_language(
    scores: NDArray[np.float64], capsys: pytest.CaptureFixture[str]
) -> None:
    first = scores[:, :, _SPARSE_SCORE].argmax(axis=1)
    right = first == _RIGHT

    show(capsys, _figures("sparse", right, first))
    assert right[_WITHIN_LANGUAGE].mean() >= 0.7


@pytest.mark.parametrize("row", range(0, len(QUERIES), 8))
def test_score_gives_what_the_embeddings_give(
    row: int, scores: NDArray[np.float64], mini_stub: EmbeddingServiceStub
) -> None:
    actual = grpc_calls.score(mini_stub, _MODEL, QUERIES[row].text, list(PASSAGES.values()), None)

    np.testing.assert_allclose(actual, scores[row], rtol=0, atol=1e-4)


def _figures(name: str, right: NDArray[np.bool_], first: NDArray[np.int64]) -> str:
    within, across = right[_WITHIN_LANGUAGE], right[~_WITHIN_LANGUAGE]
    missed = [f"{QUERIES[row].text!r} -> {_KEYS[first[row]]}" for row in np.flatnonzero(~right)]
    return (
        f"{name}: top-1 {right.mean():.3f} ({right.sum()} of {len(right)}), within a language {within.mean():.3f}, "
        f"across {across.mean():.3f}" + "".join(f"\n  missed {line}" for line in missed)
    )
