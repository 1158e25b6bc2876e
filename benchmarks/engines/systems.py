"""Systems behind one seam, started and ended as memory allows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import psutil

from benchmarks.engines.lengths import TextSet
from benchmarks.engines.process import WorkerProcess


class System(Protocol):
    """A system with its model loaded. Every method may raise SystemFailed."""

    @property
    def settings(self) -> str:
        """In words."""

    @property
    def precision(self) -> str:
        """Of an engine's matrix products; empty for a peer, whose settings tell."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the packages that count."""

    @property
    def rss_bytes(self) -> int:
        """The memory of its processes."""

    def embed(self, texts: TextSet) -> float:
        """Seconds for all texts in one call."""

    def embed_each(self, texts: TextSet) -> list[float]:
        """Seconds for each text in a call of its own, one after the other."""

    def dense(self, texts: Sequence[str]) -> Sequence[Sequence[float]] | None:
        """The dense vectors; None: it has no texts to make them of."""

    def close(self) -> None:
        """Ends it."""


class PeerSystem:
    """A library in a worker process."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        self.settings = process.greeting.settings
        self.precision = ""
        self.versions = process.greeting.versions

    @property
    def rss_bytes(self) -> int:
        return tree_rss_bytes(self._process.pid)

    def embed(self, texts: TextSet) -> float:
        return self._seconds([list(texts.texts)])[0]

    def embed_each(self, texts: TextSet) -> list[float]:
        return self._seconds([[text] for text in texts.texts])

    def dense(self, texts: Sequence[str]) -> Sequence[Sequence[float]] | None:
        vectors: Sequence[Sequence[float]] = self._process.ask({"do": "dense", "texts": list(texts)})["dense"]
        return vectors

    def close(self) -> None:
        self._process.close()

    def _seconds(self, batches: list[list[str]]) -> list[float]:
        seconds: list[float] = self._process.ask({"do": "embed", "batches": batches})["seconds"]
        return seconds


class DirectSystem:
    """An engine of Trivec in a worker process, given lengths: it has no tokenizer."""

    def __init__(self, process: WorkerProcess, *, half: bool) -> None:
        self._process = process
        self._half = half
        self.settings = process.greeting.settings
        self.precision = process.greeting.versions["precision"]
        self.versions = process.greeting.versions

    @property
    def rss_bytes(self) -> int:
        return tree_rss_bytes(self._process.pid)

    def embed(self, texts: TextSet) -> float:
        return self.run([list(texts.lengths)])[0]

    def embed_each(self, texts: TextSet) -> list[float]:
        return self.run([[length] for length in texts.lengths])

    def run(self, lengths: list[list[int]]) -> list[float]:
        """Seconds for each list of lengths."""
        message = {"do": "run", "lengths": lengths, "half": self._half}
        seconds: list[float] = self._process.ask(message)["seconds"]
        return seconds

    @property
    def device_peak_bytes(self) -> int | None:
        """The most GPU memory that the engine's process has held; None: it is not known."""
        peak: int | None = self._process.ask({"do": "peak"})["peak_bytes"]
        return peak

    def dense(self, texts: Sequence[str]) -> None:
        del texts

    def close(self) -> None:
        self._process.close()


def tree_rss_bytes(pid: int) -> int:
    """Of a process and those that it started."""
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


@dataclass(frozen=True)
class Entrant:
    """A system that can be started. `bytes`: about what it will hold. `warm_step`: each so many-th text warms it up."""

    name: str
    outputs: str
    open: Callable[[], System]
    bytes: int
    warm_step: int = 1


class Residents:
    """
    Systems that stay loaded between rounds as long as memory lasts. They are asked for in turn, so the one to end is
    the one used last: its next turn is the farthest away.
    """

    def __init__(self, reserve_bytes: int) -> None:
        self._reserve_bytes = reserve_bytes
        self._open: dict[str, System] = {}

    def get(self, entrant: Entrant, warm: TextSet) -> System:
        """
        The system, started and warmed up if it is not there.

        Raises:
            SystemFailed: it cannot be started.
        """
        system = self._open.pop(entrant.name, None)
        if system is None:
            while self._open and psutil.virtual_memory().available < entrant.bytes + self._reserve_bytes:
                self.end(next(reversed(self._open)))
            system = entrant.open()
            self._open[entrant.name] = system
            system.embed(warm.every(entrant.warm_step))
        self._open[entrant.name] = system
        return system

    def end(self, name: str) -> None:
        """Ends a system, if it is there."""
        system = self._open.pop(name, None)
        if system is not None:
            system.close()

    def end_all(self) -> None:
        """Ends all."""
        for name in list(self._open):
            self.end(name)
