"""What a load brings along in place of what the repository holds: a configuration, files."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trivec_server.errors import InvalidTensor, LoadError
from trivec_server.logs import get_logger
from trivec_server.repository.scan import is_model_name

_log = get_logger(__name__)

_PREFIX = "trivec-load-"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOverride:
    """
    What a load brings along in place of what the repository holds: config.pbtxt as JSON, and files by their paths in
    the model's directory, such as `1/model.onnx`.
    """

    config_json: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    def check(self, name: str) -> None:
        """
        Checks what can be checked before anything is written.

        Raises:
            InvalidTensor: there are files and no configuration, or the model's name or a path is not that of a
                directory or file of its own.
        """
        if self.files and self.config_json is None:
            raise InvalidTensor(_refused(name, "files need the parameter `config` beside them"))
        if self.files and not is_model_name(name):
            fault = "a model that comes with files needs a name of printable text without `/`, and no dot at its start"
            raise InvalidTensor(_refused(name, fault))
        for path in self.files:
            parts = PurePosixPath(path).parts
            if not parts or path.endswith("/") or "\0" in path or parts[0] == "/" or ".." in parts:
                fault = (
                    f"`file:{path[:255]}` is not the path of a file in the model's directory, such as `1/model.onnx`"
                )
                raise InvalidTensor(_refused(name, fault))


def _refused(name: str, fault: str) -> str:
    return f"failed to load '{name[:255]}', failed to poll from model repository: {fault}"


class OverrideDirectory:
    """
    Files that a load brought along, as a model's directory in a place of its own, which is locked while this process
    lives. Its methods block.
    """

    def __init__(self, name: str, files: Mapping[str, bytes]) -> None:
        """
        Writes the files.

        Args:
            name: The model's, which `LoadOverride.check` has passed.
            files: Their contents by their paths in the model's directory.

        Raises:
            LoadError: they cannot be written.
        """
        if not is_model_name(name):
            raise LoadError(f"{name!a} is not a model name")
        self._lock: int | None = None
        try:
            self._place = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError as error:
            raise LoadError(f"a file of the load cannot be written: {error.strerror}") from None
        self.path = self._place / name
        try:
            self._lock = _locked(self._place)
            self.path.mkdir()
            for path, content in files.items():
                target = self.path / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    file.write(content)
        except OSError as error:
            self.remove()
            raise LoadError(f"a file of the load cannot be written: {error.strerror}") from None
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Removes all of it."""
        shutil.rmtree(self._place, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_leftovers() -> None:
    """Removes the files of loads of servers that were killed. Those of servers that run are locked. Blocks."""
    for place in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            lock = _locked(place)
        except OSError:
            # It is in use, or nothing that a server has left.
            continue
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                shutil.rmtree(place, ignore_errors=True)
                _log.info("files of an earlier server's load removed", directory=str(place))
        finally:
            os.close(lock)


def _locked(directory: Path) -> int:
    """
    A descriptor that locks a directory until it is closed, or the process ends, however it does.

    Raises:
        OSError: another one holds the lock, or it is not a directory that can be opened.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
