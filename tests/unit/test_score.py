"""The formulas of scores, against the same formulas in plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trivec_server.serving.request import SparseRow
from trivec_server.serving.score import multi_vector_score, sparse_score

weights = st.floats(0.125, 4, width=32)
rows = st.dictionaries(st.integers(4, 40), weights, max_size=12)


def sparse_row(row: dict[int, float]) -> SparseRow:
    ids = sorted(row)
    return SparseRow(np.array(ids, np.uint32), np.array([row[i] for i in ids], np.float32))


@given(rows, rows)
def test_the_sparse_score_is_the_sum_of_products_over_shared_ids(
    query: dict[int, float], passage: dict[int, float]
) -> None:
    expected = sum(query[token] * passage[token] for token in query.keys() & passage.keys())
    assert sparse_score(sparse_row(query), sparse_row(passage)) == pytest.approx(expected, rel=1e-5)


@given(rows, rows)
def test_the_sparse_score_is_symmetric(one: dict[int, float], other: dict[int, float]) -> None:
    assert sparse_score(sparse_row(one), sparse_row(other)) == pytest.approx(
        sparse_score(sparse_row(other), sparse_row(one)), rel=1e-6
    )


def test_vectors_without_a_shared_id_score_zero() -> None:
    assert sparse_score(sparse_row({5: 1.0}), sparse_row({6: 1.0})) == 0.0
    assert sparse_score(sparse_row({}), sparse_row({6: 1.0})) == 0.0
    assert sparse_score(sparse_row({}), sparse_row({})) == 0.0


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_the_multi_vector_score_is_the_mean_of_the_best_match_of_each_query_row(
    query_rows: int, passage_rows: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    query = random.standard_normal((query_rows, 8)).astype(np.float32)
    passage = random.standard_normal((passage_rows, 8)).astype(np.float32)
    best = [max(float(np.dot(q, p)) for p in passage) for q in query]
    assert multi_vector_score(query, passage) == pytest.approx(sum(best) / query_rows, abs=1e-5)


def test_a_best_match_below_zero_counts_as_it_is() -> None:
    """The reference clamps it to 0 where a batch holds padding; a score must not depend on its batch."""
    query = np.array([[1, 0]], np.float32)
    assert multi_vector_score(query, -query) == -1.0
