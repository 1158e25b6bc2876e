"""How each kind of source, a checkpoint or the installed demonstration model, becomes the files of a version."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from trivec_server.backends.graph.spec import Precision
from trivec_server.backends.graph.write import write_graph
from trivec_server.errors import LoadError
from trivec_server.repository import mini
from trivec_server.repository.checkpoint import TOKENIZER_FILE, FileSource, open_checkpoint, plan_checkpoint
from trivec_server.repository.config_text import render_config
from trivec_server.repository.manifest import Manifest, ModelFacts, Source
from trivec_server.repository.mini_card import MODEL_CARD
from trivec_server.repository.space import SpaceNeed, check_space, format_bytes
from trivec_server.serving.tokenizer import Tokenizer

Report = Callable[[str], None]
"""Takes a line for the user."""


class Recipe(Protocol):
    """How one kind of source becomes a version."""

    @property
    def source(self) -> Source:
        """What the manifest says of the source."""

    @property
    def model_name(self) -> str:
        """The model's name where the user gives none."""

    def made(self, manifest: Manifest) -> bool:
        """Whether a version with this manifest was made by this recipe from the same source."""

    def gather(self, repository: Path, report: Report) -> None:
        """
        Brings what the build needs to this machine.

        Raises:
            CommandError: something is missing, cannot be downloaded, or there is too little disk.
        """

    def build(self, version_dir: Path) -> ModelFacts:
        """
        Writes the version's files, all but the manifest.

        Raises:
            CommandError, LoadError: the source is damaged, was refused, or is not a model that can be served.
        """

    def render_beside(self, name: str, facts: ModelFacts) -> Mapping[str, str]:
        """The files that belong beside the versions of a new model, by name."""


class CheckpointRecipe:
    """A checkpoint of BGE-M3's shape, from the hub or a directory."""

    def __init__(self, files: FileSource, model_name: str, precision: Precision) -> None:
        self._files = files
        self._precision = precision
        self.source = files.source
        self.model_name = model_name

    def made(self, manifest: Manifest) -> bool:
        """Whether the version is of the same commit and precision. A directory may have changed since."""
        same = manifest.source == self.source and manifest.model.precision == self._precision
        return same and self.source.kind == "hub"

    def gather(self, repository: Path, report: Report) -> None:
        """Reads the small files, checks that all others are there and that there is room, and downloads them."""
        self._plan = plan_checkpoint(self._files, self._precision)
        output = _repository_need(repository, self._plan.output_bytes())
        download = self._files.download_need(self._plan.files)
        check_space([output, download])
        if download.bytes:
            report(f"{self.source}: {format_bytes(download.bytes)} to download to {download.path}")
        for file_name in self._plan.files:
            self._files.fetch(file_name)
        check_space([output])

    def build(self, version_dir: Path) -> ModelFacts:
        """Writes the graph with its weights, and the tokenizer as it is."""
        checkpoint = open_checkpoint(self._files, self._plan)
        ids, rows = Tokenizer(checkpoint.tokenizer).vocabulary_size, checkpoint.spec.vocabulary_size
        if ids > rows:
            raise LoadError(f"{TOKENIZER_FILE} has {ids} ids, but the encoder has embeddings for {rows} only")
        shutil.copyfile(checkpoint.tokenizer, version_dir / TOKENIZER_FILE)
        write_graph(version_dir, checkpoint.spec, checkpoint.tensors, checkpoint.heads)
        return checkpoint.facts

    def render_beside(self, name: str, facts: ModelFacts) -> Mapping[str, str]:
        """The configuration."""
        return {"config.pbtxt": render_config(name, facts)}


class MiniRecipe:
    """The demonstration model, out of an installed package."""

    source = mini.SOURCE
    model_name = "m3-mini"
    precision = mini.SPEC.precision

    def made(self, manifest: Manifest) -> bool:
        """Whether the version is of the same package and release."""
        return manifest.source == self.source

    def gather(self, repository: Path, report: Report) -> None:
        """Checks that there is room; the package is there."""
        check_space([_repository_need(repository, mini.OUTPUT_BYTES)])

    def build(self, version_dir: Path) -> ModelFacts:
        """Writes graph and tokenizer."""
        return mini.build_mini(version_dir)

    def render_beside(self, name: str, facts: ModelFacts) -> Mapping[str, str]:
        """The configuration, with the model's prefixes, and the model card."""
        config = render_config(name, facts, query_prefix=mini.QUERY_PREFIX, passage_prefix=mini.PASSAGE_PREFIX)
        return {"config.pbtxt": config, "README.md": MODEL_CARD}


def _repository_need(repository: Path, count: int) -> SpaceNeed:
    return SpaceNeed(repository, count, "the model", "choose a --model-repository on another disk")
