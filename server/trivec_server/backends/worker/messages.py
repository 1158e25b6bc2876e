"""What the server and an engine's process say to each other. All messages are small: arrays are in shared memory."""

import traceback
from dataclasses import dataclass
from typing import TypeAlias

from trivec_server.backends.interface import EngineFactory, EngineInfo, EngineLost, EngineRequest
from trivec_server.backends.worker.memory import Layout
from trivec_server.errors import ComputeError, LoadError
from trivec_server.types import Mode

SLOTS = 2
"""Batches under way at once. Batch `number` has the areas `number % SLOTS`, one for itself, one for its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """To the process, first: the engine to build. Answered by Built or Failure."""

    factory: EngineFactory
    request: EngineRequest
    log_level: str
    log_format: str


@dataclass(frozen=True, slots=True)
class Compute:
    """To the process: a batch lies in its area. Answered, in order, by Computed or Failure."""

    number: int
    tokens: int
    texts: int
    modes: Mode
    half: bool


@dataclass(frozen=True, slots=True)
class Collect:
    """To the process: no other batch will come before this one's result."""

    number: int


@dataclass(frozen=True, slots=True)
class Close:
    """To the process, last: close the engine and end."""


@dataclass(frozen=True, slots=True)
class Built:
    """From the process: the engine is there. `overlaps`: it begins a batch while it computes another."""

    info: EngineInfo
    overlaps: bool


@dataclass(frozen=True, slots=True)
class Computed:
    """From the process: a batch's result lies in its area."""

    layout: Layout


@dataclass(frozen=True, slots=True)
class Failure:
    """From the process: what was raised there; `traceback` is empty where the message says it all."""

    kind: type[Exception]
    message: str
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """Only the errors that the seam names keep their class; any other class may not be known to the server."""
        for kind in (LoadError, ComputeError, MemoryError, EngineLost):
            if isinstance(error, kind):
                return cls(kind, str(error), "")
        text = "".join(traceback.format_exception(error))
        return cls(RuntimeError, f"{type(error).__name__}: {error}", text)

    def error(self) -> Exception:
        """To raise in the server."""
        error = self.kind(self.message)
        if self.traceback:
            error.__cause__ = ErrorInProcess(f"\n{self.traceback}")
        return error


class ErrorInProcess(Exception):
    """The traceback of an error in an engine's process, as text."""


FromProcess: TypeAlias = Built | Computed | Failure
ToProcess: TypeAlias = Build | Compute | Collect | Close
