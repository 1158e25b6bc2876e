"""
A process that does what it is told, one line of JSON at a time: how peers in other environments are driven. Imports
nothing but Python itself.

Its argument is a JSON object: `model` (a checkpoint's directory) and the options of the module. Its first line tells
`settings` (in words) and `versions`, or `error`. Every further line answers a line of its input, of which `do` names
the operation.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol, TypeAlias

_PR_SET_PDEATHSIG = 1

Message: TypeAlias = dict[str, Any]
"""A JSON object."""

Operation: TypeAlias = Callable[[Message], Message]


class Embedder(Protocol):
    """A system with its model loaded."""

    def embed(self, texts: list[str]) -> object:
        """Everything that the system can give for the texts, ready for use; it is thrown away."""

    def dense(self, texts: list[str]) -> Sequence[Sequence[float]]:
        """The dense vectors, to see that the system computes the same model."""


@dataclass(frozen=True)
class Started:
    """What a module made ready: its settings in words, the versions that count, and what it can do."""

    settings: str
    versions: Mapping[str, str]
    operations: Mapping[str, Operation]
    close: Callable[[], None] = lambda: None


def started(
    embedder: Embedder, settings: str, packages: Sequence[str], close: Callable[[], None] = lambda: None
) -> Started:
    """An embedder's operations: `embed` times one call for each list of texts, `dense` gives vectors."""

    def embed(message: Message) -> Message:
        return {"seconds": [timed(partial(embedder.embed, texts)) for texts in message["batches"]]}

    def dense(message: Message) -> Message:
        return {"dense": [[float(number) for number in row] for row in embedder.dense(message["texts"])]}

    return Started(settings, {name: version(name) for name in packages}, {"embed": embed, "dense": dense}, close)


def timed(call: Callable[[], object]) -> float:
    """How many seconds a call takes."""
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def run_worker(start: Callable[[Message], Started]) -> None:
    """Runs the process until its input ends."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print must not get between the answers.
    os.dup2(2, 1)

    def answer(message: Message) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        ready = start(json.loads(sys.argv[1]))
    except BaseException as error:
        answer({"error": _reason(error)})
        raise
    answer({"settings": ready.settings, "versions": dict(ready.versions)})
    try:
        for line in sys.stdin:
            message: Message = json.loads(line)
            answer(ready.operations[message["do"]](message))
    except Exception as error:
        answer({"error": _reason(error)})
        raise
    finally:
        ready.close()
    # Threads that a library left behind must not hold the process.
    os._exit(0)


def end_with_parent() -> None:
    """Lets Linux end this process when the one that started it ends, however that comes about."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
