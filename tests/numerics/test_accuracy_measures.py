"""The measures of the accuracy report, on embeddings and scores small enough to work out by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from tests.numerics.agreement import closeness, kendall_tau, rank_agreement, score_passages
from tests.numerics.embeddings import TextEmbedding


def _text(dense: Sequence[float], sparse: dict[int, float], rows: Sequence[Sequence[float]]) -> TextEmbedding:
    ids = sorted(sparse)
    return TextEmbedding(
        len(rows) + 1,
        np.array(dense, np.float32),
        np.array(ids, np.int64),
        np.array([sparse[token] for token in ids], np.float32),
        np.array(rows, np.float32),
    )


_FIRST = _text([1, 0], {7: 0.5, 9: 0.25}, [[1, 0], [0, 1]])
_SECOND = _text([0.6, 0.8], {7: 1.0}, [[0, 1]])


def test_embeddings_agree_wholly_with_themselves() -> None:
    figures = closeness([_FIRST, _SECOND], [_FIRST, _SECOND])

    assert (figures.texts, figures.tokens) == (2, 5)
    assert figures.dense_cosine_min == pytest.approx(1, abs=1e-6)
    assert figures.multi_vector_cosine_min == pytest.approx(1, abs=1e-6)
    assert (figures.overlap_10, figures.overlap_all, figures.weight_error, figures.difference) == (1, 1, 0, 0)


def test_cosines_are_of_texts_and_of_tokens() -> None:
    figures = closeness([_text([0.6, 0.8], {}, [[1, 0], [1, 0]])], [_text([1, 0], {}, [[1, 0], [0, 1]])])

    assert figures.dense_cosine_min == pytest.approx(0.6)
    assert (figures.multi_vector_cosine_min, figures.multi_vector_cosine_mean) == (0, 0.5)
    assert figures.overlap_all == 1
    assert figures.difference == 1


def test_an_id_that_one_side_lacks_counts_in_overlap_and_weight_error() -> None:
    figures = closeness([_text([1, 0], {7: 0.5, 8: 0.375}, [[1, 0]])], [_text([1, 0], {7: 0.25, 9: 0.125}, [[1, 0]])])

    assert figures.overlap_all == 0.5
    assert figures.weight_error == 0.375


def test_overlap_at_a_depth_looks_at_the_largest_weights() -> None:
    weights = {token: 1 / token for token in range(1, 21)}
    swapped = weights | {10: weights[11], 11: weights[10]}

    figures = closeness([_text([1], swapped, [[1]])], [_text([1], weights, [[1]])])

    assert (figures.overlap_10, figures.overlap_50, figures.overlap_all) == (0.9, 1, 1)


def test_a_number_that_is_not_finite_is_not_hidden() -> None:
    figures = closeness([_text([np.nan, 0], {}, [[1, 0]])], [_text([1, 0], {}, [[1, 0]])])

    assert np.isnan(figures.dense_cosine_min)
    assert np.isnan(figures.difference)


def test_scores_follow_the_formulas_of_the_protocol() -> None:
    scores = score_passages([_FIRST], [_FIRST, _SECOND])

    assert scores["dense"][0].tolist() == pytest.approx([1, 0.6])
    assert scores["sparse"][0].tolist() == pytest.approx([0.3125, 0.5])
    assert scores["multi_vector"][0].tolist() == pytest.approx([1, 0.5])
    assert scores["hybrid"][0].tolist() == pytest.approx([2.3125 / 3, 1.6 / 3])


def test_ranks_are_compared_query_by_query() -> None:
    expected = np.array([np.arange(20.0), np.arange(20.0)])
    actual = expected.copy()
    actual[1] = actual[1, ::-1]

    figures = rank_agreement(actual, expected)

    assert (figures.top_1, figures.top_10, figures.kendall) == (0.5, 0.5, 0)


@pytest.mark.parametrize(
    ("actual", "expected", "tau"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1),
        ([4, 3, 2, 1], [1, 2, 3, 4], -1),
        ([2, 1, 3, 4], [1, 2, 3, 4], 4 / 6),
        ([1, 1, 2], [1, 2, 3], 2 / 6**0.5),
        ([0, 0, 0], [0, 0, 0], 1),
        ([0, 0, 0], [1, 2, 3], 0),
    ],
)
def test_kendalls_tau_counts_pairs_and_ties(actual: list[float], expected: list[float], tau: float) -> None:
    assert kendall_tau(np.array(actual, float), np.array(expected, float)) == pytest.approx(tau)
