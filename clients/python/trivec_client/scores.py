"""Scores of passages against a query: the server's, and the same formulas over embeddings that are already here."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb

from trivec_client.embeddings import TextEmbedding
from trivec_client.models import ScoreWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageScore:
    """
    The scores of one passage against the query.

    Attributes:
        index: the position of the passage in the caller's list, from 0.
        dense: inner product of the dense vectors, from -1 to 1.
        sparse: sum over shared tokens of the product of their weights.
        multi_vector: mean over the query's rows of the largest inner product with a row of the passage.
        sparse_dense: (dense * w.dense + sparse * w.sparse) / (w.dense + w.sparse).
        hybrid: the weighted mean of all three.
        token_count: tokens of the passage that were embedded.
        truncated: whether tokens of the passage were removed.
    """

    index: int
    dense: float
    sparse: float
    multi_vector: float
    sparse_dense: float
    hybrid: float
    token_count: int
    truncated: bool


ScoreOutput = TypedDict(
    "ScoreOutput",
    {
        "colbert": list[float] | float,
        "sparse": list[float] | float,
        "dense": list[float] | float,
        "sparse+dense": list[float] | float,
        "colbert+sparse+dense": list[float] | float,
    },
)
"""What `compute_score` returns: a float each for one pair, a list each for a list of pairs."""

LexicalWeights = dict[str, np.float32]
TextPair = tuple[str, str] | list[str]


@dataclass(frozen=True, slots=True)
class ScoredPassages:
    """The answer to one ScoreRequest, passages in the order of the request."""

    model: str
    version: int
    scores: list[PassageScore]


def parse_scores(response: pb.ScoreResponse, first_index: int) -> ScoredPassages:
    """A ScoreResponse as values; `first_index` is the caller's index of the request's first passage."""
    scores = [
        PassageScore(
            index=first_index + score.index,
            dense=score.dense,
            sparse=score.sparse,
            multi_vector=score.multi_vector,
            sparse_dense=score.sparse_dense,
            hybrid=score.hybrid,
            token_count=score.token_count,
            truncated=score.truncated,
        )
        for score in response.scores
    ]
    return ScoredPassages(response.model, response.version, scores)


def best(scores: list[PassageScore], top_k: int) -> list[PassageScore]:
    """The `top_k` best by `hybrid`, best first, of equal scores the lower index first; all in order where 0."""
    if top_k == 0:
        return scores
    return sorted(scores, key=lambda score: (-score.hybrid, score.index))[:top_k]


def pair_score(index: int, query: TextEmbedding, passage: TextEmbedding, weights: ScoreWeights) -> PassageScore:
    """
    The scores of a passage against a query, both embedded in all modes; the formulas are those of FlagEmbedding 1.4.2
    (`m3.py`, `compute_score_single_device`).
    """
    if query.dense is None or query.sparse is None or query.multi_vector is None:
        raise ValueError("query: not embedded in all modes")
    if passage.dense is None or passage.sparse is None or passage.multi_vector is None:
        raise ValueError("passage: not embedded in all modes")
    dense = float(query.dense @ passage.dense)
    _, in_query, in_passage = np.intersect1d(
        query.sparse.ids, passage.sparse.ids, assume_unique=True, return_indices=True
    )
    sparse = float(query.sparse.weights[in_query] @ passage.sparse.weights[in_passage])
    multi_vector = colbert_score(query.multi_vector, passage.multi_vector)
    two = weights.dense + weights.sparse
    both = dense * weights.dense + sparse * weights.sparse
    return PassageScore(
        index=index,
        dense=dense,
        sparse=sparse,
        multi_vector=multi_vector,
        sparse_dense=both / two if two else 0.0,
        hybrid=(both + multi_vector * weights.multi_vector) / (two + weights.multi_vector),
        token_count=passage.token_count,
        truncated=passage.truncated,
    )


def colbert_score(q_reps: NDArray[np.float32], p_reps: NDArray[np.float32]) -> float:
    """
    The mean over the query's rows of the largest inner product with a row of the passage.

    Args:
        q_reps: float32 [query tokens - 1, D].
        p_reps: float32 [passage tokens - 1, D].
    """
    return float((q_reps @ p_reps.T).max(axis=1).mean())


def lexical_matching_score(
    lexical_weights_1: LexicalWeights | list[LexicalWeights], lexical_weights_2: LexicalWeights | list[LexicalWeights]
) -> float | NDArray[np.float64]:
    """
    The sum over shared tokens of the product of their weights.

    Returns:
        For two dictionaries a number; for lists of m and n of them, float64 [m, n].

    Raises:
        TypeError: one is a list, the other is not.
    """
    if isinstance(lexical_weights_1, dict) and isinstance(lexical_weights_2, dict):
        return _matching_score(lexical_weights_1, lexical_weights_2)
    if isinstance(lexical_weights_1, list) and isinstance(lexical_weights_2, list):
        return np.array([[_matching_score(one, two) for two in lexical_weights_2] for one in lexical_weights_1])
    raise TypeError("lexical weights: expected two dictionaries or two lists of them")


def _matching_score(one: LexicalWeights, two: LexicalWeights) -> float:
    shorter, longer = sorted((one, two), key=len)
    return float(sum(weight * longer[token] for token, weight in shorter.items() if token in longer))


def as_pairs(sentence_pairs: TextPair | Sequence[TextPair]) -> tuple[list[tuple[str, str]], bool]:
    """
    Pairs of (query, passage), and whether one pair alone was given.

    Raises:
        TypeError, ValueError: something is not a pair of strings; says which.
    """
    single = len(sentence_pairs) > 0 and isinstance(sentence_pairs[0], str)
    pairs = []
    for index, pair in enumerate([sentence_pairs] if single else sentence_pairs):
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"sentence_pairs[{index}]: expected a pair (query, passage)")
        query, passage = pair
        if not isinstance(query, str) or not isinstance(passage, str):
            raise TypeError(f"sentence_pairs[{index}]: expected two strings")
        pairs.append((query, passage))
    return pairs, single


def as_weights(weights: ScoreWeights | Sequence[float] | None) -> ScoreWeights | None:
    """
    Weights given as a value or in FlagEmbedding's order, [dense, sparse, multi-vector].

    Raises:
        ValueError: not three, one is negative, or all are zero.
    """
    if weights is None:
        return None
    if not isinstance(weights, ScoreWeights):
        if len(weights) != 3:
            raise ValueError(f"weights: expected 3 (dense, sparse, multi-vector), got {len(weights)}")
        weights = ScoreWeights(dense=weights[0], sparse=weights[1], multi_vector=weights[2])
    factors = (weights.dense, weights.sparse, weights.multi_vector)
    if min(factors) < 0 or not sum(factors) > 0:
        raise ValueError(f"weights: {list(factors)}: none may be negative, and one must be above zero")
    return weights


def by_query(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, str, list[str]]]:
    """Runs of consecutive pairs with the same query: (index of the first pair, query, passages)."""
    for query, run in itertools.groupby(enumerate(pairs), key=lambda numbered: numbered[1][0]):
        members = list(run)
        yield members[0][0], query, [passage for _, (_, passage) in members]


def render_scores(scores: Sequence[PassageScore], *, single: bool) -> ScoreOutput:
    """Scores as FlagEmbedding's `compute_score` returns them."""
    columns = ScoreOutput(
        {
            "colbert": [score.multi_vector for score in scores],
            "sparse": [score.sparse for score in scores],
            "dense": [score.dense for score in scores],
            "sparse+dense": [score.sparse_dense for score in scores],
            "colbert+sparse+dense": [score.hybrid for score in scores],
        }
    )
    if not single:
        return columns
    (score,) = scores
    return {
        "colbert": score.multi_vector,
        "sparse": score.sparse,
        "dense": score.dense,
        "sparse+dense": score.sparse_dense,
        "colbert+sparse+dense": score.hybrid,
    }
