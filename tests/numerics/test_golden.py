"""The served random models answer what FlagEmbedding answered when the golden files were made."""

from collections.abc import Mapping

import numpy as np
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.numerics import grpc_calls, texts
from tests.numerics.conftest import RandomModel
from tests.numerics.embeddings import TextEmbedding, compare_embeddings, compare_scores
from tests.numerics.golden import compare_with_golden, digest_ids, golden_path, read_golden
from tests.numerics.models import SHAPES, ModelShape

_TEXTS = texts.all_texts()
_SHORT_TEXTS = tuple(text for text in _TEXTS if len(text) <= 2500)
_TEXTS_PER_REQUEST = 50

pytestmark = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def test_golden_files_are_of_these_models_and_texts(
    shape: ModelShape, random_models: Mapping[str, RandomModel]
) -> None:
    golden = read_golden(shape)

    assert golden.model_digest == random_models[shape.name].digest, "the models changed: run `make golden`"
    assert golden.texts_digest == texts.digest(), "the texts changed: run `make golden`"


def test_golden_files_are_small(shape: ModelShape) -> None:
    assert golden_path(shape).stat().st_size <= 1024 * 1024


def test_every_text_has_the_token_ids_of_the_reference(shape: ModelShape, stub: EmbeddingServiceStub) -> None:
    ids = [grpc_calls.token_ids(stub, shape.name, [text])[0] for text in _TEXTS]

    different = [
        text[:40]
        for text, row, digest in zip(_TEXTS, ids, read_golden(shape).token_digests, strict=True)
        if digest_ids(row) != digest
    ]
    assert different == []


def test_ladder_reaches_from_one_piece_to_one_token_too_many(shape: ModelShape) -> None:
    counts = read_golden(shape).token_counts[-len(texts.LADDER_TOKENS) :]

    assert counts.tolist() == [min(tokens, 8192) for tokens in texts.LADDER_TOKENS]


def test_all_texts_on_one_stream_have_the_embeddings_of_the_reference(
    shape: ModelShape, stub: EmbeddingServiceStub
) -> None:
    actual = grpc_calls.embed_each(stub, [grpc_calls.embed_request(shape.name, [text]) for text in _TEXTS])

    compare_with_golden(read_golden(shape), actual, _TEXTS).check()


def test_a_text_alone_in_a_batch_and_in_a_split_request_has_the_same_embeddings(
    shape: ModelShape, stub: EmbeddingServiceStub
) -> None:
    """The request with all short texts has more tokens than a batch may have: the server splits and reassembles it."""
    alone = [grpc_calls.embed(stub, grpc_calls.embed_request(shape.name, [text]))[0] for text in _SHORT_TEXTS]
    batched: list[TextEmbedding] = []
    for start in range(0, len(_SHORT_TEXTS), _TEXTS_PER_REQUEST):
        texts_of_request = _SHORT_TEXTS[start : start + _TEXTS_PER_REQUEST]
        batched += grpc_calls.embed(stub, grpc_calls.embed_request(shape.name, texts_of_request))
    split = grpc_calls.embed(stub, grpc_calls.embed_request(shape.name, _SHORT_TEXTS))

    limits = stub.GetModel(pb.GetModelRequest(model=shape.name)).model.limits
    assert sum(embedding.token_count for embedding in split) > 2 * limits.batch_token_budget
    compare_embeddings(batched, alone, _SHORT_TEXTS).check()
    compare_embeddings(split, alone, _SHORT_TEXTS).check()


@pytest.mark.parametrize("weighting", range(len(texts.SCORE_WEIGHTS)))
def test_scores_are_those_of_compute_score_for_one_pair(
    shape: ModelShape, weighting: int, stub: EmbeddingServiceStub
) -> None:
    actual = grpc_calls.score_pairs(stub, shape.name, texts.score_pairs(), texts.SCORE_WEIGHTS[weighting])

    compare_scores(actual, read_golden(shape).scores_alone[weighting]).check()


def test_scores_are_those_of_compute_score_for_a_batch_but_for_its_padding(
    shape: ModelShape, stub: EmbeddingServiceStub
) -> None:
    """
    FlagEmbedding pads the passages of a batch with rows of zeros, so that a query token whose matches are all negative
    counts as 0. Score gives what the pair alone gives; with such tokens set to 0, it gives what the batch gave.
    """
    pairs, expected = texts.score_pairs(), read_golden(shape).scores_together[0]
    computed = np.flatnonzero(~np.isnan(expected).any(axis=1))
    actual = grpc_calls.score_pairs(stub, shape.name, pairs, texts.SCORE_WEIGHTS[0])

    for row in computed:
        query, passage = grpc_calls.embed(stub, grpc_calls.embed_request(shape.name, pairs[row]))
        best = (query.multi_vector @ passage.multi_vector.T).max(axis=1)  # [query rows]
        padding = float(np.maximum(best, 0).mean() - best.mean())
        actual[row] += padding * np.array([0, 0, 1, 0, 1 / sum(texts.SCORE_WEIGHTS[0])])

    assert len(computed) >= 20
    compare_scores(actual[computed], expected[computed]).check()
