"""What a load brings along in place of what the repository holds: a configuration, files."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trivec_server.errors import InvalidTensor, LoadError

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
            InvalidTensor: there are files and no configuration, or a path leads out of the model's directory.
        """
        if self.files and self.config_json is None:
            raise InvalidTensor(_refused(name, "files need the parameter `config` beside them"))
        for path in self.files:
            parts = PurePosixPath(path).parts
            if not parts or path.endswith("/") or "\0" in path or parts[0] == "/" or ".." in parts:
                fault = (
                    f"`file:{path[:255]}` is not the path of a file in the model's directory, such as `1/model.onnx`"
                )
                raise InvalidTensor(_refused(name, fault))


def _refused(name: str, fault: str) -> str:
    return f"failed to load '{name}', failed to poll from model repository: {fault}"


class OverrideDirectory:
    """Files that a load brought along, as a model's directory in a place of its own. Its methods block."""

    def __init__(self, name: str, files: Mapping[str, bytes]) -> None:
        """
        Writes the files.

        Raises:
            LoadError: they cannot be written.
        """
        self._place = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.path = self._place / name
        try:
            self.path.mkdir()
            for path, content in files.items():
                target = self.path / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    file.write(content)
        except OSError as error:
            self.remove()
            raise LoadError(f"a file of the load cannot be written: {error.strerror}") from None

    def remove(self) -> None:
        """Removes all of it."""
        shutil.rmtree(self._place, ignore_errors=True)
