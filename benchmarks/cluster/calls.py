"""What became of each call of a load: nothing is forgotten."""

import enum
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Outcome(enum.IntEnum):
    """How a call ended. WRONG: the answer was another text's. FORGOTTEN: it did not end at all."""

    ANSWERED = 0
    REFUSED = 1
    LOST = 2
    WRONG = 3
    FORGOTTEN = 4


@dataclass(frozen=True, slots=True)
class Calls:
    """
    All calls of a load, in the order of the schedule. Instants are on the machine's monotonic clock, in seconds.

    `scheduled` float64 [n]; `latency_s` float64 [n], from the scheduled instant to the end; `outcome` uint8 [n];
    `retries` uint16 [n]: tries that failed before the last; `generation` int8 [n]: which model answered, -1: none.
    `errors`: an error's first line and how many calls ended with it, the commonest first.
    """

    scheduled: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    outcome: NDArray[np.uint8]
    retries: NDArray[np.uint16]
    generation: NDArray[np.int8]
    errors: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.scheduled)

    def between(self, starts_at: float, ends_at: float) -> "Calls":
        """The calls that were due then. Errors stay those of the whole load."""
        chosen = (self.scheduled >= starts_at) & (self.scheduled < ends_at)
        return Calls(
            self.scheduled[chosen],
            self.latency_s[chosen],
            self.outcome[chosen],
            self.retries[chosen],
            self.generation[chosen],
            self.errors,
        )

    def count(self, *outcomes: Outcome) -> int:
        """How many ended so."""
        return int(np.isin(self.outcome, outcomes).sum())

    @property
    def lost(self) -> int:
        """How many were not answered, or not rightly."""
        return len(self) - self.count(Outcome.ANSWERED)

    @property
    def wrong(self) -> int:
        """How many were answered with another text's answer."""
        return self.count(Outcome.WRONG)

    @property
    def forgotten(self) -> int:
        """How many did not end."""
        return self.count(Outcome.FORGOTTEN)

    @property
    def retried(self) -> int:
        """How many needed more than one try."""
        return int((self.retries > 0).sum())

    def percentile_s(self, share: float) -> float:
        """The latency that `share` percent of all calls stay below, whatever became of them."""
        return float(np.percentile(self.latency_s, share))

    def describe(self) -> str:
        """One line."""
        outcomes = ", ".join(f"{self.count(outcome)} {outcome.name.lower()}" for outcome in Outcome)
        return (
            f"{len(self)} calls: {outcomes}; {self.retried} retried; "
            f"p50 {self.percentile_s(50) * 1000:.1f} ms, p99 {self.percentile_s(99) * 1000:.1f} ms, "
            f"max {self.latency_s.max() * 1000:.0f} ms"
        )


def write_calls(path: Path, calls: Calls) -> None:
    np.savez(
        path,
        scheduled=calls.scheduled,
        latency_s=calls.latency_s,
        outcome=calls.outcome,
        retries=calls.retries,
        generation=calls.generation,
        errors=np.array(list(calls.errors), dtype=np.str_),
        error_counts=np.array(list(calls.errors.values()), np.int64),
    )


def read_calls(path: Path) -> Calls:
    with np.load(path) as arrays:
        errors = dict(zip(arrays["errors"].tolist(), arrays["error_counts"].tolist(), strict=True))
        return Calls(
            arrays["scheduled"],
            arrays["latency_s"],
            arrays["outcome"],
            arrays["retries"],
            arrays["generation"],
            errors,
        )
