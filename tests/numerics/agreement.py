"""
How near an engine's embeddings come to those of a reference, and whether they put passages in the same order.

The engine is run here through the seam that the server uses, on one list of token sequences.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trivec_server.backends.interface import Engine, EngineOutput, TokenBatch
from trivec_server.serving.encode import lexical_weights
from trivec_server.types import Mode

from tests.numerics.embeddings import TextEmbedding

OVERLAP_DEPTHS = (10, 50)
"""Sparse overlap is told of so many of the largest weights, and of all."""
RANK_DEPTH = 10
SCORES = ("dense", "sparse", "multi_vector", "hybrid")
_MOST_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """
    Embeddings beside those of the reference. Cosines are of a text's dense vector and of a token's vector; `overlap_*`
    is the share of the 10 or 50 largest sparse weights, or of all, whose ids both have, the mean over the texts;
    `weight_error` the largest difference of a sparse weight, an id that one lacks counting as 0; `difference` the
    largest one of any number. `worst_text` is the index of the text with the least dense cosine.
    """

    texts: int
    tokens: int
    dense_cosine_min: float
    dense_cosine_mean: float
    multi_vector_cosine_min: float
    multi_vector_cosine_mean: float
    overlap_10: float
    overlap_50: float
    overlap_all: float
    weight_error: float
    difference: float
    worst_text: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAgreement:
    """
    Passages in the order of one score, beside the reference's order, the mean over the queries: `top_1` the share with
    the same first passage, `top_10` the share of the reference's first ten that are among the first ten, `kendall`
    Kendall's tau-b over all passages.
    """

    top_1: float
    top_10: float
    kendall: float


def embed_sequences(engine: Engine, sequences: Sequence[Sequence[int]]) -> list[TextEmbedding]:
    """All three embeddings of token sequences, special tokens included, batched by length; in the order given."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    embeddings: dict[int, TextEmbedding] = {}
    while order:
        longest, rows = len(sequences[order[-1]]), 1
        while rows < min(len(order), _MOST_ROWS) and (rows + 1) * longest <= engine.info.token_budget:
            rows += 1
        indices, order = order[-rows:], order[:-rows]
        batch = TokenBatch(
            np.concatenate([np.array(sequences[index], np.int64) for index in indices]),
            np.array([len(sequences[index]) for index in indices], np.int64),
        )
        embeddings |= zip(indices, _read(engine.run(batch, Mode.HYBRID), batch), strict=True)
    return [embeddings[index] for index in range(len(sequences))]


def closeness(actual: Sequence[TextEmbedding], expected: Sequence[TextEmbedding]) -> Closeness:
    """Compares the embeddings of the same texts. A number that is not finite makes a figure NaN."""
    pairs = list(zip(actual, expected, strict=True))
    dense = np.array([_cosines(ours.dense[None], theirs.dense[None])[0] for ours, theirs in pairs])
    vectors = np.concatenate([_cosines(ours.multi_vector, theirs.multi_vector) for ours, theirs in pairs])
    overlap_10, overlap_50, overlap_all = (
        float(np.mean([_overlap(ours, theirs, depth) for ours, theirs in pairs])) for depth in (*OVERLAP_DEPTHS, None)
    )
    weight_error = _largest([_weight_error(ours, theirs) for ours, theirs in pairs])
    parts = [
        np.abs(part - other).max(initial=0.0)
        for ours, theirs in pairs
        for part, other in ((ours.dense, theirs.dense), (ours.multi_vector, theirs.multi_vector))
    ]
    return Closeness(
        texts=len(pairs),
        tokens=sum(theirs.token_count for theirs in expected),
        dense_cosine_min=float(dense.min()),
        dense_cosine_mean=float(dense.mean()),
        multi_vector_cosine_min=float(vectors.min()),
        multi_vector_cosine_mean=float(vectors.mean()),
        overlap_10=overlap_10,
        overlap_50=overlap_50,
        overlap_all=overlap_all,
        weight_error=weight_error,
        difference=_largest([weight_error, *parts]),
        worst_text=int(dense.argmin()),
    )


def score_passages(
    queries: Sequence[TextEmbedding], passages: Sequence[TextEmbedding]
) -> Mapping[str, NDArray[np.float64]]:
    """
    The four scores of every query with every passage, each [queries, passages], by the formulas in `embedding.proto`;
    `hybrid` has equal weights.
    """
    scores = {name: np.empty((len(queries), len(passages))) for name in SCORES}
    for row, query in enumerate(queries):
        for column, passage in enumerate(passages):
            _, ours, theirs = np.intersect1d(
                query.sparse_ids, passage.sparse_ids, assume_unique=True, return_indices=True
            )
            scores["dense"][row, column] = query.dense @ passage.dense
            scores["sparse"][row, column] = query.sparse_weights[ours] @ passage.sparse_weights[theirs]
            best = (query.multi_vector @ passage.multi_vector.T).max(axis=1)
            scores["multi_vector"][row, column] = best.mean()
    scores["hybrid"] = (scores["dense"] + scores["sparse"] + scores["multi_vector"]) / 3
    return scores


def rank_agreement(actual: NDArray[np.float64], expected: NDArray[np.float64]) -> RankAgreement:
    """Compares the orders that two tables of one score [queries, passages] give; of equal scores the first is first."""
    ours, theirs = (np.argsort(-scores, axis=1, kind="stable") for scores in (actual, expected))
    depth = min(RANK_DEPTH, expected.shape[1])
    shared = [len(set(a[:depth].tolist()) & set(b[:depth].tolist())) for a, b in zip(ours, theirs, strict=True)]
    return RankAgreement(
        top_1=float((ours[:, 0] == theirs[:, 0]).mean()),
        top_10=float(np.mean(shared)) / depth,
        kendall=float(np.mean([kendall_tau(a, b) for a, b in zip(actual, expected, strict=True)])),
    )


def kendall_tau(actual: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """
    Kendall's tau-b of two lists of scores [n]: pairs in the same order less pairs in the opposite one, over the
    geometric mean of the pairs that each list does not tie (Kendall 1945). 1 if neither list tells any two apart, 0 if
    only one does.
    """
    pairs = np.triu_indices(len(expected), 1)
    ours, theirs = (np.sign(scores[:, None] - scores[None, :])[pairs] for scores in (actual, expected))
    untied = float((ours != 0).sum()) * float((theirs != 0).sum())
    if not untied:
        return float(np.array_equal(ours, theirs))
    return float(ours @ theirs) / math.sqrt(untied)


def _read(output: EngineOutput, batch: TokenBatch) -> list[TextEmbedding]:
    dense, weights, vectors = output.dense, output.token_weights, output.multi_vector
    assert dense is not None
    assert weights is not None
    assert vectors is not None
    rows = lexical_weights(batch.token_ids, weights, batch.lengths)
    return [
        TextEmbedding(
            length,
            dense[index].astype(np.float32),
            row.ids.astype(np.int64),
            row.weights.copy(),
            vectors[index].astype(np.float32),
        )
        for index, (length, row) in enumerate(zip(batch.lengths.tolist(), rows, strict=True))
    ]


def _cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row; in float64, since in float32 a cosine of 1 is known only to 1e-7."""
    left, right = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: NDArray[np.float64] = (left * right).sum(axis=1) / norms
    return cosines


def _overlap(ours: TextEmbedding, theirs: TextEmbedding, depth: int | None) -> float:
    """The share of ids that both have among the largest weights; of the longer list, where they differ in length."""
    left, right = (
        set(each.sparse_ids[np.argsort(-each.sparse_weights, kind="stable")[:depth]].tolist())
        for each in (ours, theirs)
    )
    most = max(len(left), len(right))
    return len(left & right) / most if most else 1.0


def _weight_error(ours: TextEmbedding, theirs: TextEmbedding) -> float:
    left, right = (
        dict(zip(each.sparse_ids.tolist(), each.sparse_weights.tolist(), strict=True)) for each in (ours, theirs)
    )
    return _largest([abs(left.get(token, 0.0) - right.get(token, 0.0)) for token in left.keys() | right.keys()])


def _largest(numbers: Sequence[float]) -> float:
    return float(np.max(np.array(numbers, np.float64), initial=0.0))
