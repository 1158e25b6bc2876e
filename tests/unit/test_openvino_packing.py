"""How a batch is laid out for the OpenVINO engine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trivec_server.backends.graph.spec import EncoderSpec
from trivec_server.backends.interface import TokenBatch
from trivec_server.backends.openvino.packing import PackedBatch, pack, padded_size

from tests.graph_reference import BERT, XLM_ROBERTA


def packed(lengths: list[int]) -> PackedBatch:
    return pack(TokenBatch(np.full(sum(lengths), 7), np.array(lengths)), XLM_ROBERTA)


@given(st.lists(st.integers(2, 300), min_size=1, max_size=20))
def test_each_token_attends_exactly_the_tokens_of_its_text(lengths: list[int]) -> None:
    layout = packed(lengths)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    rows, columns = np.divmod(layout.tokens[: len(owners)], layout.cells.shape[1])
    for token, (row, column) in enumerate(zip(rows, columns, strict=True)):
        assert layout.cells[row, column] == token
        mask = layout.mask[row, 0, column if layout.mask.shape[2] > 1 else 0]
        attended = layout.cells[row][mask == 0]
        assert sorted(attended) == np.flatnonzero(owners == owners[token]).tolist()


@given(st.lists(st.integers(2, 300), min_size=1, max_size=20))
def test_a_batch_has_room_for_its_tokens_and_at_most_a_half_more_beyond_64(lengths: list[int]) -> None:
    layout, tokens = packed(lengths), sum(lengths)
    assert layout.size == len(layout.tokens) == len(layout.positions)
    assert tokens <= layout.size <= max(64, tokens * 3 / 2)


def test_short_texts_share_rows() -> None:
    layout = packed([10] * 60)
    assert layout.cells.shape == (5, 128)


def test_the_texts_of_a_batch_with_a_very_long_one_have_rows_of_their_own() -> None:
    layout = packed([2000, 10, 10])
    assert layout.cells.shape == (3, 2016)
    assert layout.mask.shape == (3, 1, 1, 2016)


def test_the_mask_of_a_single_text_does_not_grow_with_the_square_of_its_length() -> None:
    assert packed([600]).mask.shape == (1, 1, 1, 608)


@pytest.mark.parametrize(("spec", "expected"), [(XLM_ROBERTA, [2, 1, 3, 4, 2, 3, 1]), (BERT, [0, 1, 2, 3, 0, 1, 2])])
def test_a_literal_padding_id_takes_a_position_only_with_bert(spec: EncoderSpec, expected: list[int]) -> None:
    ids = np.array([0, 1, 9, 2, 0, 9, 1])
    layout = pack(TokenBatch(ids, np.array([4, 3])), spec)
    assert layout.positions[:7].tolist() == expected


def test_few_sizes_occur() -> None:
    assert len({padded_size(tokens) for tokens in range(2, 1025)}) <= 20
