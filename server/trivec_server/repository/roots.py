"""The directories that model repositories are, and which models are in which."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from trivec_server.repository.scan import is_model_name, list_models, shown_name

DUPLICATE = "model appears in two or more repositories"
"""Why a model cannot be served whose name is in several repositories; Triton's words."""


class Roots:
    """All repositories of a server. Every method reads directories, and blocks."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._held: dict[Path, frozenset[str]] = {}

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
            directories = list_models(root)
            for path in directories:
                found.setdefault(shown_name(path.name), []).append(path)
            if directories:
                self._held[root] = frozenset(shown_name(path.name) for path in directories)
        return dict(sorted(found.items()))

    def emptied(self, found: Mapping[str, Sequence[Path]]) -> dict[Path, frozenset[str]]:
        """
        The repositories that held models and hold none now, with the names of those: rather a volume that is not
        mounted than the wish to serve nothing. `found`: what `models` has given.
        """
        filled = {path.parent for paths in found.values() for path in paths}
        return {root: names for root, names in self._held.items() if root not in filled}

    def find(self, name: str) -> list[Path]:
        """
        The directories of one model; none if there is none of that name.

        Raises:
            CommandError: a repository is missing or cannot be read.
        """
        if not is_model_name(name):
            return []
        return self.models().get(name, [])
