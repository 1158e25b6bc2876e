"""`trivec export`: a version for one engine, with its report; and what is refused."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from trivec_client import TrivecClient
from trivec_server.repository.manifest import Manifest, read_manifest
from trivec_server.repository.pull import pull

from tests.command_line import Finished, trivec
from tests.model_settings import rename, set_backend
from tests.serving_process import serve
from tests.tiny_model import write_tiny_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With one model, `tiny`, in one version."""
    write_tiny_model(tmp_path / "checkpoint")
    pull(str(tmp_path / "checkpoint"), tmp_path / "repository", name="tiny", report=lambda _: None)
    return tmp_path / "repository"


def export(repository: Path, *flags: str) -> Finished:
    return trivec("export", "tiny", "--model-repository", repository, *flags)


def exported(repository: Path, *flags: str) -> Manifest:
    """The manifest of what an export made, as version 2."""
    done = export(repository, *flags)
    assert done.code == 0, done.err
    return read_manifest(repository / "tiny" / "2")


@pytest.mark.parametrize(
    ("engine", "precision", "cosine"),
    [
        ("onnxruntime", "float32", 1 - 1e-6),
        ("onnxruntime", "fp16", 0.9995),
        ("onnxruntime", "int8", 0.99),
        ("openvino", "float32", 1 - 1e-6),
        ("openvino", "bf16", 0.9995),
        ("openvino", "int8", 0.99),
    ],
)
def test_an_export_comes_with_the_report_of_its_accuracy(
    repository: Path, engine: str, precision: str, cosine: float
) -> None:
    manifest = exported(repository, "--engine", engine, "--precision", precision)
    assert manifest.export is not None
    assert manifest.export.engine == engine
    assert manifest.export.base_digest == read_manifest(repository / "tiny" / "1").content_digest
    assert manifest.model.precision == {"bf16": "bfloat16", "fp16": "float16"}.get(precision, precision)
    assert cosine <= manifest.export.parity.dense_cosine_min <= manifest.export.parity.dense_cosine_mean
    assert manifest.export.parity.texts > 10


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_auto_serves_the_newest_export_with_its_engine(repository: Path, engine: str) -> None:
    exported(repository, "--engine", engine, "--precision", "int8")
    with serve(repository) as server, TrivecClient(server.target) as client:
        (model,) = client.list_models()
        assert (model.version, model.engine, model.precision) == (2, engine, "int8")
        assert model.notes[0] == f"backend auto: {engine}, which this version was exported for"
        dense = client.encode(["hello world", "the"], max_length=64)["dense_vecs"]
        assert dense is not None
        assert dense.shape == (2, 32)


def test_another_engine_does_not_run_an_export(repository: Path) -> None:
    exported(repository, "--engine", "openvino")
    set_backend(repository / "tiny", "onnxruntime")
    shutil.copytree(repository / "tiny" / "1", repository / "other" / "1")
    shutil.copy(repository / "tiny" / "config.pbtxt", repository / "other")
    rename(repository / "other")
    with serve(repository) as server, TrivecClient(server.target) as client:
        other, model = client.list_models()
        assert (other.state, model.state) == ("READY", "UNAVAILABLE")
        assert "exported for the engine `openvino`, but config.pbtxt says backend `onnxruntime`" in model.state_reason


def test_a_second_export_finds_the_first(repository: Path) -> None:
    exported(repository, "--engine", "openvino")
    done = export(repository, "--engine", "openvino")
    assert done.code == 0
    assert "already: nothing to do" in done.err
    assert sorted(path.name for path in (repository / "tiny").iterdir()) == ["1", "2", "config.pbtxt"]


def test_an_export_is_made_from_the_newest_version_that_was_pulled(repository: Path) -> None:
    exported(repository, "--engine", "openvino", "--precision", "int8")
    assert export(repository, "--engine", "openvino", "--precision", "float32").code == 0
    manifest = read_manifest(repository / "tiny" / "3")
    assert manifest.export is not None
    assert manifest.export.base_digest == read_manifest(repository / "tiny" / "1").content_digest


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--engine", "openvino", "--precision", "fp16"], "openvino versions come in bfloat16, float32, int8, not in"),
        (["--engine", "openvino", "--model-version", "7"], "has no version 7; there are 1"),
        (["--engine", "nothing"], "is not one of"),
    ],
)
def test_what_cannot_be_exported_is_one_line_that_says_why(repository: Path, flags: list[str], said: str) -> None:
    done = export(repository, *flags)
    assert done.code != 0
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert sorted(path.name for path in (repository / "tiny").iterdir()) == ["1", "config.pbtxt"]


def test_a_model_that_is_not_there_is_named(repository: Path) -> None:
    done = trivec("export", "absent", "--model-repository", repository, "--engine", "openvino")
    assert done.code == 1
    assert f"{repository / 'absent'} holds no version of a model" in done.err


def test_an_export_from_a_damaged_version_is_refused(repository: Path) -> None:
    data = repository / "tiny" / "1" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 0xFF
    data.write_bytes(content)
    done = export(repository, "--engine", "openvino")
    assert done.code == 1
    assert "model.onnx.data: damaged" in done.err


def test_an_export_that_is_ended_leaves_nothing(repository: Path) -> None:
    code = """
import sys
from pathlib import Path
from trivec_server.repository.export import export_version

def report(line):
    print(line, flush=True)
    if "comparing" in line:
        sys.stdin.readline()

export_version(Path(sys.argv[1]), "tiny", "openvino", report=report)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(repository)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while "comparing" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert sorted(path.name for path in repository.rglob("*") if path.is_dir()) == ["1", "tiny"]


def test_the_report_is_in_the_manifest_for_people_to_read(repository: Path) -> None:
    exported(repository, "--engine", "openvino")
    document = json.loads((repository / "tiny" / "2" / "manifest.json").read_text(encoding="utf-8"))
    assert document["export"]["parity"]["dense_cosine_min"] > 0.9995
