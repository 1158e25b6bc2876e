"""The OpenVINO engine, from its own files and from a version's weights, against a plain forward pass in float64."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trivec_server.backends.graph.spec import EncoderSpec, HeadsSpec
from trivec_server.backends.graph.write import write_graph
from trivec_server.backends.hardware import cpu_has_bfloat16
from trivec_server.backends.interface import Engine, EngineOutput, EngineRequest, TokenBatch
from trivec_server.backends.openvino.engine import build_openvino
from trivec_server.backends.openvino.export import export_openvino
from trivec_server.backends.openvino.files import BIN_FILE, XML_FILE
from trivec_server.backends.weights.stored_model import open_stored_model
from trivec_server.errors import LoadError
from trivec_server.types import InstanceKind, Mode

from tests.graph_reference import (
    BERT,
    LINEAR_HEADS,
    TABLE_HEADS,
    XLM_ROBERTA,
    ArraySource,
    Forward,
    Ids,
    random_tensors,
    random_texts,
)

MODELS = ((XLM_ROBERTA, LINEAR_HEADS), (BERT, TABLE_HEADS))
LENGTHS = ((2, 3, 40), (17,), (2,), (64, 5), (33, 64, 31, 64, 2, 50), (3,) * 90)


def halved_tensors(spec: EncoderSpec) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """Random weights that float16 holds exactly, as the engine's own files store them."""
    return {name: array.astype(np.float16).astype(np.float32) for name, array in random_tensors(spec).items()}


def pulled_version(directory: Path, spec: EncoderSpec = XLM_ROBERTA, heads: HeadsSpec = LINEAR_HEADS) -> Forward:
    """Writes a version as `trivec pull` does; gives its reference."""
    tensors = halved_tensors(spec)
    directory.mkdir()
    write_graph(directory, spec, ArraySource(tensors), heads)
    return Forward(spec, heads, tensors)


def exported_version(directory: Path, precision: str = "float32", pulled: Path | None = None) -> Path:
    """Writes an export; gives its directory."""
    if pulled is None:
        pulled = directory.with_name("pulled")
        pulled_version(pulled)
    directory.mkdir()
    export_openvino(open_stored_model(pulled), directory, precision)
    return directory


def batch_of(texts: list[Ids]) -> TokenBatch:
    return TokenBatch(np.concatenate(texts), np.array([len(text) for text in texts]))


def run(engine: Engine, texts: list[Ids], modes: Mode = Mode.HYBRID) -> EngineOutput:
    return engine.run(batch_of(texts), modes)


def assert_equals_reference(engine: Engine, forward: Forward, atol: float) -> None:
    for lengths in LENGTHS:
        texts = random_texts(*lengths)
        output = run(engine, texts)
        assert output.dense is not None
        assert output.token_weights is not None
        assert output.multi_vector is not None
        ends = np.cumsum(lengths)
        weights = np.split(output.token_weights, ends[:-1])
        for row, text in enumerate(texts):
            found = (output.dense[row], weights[row], output.multi_vector[row])
            for found_part, expected_part in zip(found, forward(text), strict=True):
                np.testing.assert_allclose(found_part, expected_part, rtol=0, atol=atol)


@pytest.mark.parametrize(("spec", "heads"), MODELS)
def test_a_pulled_version_gives_the_reference_outputs(tmp_path: Path, spec: EncoderSpec, heads: HeadsSpec) -> None:
    forward = pulled_version(tmp_path / "1", spec, heads)
    engine = build_openvino(EngineRequest(version_dir=tmp_path / "1", precision="float32"))
    assert_equals_reference(engine, forward, 1e-5)
    assert "trivec export" in engine.info.notes[0]


@pytest.mark.parametrize(("spec", "heads"), MODELS)
def test_an_export_gives_the_reference_outputs(tmp_path: Path, spec: EncoderSpec, heads: HeadsSpec) -> None:
    forward = pulled_version(tmp_path / "1", spec, heads)
    exported_version(tmp_path / "2", pulled=tmp_path / "1")
    engine = build_openvino(EngineRequest(version_dir=tmp_path / "2"))
    assert_equals_reference(engine, forward, 1e-5)
    assert engine.info.precision == "float32"


def test_only_what_was_asked_for_is_given(tmp_path: Path) -> None:
    engine = build_openvino(EngineRequest(version_dir=exported_version(tmp_path / "2")))
    output = run(engine, random_texts(5, 9), Mode.SPARSE)
    assert (output.dense, output.multi_vector) == (None, None)
    assert output.token_weights is not None


def test_an_output_stays_as_it_is_when_the_engine_runs_again(tmp_path: Path) -> None:
    engine = build_openvino(EngineRequest(version_dir=exported_version(tmp_path / "2")))
    (text,) = random_texts(20)
    first = run(engine, [text])
    run(engine, [text[::-1].copy()])
    again = run(engine, [text])
    assert first.dense is not None
    assert first.token_weights is not None
    assert first.multi_vector is not None
    np.testing.assert_array_equal(first.dense, again.dense)
    np.testing.assert_array_equal(first.token_weights, again.token_weights)
    np.testing.assert_array_equal(first.multi_vector[0], (again.multi_vector or [])[0])


def test_a_text_of_more_tokens_than_shared_rows_have_gives_the_reference_outputs(tmp_path: Path) -> None:
    spec = replace(XLM_ROBERTA, layers=1, max_positions=1502)
    forward = pulled_version(tmp_path / "1", spec)
    engine = build_openvino(EngineRequest(version_dir=tmp_path / "1", precision="float32"))
    texts = random_texts(1500, 7)
    output = run(engine, texts, Mode.DENSE)
    assert output.dense is not None
    for row, text in enumerate(texts):
        np.testing.assert_allclose(output.dense[row], forward(text)[0], rtol=0, atol=1e-5)


def test_instances_of_one_version_share_a_compiled_model_and_outlive_each_other(tmp_path: Path) -> None:
    request = EngineRequest(version_dir=exported_version(tmp_path / "2"), instances=2)
    first, second = build_openvino(request), build_openvino(request)
    expected = run(first, random_texts(8)).dense
    first.close()
    np.testing.assert_array_equal(run(second, random_texts(8)).dense, expected)


def test_int8_keeps_the_dense_cosine_at_0_99(tmp_path: Path) -> None:
    forward = pulled_version(tmp_path / "1")
    engine = build_openvino(EngineRequest(version_dir=exported_version(tmp_path / "2", "int8", tmp_path / "1")))
    assert engine.info.precision == "int8"
    texts = random_texts(5, 64, 30)
    dense = run(engine, texts).dense
    assert dense is not None
    assert min(float(forward(text)[0] @ row) for text, row in zip(texts, dense, strict=True)) >= 0.99


@pytest.mark.parametrize("precision", ["float16", "float8", "int8"])
def test_a_precision_that_a_pulled_version_lacks_is_refused(tmp_path: Path, precision: str) -> None:
    pulled_version(tmp_path / "1")
    with pytest.raises(LoadError, match=precision):
        build_openvino(EngineRequest(version_dir=tmp_path / "1", precision=precision))


def test_an_int8_version_is_not_run_in_another_precision(tmp_path: Path) -> None:
    version = exported_version(tmp_path / "2", "int8")
    with pytest.raises(LoadError, match="its weights are int8"):
        build_openvino(EngineRequest(version_dir=version, precision="float32"))


def test_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="runs on the CPU"):
        build_openvino(EngineRequest(version_dir=tmp_path, kind=InstanceKind.GPU))


@pytest.mark.parametrize("name", [XML_FILE, BIN_FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    version = exported_version(tmp_path / "2")
    (version / name).unlink()
    with pytest.raises(LoadError, match=f"{name} is missing"):
        build_openvino(EngineRequest(version_dir=version))


@pytest.mark.parametrize("name", [XML_FILE, BIN_FILE])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, share: float) -> None:
    version = exported_version(tmp_path / "2")
    whole = (version / name).read_bytes()
    (version / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(LoadError, match=r"openvino\.(xml|bin).*run `trivec export` again"):
        build_openvino(EngineRequest(version_dir=version))


def test_a_graph_of_another_exporter_is_refused(tmp_path: Path) -> None:
    version = exported_version(tmp_path / "2")
    text = (version / XML_FILE).read_text()
    (version / XML_FILE).write_text(text.replace("<trivec>", "<other>").replace("</trivec>", "</other>"))
    with pytest.raises(LoadError, match="not a graph written by `trivec export`"):
        build_openvino(EngineRequest(version_dir=version))


def test_bfloat16_is_refused_where_the_cpu_lacks_it_and_near_float32_where_it_has_it(tmp_path: Path) -> None:
    forward = pulled_version(tmp_path / "1")
    request = EngineRequest(version_dir=tmp_path / "1", precision="bfloat16")
    if not cpu_has_bfloat16():
        with pytest.raises(LoadError, match="needs a CPU"):
            build_openvino(request)
        return
    texts = random_texts(5, 64, 30)
    dense = run(build_openvino(request), texts).dense
    assert dense is not None
    assert min(float(forward(text)[0] @ row) for text, row in zip(texts, dense, strict=True)) >= 0.9995
