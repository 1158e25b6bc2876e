"""
Scores of passages against a query, from their embeddings.

Formulas: FlagEmbedding 1.4.2, `M3Embedder.compute_score` with `dense_score`, `sparse_score` and `colbert_score` of
`finetune/embedder/encoder_only/m3/modeling.py`; each pair is computed alone, so a result never depends on what else
is in the batch.
"""

import asyncio
from dataclasses import dataclass

import numpy as np

from trivec_server.backends.interface import Vectors
from trivec_server.serving.pipeline import Pipeline
from trivec_server.serving.portions import Totals, portions
from trivec_server.serving.request import EmbedResult, EmbedTask, SparseRow
from trivec_server.types import ScoreWeights

_PORTION_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageScore:
    """The five scores of one passage; `index` is its position in the request."""

    index: int
    dense: float
    sparse: float
    multi_vector: float
    sparse_dense: float
    hybrid: float
    token_count: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTask:
    """The scores in the order asked for, and what they cost."""

    scores: list[PassageScore]
    query_truncated: bool
    totals: Totals


@dataclass(frozen=True, slots=True)
class _TextEmbedding:
    """All three embeddings of one text: `dense` [D], `multi_vector` [tokens - 1, D]."""

    dense: Vectors
    sparse: SparseRow
    multi_vector: Vectors


async def score_task(pipeline: Pipeline, task: EmbedTask, weights: ScoreWeights, *, top_k: int) -> ScoredTask:
    """
    Scores texts 1, 2, ... of a hybrid task against text 0, the query. Raises what `Pipeline.embed` raises.

    `top_k` 0: all passages in order; else the best by `hybrid`, best first, of equal scores the lower index first.
    Embeddings are held for one portion of the passages at a time.
    """
    totals = Totals()
    scores: list[PassageScore] = []
    query: _TextEmbedding | None = None
    query_truncated = False
    for start, portion in portions(task, pipeline, _PORTION_BYTES):
        result = await pipeline.embed(portion, is_continuation=start > 0)
        totals.add(result)
        if query is None:
            query, query_truncated = _text(result, 0), bool(result.truncated[0])
        scores += await asyncio.to_thread(_score_portion, query, result, start, weights)
    if top_k:
        scores = sorted(scores, key=lambda score: (-score.hybrid, score.index))[:top_k]
    return ScoredTask(scores=scores, query_truncated=query_truncated, totals=totals)


def sparse_score(query: SparseRow, passage: SparseRow) -> float:
    """The sum over shared ids of the product of their weights."""
    _, in_query, in_passage = np.intersect1d(query.ids, passage.ids, assume_unique=True, return_indices=True)
    return float(query.weights[in_query] @ passage.weights[in_passage])


def multi_vector_score(query: Vectors, passage: Vectors) -> float:
    """The mean over the query's rows [Q, D] of the largest inner product with a row of the passage [P, D]."""
    return float((query @ passage.T).max(axis=1).mean())  # [Q, P] -> [Q]


def _score_portion(query: _TextEmbedding, result: EmbedResult, start: int, weights: ScoreWeights) -> list[PassageScore]:
    """Scores the passages of one portion that begins at text `start` of the task; text 0 is the query itself."""
    scores = []
    for row in range(0 if start else 1, len(result.lengths)):
        passage = _text(result, row)
        dense = float(query.dense @ passage.dense)
        sparse = sparse_score(query.sparse, passage.sparse)
        multi_vector = multi_vector_score(query.multi_vector, passage.multi_vector)
        two = weights.dense + weights.sparse
        both = dense * weights.dense + sparse * weights.sparse
        scores.append(
            PassageScore(
                index=start + row - 1,
                dense=dense,
                sparse=sparse,
                multi_vector=multi_vector,
                sparse_dense=both / two if two else 0.0,
                hybrid=(both + multi_vector * weights.multi_vector) / (two + weights.multi_vector),
                token_count=int(result.lengths[row]),
                truncated=bool(result.truncated[row]),
            )
        )
    return scores


def _text(result: EmbedResult, row: int) -> _TextEmbedding:
    if result.dense is None or result.sparse is None or result.multi_vector is None:
        raise ValueError("scores need all three embeddings")
    return _TextEmbedding(result.dense[row], result.sparse[row], result.multi_vector[row])
