"""
A place to build a model version in, on the repository's own file system, and its move into the repository at once.

Whatever ends the building, the repository holds either the whole version or nothing of it.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from trivec_server.errors import CommandError

_PREFIX = ".building-"
_LOCK = "lock"


class BuildingSite:
    """An open building directory. `version_dir` is where the version's files are to be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.version_dir = path / "version"
        self.version_dir.mkdir()

    def publish(self, target: Path, beside: Mapping[str, str], *, replace: bool) -> None:
        """
        Moves the built version into the repository, all of it or nothing.

        Args:
            target: `<repository>/<model>/<version>`.
            beside: Texts of files to put beside the versions, by name. A file that is there already is kept.
            replace: Whether a version that is there already gives way.

        Raises:
            CommandError: the version is there already.
            OSError: the move failed.
        """
        _flush(self.version_dir)
        if not target.parent.exists():
            self._publish_model(target, beside)
            return
        for file_name, text in beside.items():
            self._place_file(target.parent / file_name, text)
        if target.exists() and not replace:
            raise _overtaken(target)
        self._move_into_place(target)
        _flush_directory(target.parent)

    def _publish_model(self, target: Path, beside: Mapping[str, str]) -> None:
        model_dir = self._path / "model"
        model_dir.mkdir()
        for file_name, text in beside.items():
            (model_dir / file_name).write_text(text, encoding="utf-8")
        self.version_dir.rename(model_dir / target.name)
        _flush(model_dir)
        try:
            model_dir.rename(target.parent)
        except OSError:
            if target.parent.exists():
                raise _overtaken(target.parent) from None
            raise
        _flush_directory(target.parent.parent)

    def _move_into_place(self, target: Path) -> None:
        replaced = self._path / "replaced"
        if target.exists():
            target.rename(replaced)
        try:
            self.version_dir.rename(target)
        except BaseException:
            if replaced.exists() and not target.exists():
                replaced.rename(target)
            raise

    def _place_file(self, target: Path, text: str) -> None:
        if not target.exists():
            draft = self._path / target.name
            draft.write_text(text, encoding="utf-8")
            draft.rename(target)


@contextmanager
def open_site(repository: Path) -> Iterator[BuildingSite]:
    """
    Makes a building directory in the repository, and the repository if need be; removes it at the end, whatever ends
    it. What killed processes left there is removed first.

    Raises:
        OSError: the repository cannot be written to.
    """
    made: list[Path] = []
    try:
        _make_directories(repository, made)
        _remove_leftovers(repository)
        path, lock = _make_locked(repository)
        with lock:
            try:
                yield BuildingSite(path)
            finally:
                _remove(path)
    finally:
        for directory in reversed(made):
            if not any(directory.iterdir()):
                directory.rmdir()


def _overtaken(path: Path) -> CommandError:
    return CommandError(f"{path} appeared while this version was built: pull again")


def _make_locked(repository: Path) -> tuple[Path, TextIO]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=repository))
        try:
            lock = (path / _LOCK).open("w")
        except FileNotFoundError:
            # Another pull took it for a leftover.
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (path / _LOCK).exists():
            return path, lock
        lock.close()


def _remove_leftovers(repository: Path) -> None:
    """Removes building directories whose lock nobody holds: however a process ends, the kernel drops its locks."""
    for path in repository.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # held by a pull that goes on, or just removed by one
            if not any(path.iterdir()):
                path.rmdir()
                continue
            with (path / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)


def _remove(path: Path) -> None:
    """Removes a building directory, its lock last: what is left of it, if this is cut short, is still a leftover."""
    for child in (child for child in path.iterdir() if child.name != _LOCK):
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    (path / _LOCK).unlink()
    path.rmdir()


def _make_directories(path: Path, made: list[Path]) -> None:
    """Makes a directory with its parents; adds those that were not there to `made`, the deepest last."""
    if not path.exists():
        _make_directories(path.parent, made)
        path.mkdir(exist_ok=True)
        made.append(path)


def _flush(directory: Path) -> None:
    """Brings every file below to the disk, so that a power failure after the move finds the content there."""
    for folder, _, names in os.walk(directory):
        for name in names:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        _flush_directory(Path(folder))


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
