"""Responses written straight into the wire format: the generated classes must read back what went in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trivec.v1 import embedding_pb2 as pb
from trivec_server.serving.encode import bytes_per_row, prune
from trivec_server.serving.request import EmbedResult, SparseRow, Timings, VectorEncoding
from trivec_server.serving.tokenizer import Tokenizer
from trivec_server.transport.parse import OutputOptions
from trivec_server.transport.render import Part, render_embeddings, render_stream_message, split_parts, varint
from trivec_server.types import Mode

from tests.small_repository import write_tokenizer
from tests.vector_decoding import as_sent, dense_numbers, row_numbers

DIMENSIONS = (1, 7, 8, 9, 64)
LONGEST = 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("render") / "tokenizer.json"
    write_tokenizer(path)
    return Tokenizer(path)


@dataclass(frozen=True)
class Case:
    result: EmbedResult
    options: OutputOptions
    first_index: int


def make_result(
    seed: int, lengths: Sequence[int], modes: Mode, dimension: int = 8, *, largest_id: int = 999
) -> EmbedResult:
    random = np.random.default_rng(seed)

    def vectors(rows: int) -> "np.typing.NDArray[np.float32]":
        return np.asarray(random.standard_normal((rows, dimension)), np.float32)

    def sparse(length: int) -> SparseRow:
        count = int(random.integers(0, length - 1)) if length > 2 else 0
        ids = np.sort(random.choice(largest_id - 3, count, replace=False) + 4).astype(np.uint32)
        return SparseRow(ids, random.choice([0.125, 0.25, 0.5], count).astype(np.float32))

    truncated = random.random(len(lengths)) < 0.5
    return EmbedResult(
        lengths=np.array(lengths, np.int64),
        truncated=truncated,
        token_count=sum(lengths),
        truncated_count=int(truncated.sum()),
        dense=vectors(len(lengths)) if Mode.DENSE in modes else None,
        sparse=[sparse(length) for length in lengths] if Mode.SPARSE in modes else None,
        multi_vector=[vectors(length - 1) for length in lengths] if Mode.MULTI_VECTOR in modes else None,
        timings=Timings(tokenize_us=1, queue_us=2, compute_us=3),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    modes = draw(st.sampled_from([mode for mode in map(Mode, range(1, Mode.HYBRID.value + 1)) if mode]))
    lengths = draw(st.lists(st.integers(2, LONGEST), min_size=1, max_size=5))
    largest_id = draw(st.sampled_from([999, 2**21 + 5, 2**32 - 1]))
    result = make_result(draw(st.integers(0, 2**20)), lengths, modes, draw(st.sampled_from(DIMENSIONS)),
                         largest_id=largest_id)  # fmt: skip
    options = OutputOptions(
        encoding=draw(st.sampled_from(VectorEncoding)),
        sparse_top_k=draw(st.integers(0, 4)),
        sparse_min_weight=draw(st.sampled_from([0.0, 0.25])),
        return_tokens=draw(st.booleans()),
    )
    return Case(result, options, draw(st.sampled_from([0, 5, 1000])))


def rendered(case: Case, tokenizer: Tokenizer, parts: Sequence[Part] | None = None) -> list[pb.Embedding]:
    buffers = render_embeddings(case.result, case.options, tokenizer, parts, first_index=case.first_index)
    return list(pb.EmbedResponse.FromString(b"".join(buffers)).embeddings)


def check_numbers(
    sent: "np.typing.NDArray[np.float32]", original: "np.typing.NDArray[np.float32]", encoding: int
) -> None:
    if encoding == pb.VECTOR_ENCODING_INT8:
        steps = np.abs(original).max(axis=-1, keepdims=True) / 127
        assert (np.abs(sent - original) <= steps * 0.501).all()
    else:
        np.testing.assert_array_equal(sent, as_sent(original, encoding))


def check_sparse(sent: pb.SparseVector, row: SparseRow, options: OutputOptions, tokenizer: Tokenizer) -> None:
    kept = prune(row, top_k=options.sparse_top_k, min_weight=options.sparse_min_weight)
    assert list(sent.ids) == kept.ids.tolist()
    assert list(sent.weights) == kept.weights.tolist()
    expected = tokenizer.token_strings(kept.ids.tolist()) if options.return_tokens else []
    assert list(sent.tokens) == expected


def wire_encoding(encoding: VectorEncoding) -> int:
    return pb.VectorEncoding.Value(f"VECTOR_ENCODING_{encoding.name}")


@given(cases())
def test_generated_classes_read_back_every_part_of_a_unary_response(tokenizer: Tokenizer, case: Case) -> None:
    result, encoding = case.result, wire_encoding(case.options.encoding)
    embeddings = rendered(case, tokenizer)
    assert [embedding.index for embedding in embeddings] == [
        case.first_index + row for row in range(len(result.lengths))
    ]
    for row, embedding in enumerate(embeddings):
        assert embedding.token_count == result.lengths[row]
        assert embedding.truncated == result.truncated[row]
        assert embedding.HasField("dense") == (result.dense is not None)
        assert embedding.HasField("sparse") == (result.sparse is not None)
        assert embedding.HasField("multi_vector") == (result.multi_vector is not None)
        if result.dense is not None:
            assert embedding.dense.dimension == result.dense.shape[1]
            assert embedding.dense.encoding == encoding
            check_numbers(dense_numbers(embedding.dense), result.dense[row].astype(np.float32), encoding)
        if result.sparse is not None:
            check_sparse(embedding.sparse, result.sparse[row], case.options, tokenizer)
        if result.multi_vector is not None:
            sent = embedding.multi_vector
            assert (sent.rows, sent.first_row, sent.total_rows) == (result.lengths[row] - 1, 0, sent.rows)
            assert sent.dimension == result.multi_vector[row].shape[1]
            assert sent.encoding == encoding
            check_numbers(row_numbers(sent), result.multi_vector[row].astype(np.float32), encoding)


@given(cases())
def test_scales_are_sent_with_int8_only(tokenizer: Tokenizer, case: Case) -> None:
    is_int8 = case.options.encoding is VectorEncoding.INT8
    for embedding in rendered(case, tokenizer):
        assert (embedding.dense.scale != 0) == (is_int8 and embedding.HasField("dense"))
        assert len(embedding.multi_vector.scales) == (embedding.multi_vector.rows if is_int8 else 0)


@given(cases(), st.integers(1, 4000))
def test_the_messages_of_a_stream_put_together_are_the_unary_response(
    tokenizer: Tokenizer, case: Case, chunk_bytes: int
) -> None:
    whole = {embedding.index: embedding for embedding in rendered(case, tokenizer)}
    rows_seen = dict.fromkeys(whole, 0)
    last_index = case.first_index
    for parts in split_parts(case.result, case.options, chunk_bytes):
        for embedding in rendered(case, tokenizer, parts):
            expected, index = whole[embedding.index], embedding.index
            assert index >= last_index
            last_index = index
            assert (embedding.token_count, embedding.truncated) == (expected.token_count, expected.truncated)
            is_first = rows_seen[index] == 0
            assert embedding.HasField("dense") == (expected.HasField("dense") and is_first)
            assert embedding.HasField("sparse") == (expected.HasField("sparse") and is_first)
            if is_first:
                assert embedding.dense == expected.dense
                assert embedding.sparse == expected.sparse
            if expected.HasField("multi_vector"):
                sent = embedding.multi_vector
                assert sent.first_row == rows_seen[index]
                assert sent.total_rows == expected.multi_vector.total_rows
                np.testing.assert_array_equal(
                    row_numbers(sent), row_numbers(expected.multi_vector)[sent.first_row : sent.first_row + sent.rows]
                )
                rows_seen[index] += sent.rows
            else:
                rows_seen[index] = 1
    for index, expected in whole.items():
        assert rows_seen[index] == (expected.multi_vector.total_rows if expected.HasField("multi_vector") else 1)


@given(cases(), st.integers(1, 4000))
def test_a_message_of_a_stream_holds_at_most_chunk_bytes_of_vectors_or_one_row(
    tokenizer: Tokenizer, case: Case, chunk_bytes: int
) -> None:
    for parts in split_parts(case.result, case.options, chunk_bytes):
        row_bytes = 0
        if case.result.multi_vector is not None:
            row_bytes = bytes_per_row(case.result.multi_vector[0].shape[1], case.options.encoding)
        rows = sum(part.rows for part in parts)
        assert rows * row_bytes <= chunk_bytes or rows == 1


@given(cases(), st.integers(1, 4000))
def test_no_message_of_a_stream_is_empty_or_repeats_a_text(tokenizer: Tokenizer, case: Case, chunk_bytes: int) -> None:
    for parts in split_parts(case.result, case.options, chunk_bytes):
        indices = [part.index for part in parts]
        assert indices
        assert len(set(indices)) == len(indices)


def test_chunks_are_filled_so_that_no_more_messages_are_sent_than_needed() -> None:
    result = make_result(1, [11, 11, 11], Mode.MULTI_VECTOR)
    options = OutputOptions(VectorEncoding.FLOAT32, 0, 0.0, return_tokens=False)
    messages = list(split_parts(result, options, 15 * 32))
    assert [[(part.index, part.first_row, part.rows) for part in parts] for parts in messages] == [
        [(0, 0, 10), (1, 0, 5)],
        [(1, 5, 5), (2, 0, 10)],
    ]


def test_sparse_vectors_count_against_the_chunk_too() -> None:
    """Else the sparse vectors of a thousand long texts would be one message that no client accepts."""
    result = make_result(1, [LONGEST] * 50, Mode.SPARSE)
    assert result.sparse is not None
    options = OutputOptions(VectorEncoding.FLOAT32, 0, 0.0, return_tokens=False)
    for parts in split_parts(result, options, 256):
        entries = sum(len(result.sparse[part.index].ids) for part in parts)
        assert 8 * entries <= 256 or len(parts) == 1


@given(cases(), st.text(max_size=20), st.booleans())
def test_a_stream_message_is_its_id_the_response_and_the_final_flag(
    tokenizer: Tokenizer, case: Case, request_id: str, final: bool
) -> None:
    fields = pb.EmbedResponse(model="m", version=3, request_id="r").SerializeToString()
    embeddings = render_embeddings(case.result, case.options, tokenizer, first_index=case.first_index)
    message = pb.EmbedStreamResponse.FromString(render_stream_message(request_id, [fields, *embeddings], final=final))
    assert (message.id, message.final) == (request_id, final)
    assert (message.response.model, message.response.version, message.response.request_id) == ("m", 3, "r")
    assert list(message.response.embeddings) == rendered(case, tokenizer)


def test_rendering_leaves_the_result_as_it_was(tokenizer: Tokenizer) -> None:
    result = make_result(2, [5, 2, 9], Mode.HYBRID)
    assert result.dense is not None
    before = result.dense.copy()
    options = OutputOptions(VectorEncoding.INT8, 1, 0.0, return_tokens=True)
    first = rendered(Case(result, options, 0), tokenizer)
    assert rendered(Case(result, options, 0), tokenizer) == first
    np.testing.assert_array_equal(result.dense, before)


def test_tokens_beside_pruned_ids_are_those_of_the_ids_kept(tokenizer: Tokenizer) -> None:
    row = SparseRow(np.array([10, 11, 12], np.uint32), np.array([0.25, 0.5, 0.125], np.float32))
    result = make_result(3, [5], Mode.SPARSE)._replace(sparse=[row])
    options = OutputOptions(VectorEncoding.FLOAT_LIST, 2, 0.0, return_tokens=True)
    (embedding,) = rendered(Case(result, options, 0), tokenizer)
    assert list(embedding.sparse.tokens) == ["w10", "w11"]


@given(st.integers(0, 2**63))
def test_a_varint_is_what_protobuf_writes(value: int) -> None:
    assert b"\x08" + varint(value) == (pb.TokenUsage(total_tokens=value).SerializeToString() or b"\x08\x00")
