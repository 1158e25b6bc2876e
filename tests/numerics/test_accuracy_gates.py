"""
What each engine and precision owes: float32 the reference's numbers to 1e-5, half precisions a dense cosine of 0.9995,
8 bits one of 0.99 and the same first passage for 98 rankings in 100.

Only on the retrieval set's 112 texts, which are whole sentences. Over the 620 texts of `make accuracy`, m3-mini has
been seen below these limits on one text, `.`: a dense cosine of 0.99947 with openvino in bfloat16; and pytorch in
float32 is up to 1.1e-5 away. First passages are counted over the dense, multi-vector and hybrid scores together, 120
rankings: of the 40 of one score a single other first passage is 2.5 in 100, and up to two were seen with int8. The
sparse score is left out: m3-mini's sparse weights are a fixed table, which no engine can get wrong.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from trivec_server.backends.hardware import cpu_has_bfloat16

from benchmarks.accuracy.candidates import Candidate, ModelVersions, build, share_model
from benchmarks.accuracy.corpus import PASSAGE_ROWS, samples, tokenize
from benchmarks.accuracy.measuring import compare_ranks
from tests.numerics.agreement import closeness, embed_sequences
from tests.numerics.conftest import RandomModel, pull
from tests.numerics.embeddings import TextEmbedding
from tests.numerics.figures import show
from tests.numerics.models import SHAPES

_TEXTS = samples(pieces=0)[: PASSAGE_ROWS.stop]
_FLOAT32_TOLERANCE = 1e-5
_LEAST_COSINE = {"bfloat16": 0.9995, "float16": 0.9995, "int8": 0.99, "float8": 0.99}
_LEAST_TOP_1 = 0.98
_RANKED = ("dense", "multi_vector", "hybrid")
_BFLOAT16 = ("bfloat16",) if cpu_has_bfloat16() else ()
_REFERENCE = Candidate("onnxruntime", "float32")


@pytest.fixture(scope="module")
def mini(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelVersions:
    return share_model(mini_repository / "m3-mini" / "1", tmp_path_factory.mktemp("accuracy") / "repository")


@pytest.fixture(scope="module")
def mini_reference(mini: ModelVersions) -> list[TextEmbedding]:
    return _embed(_REFERENCE, mini)


@pytest.fixture(scope="module")
def random_model(random_models: Mapping[str, RandomModel], tmp_path_factory: pytest.TempPathFactory) -> ModelVersions:
    repository = tmp_path_factory.mktemp("random")
    pull(str(random_models[SHAPES[0].name].directory), repository, "--name", "random")
    return ModelVersions(repository, "random")


@pytest.fixture(scope="module")
def random_reference(random_model: ModelVersions) -> list[TextEmbedding]:
    return _embed(_REFERENCE, random_model)


def test_openvino_in_float32_gives_the_numbers_of_the_reference(
    mini: ModelVersions, mini_reference: Sequence[TextEmbedding]
) -> None:
    _check_float32(_embed(Candidate("openvino", "float32"), mini), mini_reference)


@pytest.mark.parametrize("precision", _BFLOAT16)
def test_openvino_in_bfloat16_stays_close(
    precision: str, mini: ModelVersions, mini_reference: Sequence[TextEmbedding], capsys: pytest.CaptureFixture[str]
) -> None:
    _check_half(Candidate("openvino", precision), mini, mini_reference, capsys)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_8_bits_stay_close_and_put_the_same_passage_first(
    engine: str, mini: ModelVersions, mini_reference: Sequence[TextEmbedding], capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = Candidate(engine, "int8", exported=True)
    actual = _embed(candidate, mini)
    figures, ranks = closeness(actual, mini_reference), compare_ranks(actual, mini_reference)
    top_1 = sum(ranks[score].top_1 for score in _RANKED) / len(_RANKED)

    show(capsys, f"{candidate}: dense cosine at least {figures.dense_cosine_min:.6f}, same first passage {top_1:.4f}")
    assert figures.dense_cosine_min >= _LEAST_COSINE["int8"]
    assert top_1 >= _LEAST_TOP_1


@pytest.mark.torch
@pytest.mark.parametrize("engine", ["pytorch", "flagembedding"])
def test_torch_in_float32_gives_the_numbers_of_the_reference(
    engine: str, random_model: ModelVersions, random_reference: Sequence[TextEmbedding]
) -> None:
    _check_float32(_embed(Candidate(engine, "float32"), random_model), random_reference)


@pytest.mark.torch
def test_pytorch_in_bfloat16_stays_close(
    random_model: ModelVersions, random_reference: Sequence[TextEmbedding], capsys: pytest.CaptureFixture[str]
) -> None:
    _check_half(Candidate("pytorch", "bfloat16"), random_model, random_reference, capsys)


def _embed(candidate: Candidate, versions: ModelVersions) -> list[TextEmbedding]:
    sequences = tokenize(_TEXTS, versions.pulled, versions.settings)
    engine = build(candidate, versions)
    try:
        return embed_sequences(engine, sequences)
    finally:
        engine.close()


def _check_float32(actual: Sequence[TextEmbedding], expected: Sequence[TextEmbedding]) -> None:
    assert closeness(actual, expected).difference <= _FLOAT32_TOLERANCE


def _check_half(
    candidate: Candidate,
    versions: ModelVersions,
    expected: Sequence[TextEmbedding],
    capsys: pytest.CaptureFixture[str],
) -> None:
    least = closeness(_embed(candidate, versions), expected).dense_cosine_min

    show(capsys, f"{candidate}: dense cosine at least {least:.6f}")
    assert least >= _LEAST_COSINE[candidate.precision]
