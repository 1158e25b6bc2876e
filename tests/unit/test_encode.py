"""Arrays to what a caller gets: lexical weights, pruning, packed vectors."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from trivec_server.serving.encode import bytes_per_row, lexical_weights, pack, prune
from trivec_server.serving.request import SparseRow, VectorEncoding

MASK_TOKEN_ID = 250_001

token_ids = st.one_of(st.integers(0, 12), st.sampled_from([MASK_TOKEN_ID, 2**31 - 1]))
weights = st.one_of(st.just(0.0), st.floats(0, 8, width=32))
texts = st.lists(st.tuples(token_ids, weights), min_size=2, max_size=12)
finite = st.floats(-100, 100, width=32)
matrices = npst.arrays(np.float32, st.tuples(st.integers(1, 5), st.sampled_from([1, 7, 8, 9, 16])), elements=finite)


def reference_weights(text: list[tuple[int, float]]) -> dict[int, float]:
    """`_process_token_weights` of FlagEmbedding, in plain words: the largest weight above zero of each id."""
    kept: dict[int, float] = {}
    for token, weight in text:
        if token not in {0, 1, 2, 3} and weight > kept.get(token, 0.0):
            kept[token] = weight
    return kept


def lexical(batch: list[list[tuple[int, float]]]) -> list[SparseRow]:
    flat = [pair for text in batch for pair in text]
    return lexical_weights(
        np.array([token for token, _ in flat], np.int64),
        np.array([weight for _, weight in flat], np.float32),
        np.array([len(text) for text in batch], np.int64),
    )


@given(st.lists(texts, min_size=1, max_size=6))
def test_lexical_weights_equal_the_reference_written_with_a_dict(batch: list[list[tuple[int, float]]]) -> None:
    for row, text in zip(lexical(batch), batch, strict=True):
        assert dict(zip(row.ids.tolist(), row.weights.tolist(), strict=True)) == reference_weights(text)


@given(st.lists(texts, min_size=1, max_size=6))
def test_lexical_ids_are_ascending_and_unique(batch: list[list[tuple[int, float]]]) -> None:
    for row in lexical(batch):
        assert (np.diff(row.ids.astype(np.int64)) > 0).all()
        assert (row.ids.dtype.name, row.weights.dtype.name) == ("uint32", "float32")


def test_special_ids_are_dropped_but_mask_is_kept() -> None:
    (row,) = lexical([[(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (MASK_TOKEN_ID, 1.0)]])
    assert row.ids.tolist() == [MASK_TOKEN_ID]


def test_a_repeated_token_gets_its_largest_weight_in_its_own_text() -> None:
    first, second = lexical([[(9, 0.25), (9, 0.75), (9, 0.5)], [(9, 0.125)]])
    assert (first.ids.tolist(), first.weights.tolist()) == ([9], [0.75])
    assert (second.ids.tolist(), second.weights.tolist()) == ([9], [0.125])


def test_a_text_without_weights_between_others_has_an_empty_row() -> None:
    rows = lexical([[(5, 1.0)], [(0, 1.0), (2, 1.0)], [(6, 1.0)]])
    assert [row.ids.tolist() for row in rows] == [[5], [], [6]]


sparse_rows = st.dictionaries(st.integers(4, 300), st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0]), max_size=12)


@given(sparse_rows, st.integers(0, 14), st.sampled_from([0.0, 0.25, 0.3, 5.0]))
def test_prune_keeps_the_largest_weights_and_of_equal_ones_the_lower_id(
    row: dict[int, float], top_k: int, min_weight: float
) -> None:
    ids = sorted(row)
    pruned = prune(
        SparseRow(np.array(ids, np.uint32), np.array([row[i] for i in ids], np.float32)),
        top_k=top_k,
        min_weight=min_weight,
    )
    best = sorted((i for i in ids if row[i] >= min_weight), key=lambda i: (-row[i], i))
    kept = sorted(best[:top_k] if top_k else best)
    assert pruned.ids.tolist() == kept
    assert pruned.weights.tolist() == [row[i] for i in kept]


def test_prune_keeps_a_weight_equal_to_a_minimum_that_float32_rounds() -> None:
    row = SparseRow(np.array([4], np.uint32), np.array([0.1], np.float32))
    assert len(prune(row, top_k=0, min_weight=float(np.float32(0.1))).ids) == 1


@given(matrices)
def test_bfloat16_rounds_to_nearest_even(vectors: NDArray[np.float32]) -> None:
    assert pack(vectors, VectorEncoding.BFLOAT16).data.tobytes() == vectors.astype(ml_dtypes.bfloat16).tobytes()


def test_bfloat16_ties_go_to_the_even_neighbour() -> None:
    bits = np.array([[0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000]], np.uint32)
    packed = pack(bits.view(np.float32), VectorEncoding.BFLOAT16).data.view(np.uint16)
    assert [f"{number:04x}" for number in packed[0].tolist()] == ["3f80", "3f82", "3f81", "3f80", "bf82"]


@given(matrices)
def test_float16_is_the_little_endian_binary16_of_each_number(vectors: NDArray[np.float32]) -> None:
    assert pack(vectors, VectorEncoding.FLOAT16).data.tobytes() == vectors.astype("<f2").tobytes()


@given(matrices)
def test_int8_times_scale_is_within_half_a_step_of_the_number(vectors: NDArray[np.float32]) -> None:
    packed = pack(vectors, VectorEncoding.INT8)
    assert packed.scales is not None
    restored = packed.data.view(np.int8).astype(np.float64) * packed.scales.astype(np.float64)[:, None]
    # Where the scale is below the smallest float32, a row counts as zeros.
    assert (np.abs(restored - vectors) <= packed.scales[:, None] * 0.5001 + 1e-40).all()


@given(matrices)
def test_int8_uses_its_whole_range_in_every_row(vectors: NDArray[np.float32]) -> None:
    packed = pack(vectors, VectorEncoding.INT8)
    assert packed.scales is not None
    largest = np.abs(packed.data.view(np.int8).astype(int)).max(axis=1)
    big_enough = np.abs(vectors).max(axis=1) > 1e-30
    assert (largest[big_enough] == 127).all()


def test_int8_of_a_row_of_zeros_has_scale_zero() -> None:
    packed = pack(np.zeros((1, 4), np.float32), VectorEncoding.INT8)
    assert packed.scales is not None
    assert packed.scales.tolist() == [0.0]
    assert not packed.data.any()


def test_binary_puts_the_first_number_into_the_highest_bit_and_pads_rows_with_zeros() -> None:
    vectors = np.array([[1, -1, 0, 1, 1, -1, -1, 1, 1], [-1, 1, 0, 0, 0, 0, 0, 0, -1]], np.float32)
    assert pack(vectors, VectorEncoding.BINARY).data.tolist() == [[0b10011001, 0b10000000], [0b01000000, 0]]


@given(matrices, st.sampled_from(VectorEncoding))
def test_packed_rows_have_the_declared_width(vectors: NDArray[np.float32], encoding: VectorEncoding) -> None:
    assert pack(vectors, encoding).data.shape == (len(vectors), bytes_per_row(vectors.shape[1], encoding))


@pytest.mark.parametrize("encoding", VectorEncoding)
def test_the_memory_order_of_an_engines_array_does_not_matter(encoding: VectorEncoding) -> None:
    vectors = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    strided = np.concatenate((vectors, vectors), axis=1)[:, :8]
    expected = pack(vectors, encoding).data.tobytes()
    assert pack(np.asfortranarray(vectors), encoding).data.tobytes() == expected
    assert pack(strided, encoding).data.tobytes() == expected
