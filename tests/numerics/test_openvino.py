"""The OpenVINO engine beside the ONNX Runtime engine in float32, with m3-mini's weights and with random ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from trivec_server.backends.interface import EngineOutput, EngineRequest, TokenBatch
from trivec_server.backends.onnxruntime.engine import build_onnxruntime
from trivec_server.backends.openvino.engine import build_openvino
from trivec_server.backends.openvino.export import export_openvino
from trivec_server.backends.weights.stored_model import open_stored_model
from trivec_server.types import PAD_TOKEN_ID, Mode

from tests.numerics.conftest import RandomModel, pull

LENGTHS = ((13,), (2, 40, 3, 128), (300, 7, 64, 64))


@dataclass(frozen=True, slots=True)
class Reference:
    """A pulled version, batches, and what float32 makes of them."""

    version: Path
    batches: tuple[TokenBatch, ...]
    outputs: tuple[EngineOutput, ...]


@pytest.fixture(scope="module", params=["m3-mini", "random-64"])
def reference(
    request: pytest.FixtureRequest,
    random_models: Mapping[str, RandomModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Reference:
    repository = tmp_path_factory.mktemp("openvino")
    name = str(request.param)
    pull(str(random_models[name].directory) if name in random_models else name, repository, "--name", name)
    version = repository / name / "1"
    engine = build_onnxruntime(EngineRequest(version_dir=version))
    random = np.random.default_rng(3)
    batches = tuple(_random_batch(random, lengths) for lengths in LENGTHS)
    return Reference(version, batches, tuple(engine.run(batch, Mode.HYBRID) for batch in batches))


def _random_batch(random: np.random.Generator, lengths: tuple[int, ...]) -> TokenBatch:
    """Random texts with a literal padding id here and there."""
    ids = random.integers(5, 250000, sum(lengths))
    ids[random.random(len(ids)) < 0.03] = PAD_TOKEN_ID
    return TokenBatch(ids, np.array(lengths))


def _parts(output: EngineOutput) -> tuple[NDArray[np.float32], ...]:
    """Dense vectors, token weights, and all multi-vectors as one array."""
    assert output.dense is not None
    assert output.token_weights is not None
    assert output.multi_vector is not None
    vectors = np.concatenate(output.multi_vector)
    return output.dense.astype(np.float32), output.token_weights, vectors.astype(np.float32)


def _least_dense_cosine(reference: Reference, version: Path, precision: str | None) -> float:
    engine = build_openvino(EngineRequest(version_dir=version, precision=precision))
    pairs = [
        (_parts(engine.run(batch, Mode.HYBRID))[0], _parts(expected)[0])
        for batch, expected in zip(reference.batches, reference.outputs, strict=True)
    ]
    return min(float((found * expected).sum(axis=1).min()) for found, expected in pairs)


def test_float32_equals_the_reference_to_1e_5(reference: Reference) -> None:
    engine = build_openvino(EngineRequest(version_dir=reference.version, precision="float32"))
    for batch, expected in zip(reference.batches, reference.outputs, strict=True):
        for part, expected_part in zip(_parts(engine.run(batch, Mode.HYBRID)), _parts(expected), strict=True):
            np.testing.assert_allclose(part, expected_part, rtol=0, atol=1e-5)


def test_a_text_comes_out_the_same_alone_and_in_a_batch(reference: Reference) -> None:
    engine = build_openvino(EngineRequest(version_dir=reference.version, precision="float32"))
    batch = reference.batches[1]
    together = _parts(engine.run(batch, Mode.HYBRID))[0]
    for row, text in enumerate(np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])):
        alone = _parts(engine.run(TokenBatch(text, np.array([len(text)])), Mode.HYBRID))[0]
        np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=1e-5)


def test_what_this_cpu_computes_in_by_itself_keeps_the_dense_cosine_at_0_9995(reference: Reference) -> None:
    assert _least_dense_cosine(reference, reference.version, None) >= 0.9995


def test_int8_keeps_the_dense_cosine_at_0_99(reference: Reference, tmp_path: Path) -> None:
    export_openvino(open_stored_model(reference.version), tmp_path, "int8")
    assert _least_dense_cosine(reference, tmp_path, None) >= 0.99
