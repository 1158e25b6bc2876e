"""The directories that model repositories are, and which models are in which."""

from collections.abc import Sequence
from pathlib import Path

from trivec_server.repository.scan import is_model_name, list_models

DUPLICATE = "model appears in two or more repositories"
"""Why a model cannot be served whose name is in several repositories; Triton's words."""


class Roots:
    """All repositories of a server. Every method reads directories, and blocks."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    def __str__(self) -> str:
        return ", ".join(map(str, self._paths))

    def models(self) -> dict[str, list[Path]]:
        """
        The directories of every model, by name; of one that can be served there is one.

        Raises:
            CommandError: a repository is missing or cannot be read.
        """
        found: dict[str, list[Path]] = {}
        for root in self._paths:
            for path in list_models(root):
                found.setdefault(path.name, []).append(path)
        return dict(sorted(found.items()))

    def find(self, name: str) -> list[Path]:
        """
        The directories of one model; none if there is none of that name.

        Raises:
            CommandError: a repository is missing or cannot be read.
        """
        if not is_model_name(name):
            return []
        return self.models().get(name, [])
