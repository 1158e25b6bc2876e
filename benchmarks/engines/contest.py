"""
Rounds in which every system has its turn, so that what the machine does meanwhile concerns all: figures are medians
over rounds, ratios are taken within a round.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.engines.lengths import TextSet
from benchmarks.engines.process import SystemFailed
from benchmarks.engines.results import SystemResult
from benchmarks.engines.systems import Entrant, Residents, System

_COMPARED_TEXTS = 4
_PAIR_TURNS = 3


class Contest:
    """
    The rounds over the mixed corpus, and what came of them.

    The entrants of `pair` are compared closely: they take several turns by turns, of which the median counts.
    """

    def __init__(
        self, entrants: Sequence[Entrant], texts: TextSet, residents: Residents, pair: Sequence[Entrant] = ()
    ) -> None:
        self.results = [
            SystemResult(entrant.name, entrant.outputs, texts=len(texts.texts)) for entrant in (*pair, *entrants)
        ]
        self._by_name = {result.name: result for result in self.results}
        self._entrants = entrants
        self._pair = pair
        self._texts = texts
        self._residents = residents
        self._reference: np.ndarray[tuple[int, int], np.dtype[np.float64]] | None = None

    def round(self, before_pair: Callable[[], None] = lambda: None) -> None:
        """Each system that has not failed embeds all texts; `before_pair` is called before each turn of the pair."""
        for entrant in self._entrants:
            self._add([(entrant, self._turn(entrant))])
        turns = []
        for _ in range(_PAIR_TURNS):
            before_pair()
            turns += [(entrant, self._turn(entrant)) for entrant in self._pair]
        self._add(turns)

    @property
    def working(self) -> frozenset[str]:
        """The names of the systems that have not failed."""
        return frozenset(result.name for result in self.results if result.failure is None)

    def _add(self, turns: Sequence[tuple[Entrant, float | None]]) -> None:
        """The round's rate of each entrant that had a turn."""
        for entrant in dict.fromkeys(entrant for entrant, _ in turns):
            result = self._by_name[entrant.name]
            rates = [rate for each, rate in turns if each is entrant and rate is not None]
            result.rates.append(statistics.median(rates) if result.failure is None else None)
            _say(result)

    def _turn(self, entrant: Entrant) -> float | None:
        """Tokens per second; None if it failed, now or before."""
        result = self._by_name[entrant.name]
        if result.failure is not None:
            return None
        try:
            system = self._residents.get(entrant, self._texts)
            seconds = system.embed(self._texts)
            result.memory_mb = max(result.memory_mb or 0.0, system.rss_bytes / 1e6)
            if not result.settings:
                result.settings, result.versions = system.settings, dict(system.versions)
                result.precision = system.precision
                result.cosine = self._cosine(system)
        except SystemFailed as failure:
            result.failure = str(failure)
            self._residents.end(entrant.name)
            return None
        return self._texts.tokens / seconds

    def _cosine(self, system: System) -> float | None:
        """The least over a few texts between this system's dense vectors and those of the first one that gave any."""
        rows = system.dense(self._texts.texts[:_COMPARED_TEXTS])
        if rows is None:
            return None
        vectors = np.array(rows, np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if self._reference is None:
            self._reference = vectors
        return float((vectors * self._reference).sum(axis=1).min())


def fastest_setting(candidates: Sequence[Callable[[], System]], texts: TextSet, tried: dict[str, float]) -> int:
    """
    Which of a peer's settings to measure: the one with the most tokens per second over some texts, after a warm-up.

    Args:
        candidates: Start the peer, each with one of the settings.
        texts: Enough for its batches to fill.
        tried: Is given what each reached.

    Raises:
        SystemFailed: none of them works; the first one's reason.
    """
    if len(candidates) == 1:
        return 0
    failures: list[SystemFailed] = []
    rates: dict[int, float] = {}
    for number, open_system in enumerate(candidates):
        try:
            system = open_system()
        except SystemFailed as failure:
            failures.append(failure)
            continue
        try:
            system.embed(texts.every(8))
            rates[number] = texts.tokens / system.embed(texts)
            tried[system.settings] = rates[number]
            print(f"  {system.settings}: {rates[number]:,.0f} tokens/s", flush=True)
        except SystemFailed as failure:
            failures.append(failure)
        finally:
            system.close()
    if not rates:
        raise failures[0]
    return max(rates, key=lambda number: rates[number])


def _say(result: SystemResult) -> None:
    rate = result.rates[-1]
    shown = f"{rate:,.0f} tokens/s" if rate is not None else f"failed: {result.failure}"
    print(f"{time.strftime('%H:%M:%S')} {result.name}: {shown}", flush=True)
