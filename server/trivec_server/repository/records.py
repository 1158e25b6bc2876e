"""What is known of a version: its state, and what serves its requests."""

import enum
from dataclasses import dataclass
from typing import TypeAlias

from trivec_server.repository.loading import LoadedVersion
from trivec_server.repository.tensor_loading import LoadedTensors
from trivec_server.serving.pipeline import Pipeline
from trivec_server.serving.tensors.pipeline import TensorPipeline
from trivec_server.types import ModelVersion

BEING_WRITTEN = "being written"
"""How the cause begins where a version, or a model, is not whole yet."""


class State(enum.Enum):
    """The lifecycle of a version, as `ModelState` in `embedding.proto`."""

    LOADING = enum.auto()
    READY = enum.auto()
    UNAVAILABLE = enum.auto()
    UNLOADING = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingVersion:
    """A version of an embedding model, to serve requests with."""

    key: ModelVersion
    loaded: LoadedVersion
    pipeline: Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorVersion:
    """A version of a model that takes tensors, to serve requests with."""

    key: ModelVersion
    loaded: LoadedTensors
    pipeline: TensorPipeline


ServedVersion: TypeAlias = EmbeddingVersion | TensorVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """
    One version and its state. `served` is there when it is READY (or UNLOADING). A model of which no version could even
    be found has one record of version 0. `interrupted`: READY, but no engine is at work until one has been built anew;
    requests wait.

    `cause` says why the version is in its state, `note` what else there is to know of it: that it serves on although a
    reload of it failed.
    """

    key: ModelVersion
    state: State
    cause: str = ""
    note: str = ""
    served: ServedVersion | None = None
    interrupted: bool = False

    @property
    def reason(self) -> str:
        """What a user is told: the cause and the note."""
        return "; ".join(filter(None, (self.cause, self.note)))

    @property
    def is_unfinished(self) -> bool:
        """Whether it is being written, or loaded."""
        return self.state is State.LOADING or self.cause.startswith(BEING_WRITTEN)

    @property
    def serves(self) -> bool:
        """What health says of it."""
        return self.state is State.READY and not self.interrupted
