"""
Whether the content of a version has changed: first by its files' sizes and times, then, where those differ, by SHA-256.

Times are compared for equality, never for order: a version that is put back as it was a week ago is a change as well.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple, TypeAlias

from trivec_server.errors import LoadError
from trivec_server.repository.manifest import MANIFEST_NAME, measure_file, read_manifest, verify_files


class FileMark(NamedTuple):
    """What tells at a glance that a file is another one: `path` is relative; links are followed."""

    path: str
    bytes: int
    mtime_ns: int
    device: int
    inode: int


Marks: TypeAlias = tuple[FileMark, ...]


class VersionLook(NamedTuple):
    """
    A version directory at a glance. `missing` says what is not there yet of a version whose manifest is there, or is to
    come; "" if it is whole, or has no manifest to tell.
    """

    path: Path
    marks: Marks
    missing: str = ""


def mark_file(path: Path, name: str) -> FileMark | None:
    """The mark of a file under this name; None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a manifest may list what is no name of a file
        return None
    return FileMark(name, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


def look_at_version(version_dir: Path, *, has_manifest: bool) -> VersionLook:
    """
    A version at a glance: with a manifest the files that it lists, else every file. Reads no file but the manifest.
    """
    if not has_manifest:
        marks = _mark_all(version_dir)
        return VersionLook(version_dir, marks, "" if marks else f"{version_dir}: there is no file in it")
    names = [MANIFEST_NAME]
    missing = ""
    try:
        document = json.loads((version_dir / MANIFEST_NAME).read_bytes())
    except FileNotFoundError:
        missing = f"{version_dir / MANIFEST_NAME}: not found"
    except (OSError, ValueError, RecursionError):
        missing = f"{version_dir / MANIFEST_NAME}: cannot be read, or not yet to its end"
    else:
        sizes = _listed_sizes(document)
        names += sizes
        faults = (_missing(version_dir / name, size) for name, size in sizes.items())
        missing = next(filter(None, faults), "")
    found = (mark_file(version_dir / name, name) for name in names)
    return VersionLook(version_dir, tuple(mark for mark in found if mark is not None), missing)


def content_digest(version_dir: Path, *, has_manifest: bool) -> str:
    """
    SHA-256 in lowercase hexadecimal digits over what a version is: what its manifest says, else all of its files.

    Raises:
        LoadError: a file cannot be read, or the manifest is wrong.
    """
    if has_manifest:
        return read_manifest(version_dir).content_digest
    digest = hashlib.sha256()
    for mark in _mark_all(version_dir):
        try:
            measured = measure_file(version_dir / mark.path)
        except OSError as error:
            raise LoadError(f"{version_dir / mark.path}: cannot be read: {error.strerror}") from None
        digest.update(json.dumps([mark.path, measured.bytes, measured.sha256]).encode())
    return digest.hexdigest()


def verify_content(version_dir: Path, *, has_manifest: bool) -> None:
    """
    Compares all files with the manifest, where there is one.

    Raises:
        LoadError: names the file that differs.
    """
    if has_manifest:
        verify_files(version_dir, read_manifest(version_dir))


def _mark_all(directory: Path) -> Marks:
    """Every file below a directory, in order; directories that links lead into again are not entered twice."""
    marks: list[FileMark] = []
    entered: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(directory, followlinks=True):
        try:
            status = Path(folder).stat()
        except OSError:
            # It has gone meanwhile.
            inner.clear()
            continue
        if (status.st_dev, status.st_ino) in entered:
            inner.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        for name in names:
            path = Path(folder) / name
            mark = mark_file(path, path.relative_to(directory).as_posix())
            if mark is not None:
                marks.append(mark)
    return tuple(sorted(marks))


def _listed_sizes(document: object) -> dict[str, int]:
    """The files that a manifest lists, as far as it is one: what is wrong with it, loading the version says."""
    files = document.get("files") if isinstance(document, dict) else None
    listed = files.items() if isinstance(files, dict) else ()
    return {
        name: facts["bytes"]
        for name, facts in listed
        if Path(name).name == name and isinstance(facts, dict) and isinstance(facts.get("bytes"), int)
    }


def _missing(path: Path, size: int) -> str:
    """What is missing of a listed file. A file that is too long is not being written, but wrong."""
    try:
        found = path.stat().st_size
    except (OSError, ValueError):
        return f"{path}: missing"
    return f"{path}: {found} of {size} bytes" if found < size else ""
