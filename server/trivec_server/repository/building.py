"""
A place to build a model version in, on the repository's own file system, and its move into the repository at once.

Whatever ends the building, the repository holds either the whole version or nothing of it. Who builds holds the model's
lock, so that of several who want the same only one does the work.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from trivec_server.errors import CommandError
from trivec_server.repository.lock_owner import LockOwner, read_owner
from trivec_server.repository.model_lock import CLAIM_PREFIX, LOCK_PREFIX, ModelLock, hold_model, lock_name

_PREFIX = ".building-"
_LEFTOVER = re.compile(rf"({re.escape(_PREFIX)}|{re.escape(CLAIM_PREFIX)})(?P<name>.+)\.(?P<token>[0-9a-f]{{16}})")


class BuildingSite:
    """An open building directory. `version_dir` is where the version's files are to be written."""

    def __init__(self, path: Path, lock: ModelLock) -> None:
        self._path = path
        self._lock = lock
        path.mkdir()
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
            CommandError: the version is there already, or the lock was lost.
            OSError: the move failed.
        """
        _flush(self.version_dir)
        self._lock.confirm()
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
def open_site(repository: Path, model: str, report: Callable[[str], None]) -> Iterator[BuildingSite]:
    """
    Waits until no other process, on whatever host, builds for this model, then makes a building directory in the
    repository, and the repository if need be; removes it at the end, whatever ends it. What killed processes left there
    for this model is removed first.

    Args:
        repository: The model repository.
        model: The model's name.
        report: Called with a line for the user while another process builds.

    Raises:
        CommandError: the lock was lost, and another process has removed the building directory.
        OSError: the repository cannot be written to.
    """
    made: list[Path] = []
    try:
        _make_directories(repository, made)
        with hold_model(repository, model, report) as lock:
            _remove_leftovers(repository, model)
            path = repository / f"{_PREFIX}{lock_name(model)}.{lock.owner.token}"
            try:
                yield BuildingSite(path, lock)
            except OSError:
                lock.confirm()
                raise
            finally:
                shutil.rmtree(path, ignore_errors=True)
    finally:
        for directory in reversed(made):
            with suppress(OSError):  # not empty
                directory.rmdir()


def find_buildings(repository: Path) -> dict[Path, LockOwner | None]:
    """Every building directory, with the process that builds there; None: what a process left that was killed."""
    found = {path: _LEFTOVER.fullmatch(path.name) for path in sorted(repository.glob(f"{_PREFIX}*"))}
    return {path: _builder(repository, match) for path, match in found.items() if match is not None}


def _builder(repository: Path, building: re.Match[str]) -> LockOwner | None:
    try:
        owner = read_owner((repository / f"{LOCK_PREFIX}{building['name']}").read_bytes())
    except OSError:
        return None
    return owner if owner is not None and owner.token == building["token"] and not owner.is_known_dead else None


def _remove_leftovers(repository: Path, model: str) -> None:
    """For who holds the lock and does not build yet: whatever lies there for the model is nobody's."""
    for path in (*repository.glob(f"{_PREFIX}*"), *repository.glob(f"{CLAIM_PREFIX}*")):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or match["name"] != lock_name(model):
            continue
        if path.is_dir():
            # Another host may still have a file in it open, which then goes a little later.
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _overtaken(path: Path) -> CommandError:
    return CommandError(f"{path} appeared while this version was built: pull again")


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
