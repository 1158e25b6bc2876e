"""FlagEmbedding, run now, answers what the golden files hold and what the server answers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.numerics import grpc_calls, texts
from tests.numerics.conftest import RandomModel
from tests.numerics.embeddings import compare_embeddings, compare_scores
from tests.numerics.figures import show
from tests.numerics.golden import compare_with_golden, digest_ids, read_golden
from tests.numerics.models import SHAPES, ModelShape
from tests.numerics.reference import ReferenceAnswers, ask_reference

_TEXTS = texts.all_texts()
_GOLDEN_TOLERANCE = 1e-6

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: shape.name)
def shape(request: pytest.FixtureRequest) -> ModelShape:
    """Each model in turn."""
    chosen: ModelShape = request.param
    return chosen


@pytest.fixture(scope="module")
def reference(
    shape: ModelShape, random_models: Mapping[str, RandomModel], tmp_path_factory: pytest.TempPathFactory
) -> ReferenceAnswers:
    """What FlagEmbedding answers on this machine."""
    return ask_reference(
        random_models[shape.name].directory,
        tmp_path_factory.mktemp("reference"),
        _TEXTS,
        texts.score_pairs(),
        texts.SCORE_WEIGHTS,
    )


def test_golden_embeddings_are_what_the_reference_gives_now(shape: ModelShape, reference: ReferenceAnswers) -> None:
    golden = read_golden(shape)

    assert tuple(map(digest_ids, reference.token_ids)) == golden.token_digests
    compare_with_golden(golden, reference.embeddings, _TEXTS, tolerance=_GOLDEN_TOLERANCE).check()


def test_golden_scores_are_what_the_reference_gives_now(shape: ModelShape, reference: ReferenceAnswers) -> None:
    golden = read_golden(shape)

    np.testing.assert_allclose(golden.scores_alone, reference.scores_alone, rtol=0, atol=_GOLDEN_TOLERANCE)
    np.testing.assert_allclose(golden.scores_together, reference.scores_together, rtol=0, atol=_GOLDEN_TOLERANCE)


def test_all_texts_have_the_embeddings_of_the_reference_in_full(
    shape: ModelShape, reference: ReferenceAnswers, stub: EmbeddingServiceStub, capsys: pytest.CaptureFixture[str]
) -> None:
    actual = grpc_calls.embed_each(stub, [grpc_calls.embed_request(shape.name, [text]) for text in _TEXTS])

    differences = compare_embeddings(actual, reference.embeddings, _TEXTS)
    show(capsys, f"{shape.name}, {len(_TEXTS)} texts, largest differences: {differences.summary()}")
    differences.check()


def test_truncated_texts_have_the_embeddings_of_the_reference(
    shape: ModelShape, random_models: Mapping[str, RandomModel], tmp_path: Path, stub: EmbeddingServiceStub
) -> None:
    expected = ask_reference(random_models[shape.name].directory, tmp_path, _TEXTS, max_tokens=12)

    actual = grpc_calls.embed(stub, grpc_calls.embed_request(shape.name, _TEXTS, max_tokens=12))

    compare_embeddings(actual, expected.embeddings, _TEXTS).check()


def test_scores_are_those_of_the_reference(
    shape: ModelShape, reference: ReferenceAnswers, stub: EmbeddingServiceStub, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights, expected in zip(texts.SCORE_WEIGHTS, reference.scores_alone, strict=True):
        actual = grpc_calls.score_pairs(stub, shape.name, texts.score_pairs(), weights)

        differences = compare_scores(actual, expected)
        show(
            capsys, f"{shape.name}, {len(actual)} pairs, weights {weights}, largest difference: {differences.summary()}"
        )
        differences.check()
