"""Whether a version is another one: at a glance, and by its content."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from trivec_server.errors import LoadError
from trivec_server.repository.identity import content_digest, look_at_version, verify_content

from tests.small_repository import make_version


@pytest.fixture
def version(tmp_path: Path) -> Path:
    make_version(tmp_path / "1")
    return tmp_path / "1"


def write_files(directory: Path) -> Path:
    """A version without a manifest."""
    (directory / "weights").mkdir(parents=True)
    (directory / "model.onnx").write_bytes(b"graph")
    (directory / "weights" / "data").write_bytes(b"numbers")
    return directory


def test_a_version_at_a_glance_stays_the_same(version: Path) -> None:
    assert look_at_version(version, has_manifest=True) == look_at_version(version, has_manifest=True)


def test_with_a_manifest_only_its_files_count(version: Path) -> None:
    before = look_at_version(version, has_manifest=True)
    (version / "notes.txt").write_text("of no concern")
    assert look_at_version(version, has_manifest=True) == before
    assert [mark.path for mark in before.marks] == ["manifest.json", "tokenizer.json"]


def test_without_a_manifest_every_file_counts(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "1")
    before = look_at_version(directory, has_manifest=False)
    assert [mark.path for mark in before.marks] == ["model.onnx", "weights/data"]
    (directory / "notes.txt").write_text("of concern")
    assert look_at_version(directory, has_manifest=False) != before


def set_mtime(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns - 1))


def put_another(path: Path) -> None:
    status = path.stat()
    draft = path.with_name("draft")
    draft.write_bytes(path.read_bytes())
    os.utime(draft, ns=(status.st_atime_ns, status.st_mtime_ns))
    draft.rename(path)


@pytest.mark.parametrize(
    "change", [set_mtime, put_another, lambda path: path.write_bytes(b"longer than it was"), Path.unlink],
    ids=["an older time", "another file of the same size and time", "another size", "gone"],
)  # fmt: skip
def test_a_file_is_another_one_at_a_glance(tmp_path: Path, change: Callable[[Path], object]) -> None:
    directory = write_files(tmp_path / "1")
    before = look_at_version(directory, has_manifest=False)
    change(directory / "weights" / "data")
    assert look_at_version(directory, has_manifest=False) != before


def test_links_are_followed(tmp_path: Path) -> None:
    for name in ("old", "new"):
        write_files(tmp_path / name)
    link = tmp_path / "1"
    link.symlink_to(tmp_path / "old")
    before = look_at_version(link, has_manifest=False)
    assert before.marks == look_at_version(tmp_path / "old", has_manifest=False).marks
    link.unlink()
    link.symlink_to(tmp_path / "new")
    assert look_at_version(link, has_manifest=False) != before


def test_a_link_into_a_directory_above_is_no_endless_way(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "1")
    (directory / "weights" / "up").symlink_to(directory)
    assert len(look_at_version(directory, has_manifest=False).marks) == 2


@pytest.mark.parametrize(
    ("spoil", "missing"),
    [
        (lambda version: (version / "manifest.json").unlink(), "manifest.json: not found"),
        (lambda version: (version / "tokenizer.json").unlink(), "tokenizer.json: missing"),
        (lambda version: (version / "tokenizer.json").write_bytes(b"12345"), "tokenizer.json: 5 of "),
        (lambda version: (version / "manifest.json").write_text('{"format": 1, "mod'), "manifest.json: cannot be read"),
    ],
    ids=["no manifest", "no file", "half a file", "half a manifest"],
)
def test_what_a_version_is_waiting_for_is_named(version: Path, spoil: Callable[[Path], object], missing: str) -> None:
    assert look_at_version(version, has_manifest=True).missing == ""
    spoil(version)
    assert missing in look_at_version(version, has_manifest=True).missing


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"files": []}', '{"files": {"../x": {"bytes": 5}, "a": {}, "b": 3}}'],
    ids=repr,
)
def test_a_manifest_that_is_wrong_is_not_one_that_is_being_written(version: Path, text: str) -> None:
    """Loading it will say what is wrong."""
    (version / "manifest.json").write_text(text)
    assert look_at_version(version, has_manifest=True).missing == ""


@pytest.mark.parametrize(
    "text", ['{"files": {"a\\u0000b": {"bytes": 5}}}', "[" * 100_000], ids=["no name of a file", "deeply nested"]
)
def test_a_strange_manifest_is_looked_at_like_any_other(version: Path, text: str) -> None:
    (version / "manifest.json").write_text(text)
    assert look_at_version(version, has_manifest=True).missing


def test_a_file_that_is_too_long_is_wrong_and_not_being_written(version: Path) -> None:
    with (version / "tokenizer.json").open("a") as file:
        file.write(" ")
    assert look_at_version(version, has_manifest=True).missing == ""
    with pytest.raises(LoadError, match=r"tokenizer\.json: too long"):
        verify_content(version, has_manifest=True)


def test_without_a_manifest_an_empty_directory_is_being_written(tmp_path: Path) -> None:
    assert "there is no file in it" in look_at_version(tmp_path, has_manifest=False).missing


@pytest.mark.parametrize("has_manifest", [False, True])
def test_the_digest_is_of_the_content_alone(tmp_path: Path, has_manifest: bool) -> None:
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_version(tmp_path / name / "1")
        if name == "b":
            for path in (tmp_path / name / "1").iterdir():
                os.utime(path, (1, 1))
        digests.append(content_digest(tmp_path / name / "1", has_manifest=has_manifest))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", ["model.onnx", "weights/data"])
def test_without_a_manifest_every_file_is_part_of_the_digest(tmp_path: Path, name: str) -> None:
    directory = write_files(tmp_path / "1")
    before = content_digest(directory, has_manifest=False)
    (directory / name).write_bytes(b"another")
    assert content_digest(directory, has_manifest=False) != before


def test_the_names_of_files_are_part_of_the_digest(tmp_path: Path) -> None:
    directory = write_files(tmp_path / "1")
    before = content_digest(directory, has_manifest=False)
    (directory / "weights" / "data").rename(directory / "data")
    assert content_digest(directory, has_manifest=False) != before


def test_a_damaged_file_is_named(version: Path) -> None:
    content = (version / "tokenizer.json").read_bytes()
    (version / "tokenizer.json").write_bytes(content[:-1] + b"x")
    with pytest.raises(LoadError, match=r"tokenizer\.json: damaged"):
        verify_content(version, has_manifest=True)
