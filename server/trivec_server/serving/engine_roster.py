"""Which of a version's engines are at work, being built anew, or gone. Owned by the event loop."""

from collections.abc import Callable
from dataclasses import dataclass

from trivec_server.metrics import ModelMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounts:
    """
    How many of a version's engines are at work, and how many are being built anew; the others are gone, for the reasons
    in `failures`.
    """

    total: int
    running: int
    restarting: int
    failures: tuple[str, ...] = ()


class EngineRoster:
    """Keeps count of the engines, by their devices' names; tells the metrics and `on_change` of every change."""

    def __init__(self, total: int, metrics: ModelMetrics, on_change: Callable[[EngineCounts], None]) -> None:
        self._total = total
        self._metrics = metrics
        self._on_change = on_change
        self._restarting: set[str] = set()
        self._failed: dict[str, str] = {}
        metrics.running_engines.set(total)

    @property
    def total(self) -> int:
        """All engines, whatever became of them."""
        return self._total

    @property
    def running(self) -> int:
        """Engines at work."""
        return self._total - len(self._restarting) - len(self._failed)

    @property
    def all_failed(self) -> bool:
        """Whether no engine is left, nor will be."""
        return len(self._failed) == self._total

    @property
    def has_others(self) -> bool:
        """Whether an engine would be left if one more were gone. May be asked on any thread."""
        return len(self._failed) + 1 < self._total

    def lost(self, name: str) -> None:
        """An engine has died and is being built anew."""
        self._restarting.add(name)
        self._tell()

    def restored(self, name: str) -> None:
        """It is at work again."""
        self._restarting.discard(name)
        self._tell()

    def failed(self, name: str, reason: str) -> None:
        """It is gone for good."""
        self._restarting.discard(name)
        self._failed[name] = reason
        self._tell()

    def _tell(self) -> None:
        counts = EngineCounts(
            total=self._total,
            running=self.running,
            restarting=len(self._restarting),
            failures=tuple(dict.fromkeys(self._failed.values())),
        )
        self._metrics.running_engines.set(counts.running)
        self._on_change(counts)
