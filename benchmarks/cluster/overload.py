"""Three times as many calls as the nodes can answer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.cluster.calls import Calls, Outcome
from benchmarks.cluster.events import LOAD_SHARE
from benchmarks.cluster.load import running_load

OVERLOAD = 3.0
_WARM_S = 2.0
_BEFORE_S = 4.0
_AFTER_S = 6.0
_SLOW = 2
"""After the overload a call is slow if it takes so many times the p99 before."""


def measure_overload(
    targets: Sequence[str], corpus: Path, folder: Path, *, seconds: float, in_flight: int, suffix: str = ""
) -> dict[str, float]:
    """Goodput over capacity, how the rest ended, and the time until all is well again. Refusals are not tried again."""
    with running_load(corpus, targets, folder, "--no-retries", "--connections", "4") as load:
        load.capacity(seconds=_WARM_S, in_flight=in_flight)
        capacity = load.capacity(seconds=2 * _WARM_S, in_flight=in_flight)
        usual = LOAD_SHARE * capacity
        starts_at = load.begin((_BEFORE_S, usual), (seconds, OVERLOAD * capacity), (_AFTER_S, usual))
        calls = load.finish(now=False)
    begins_at = starts_at + _BEFORE_S
    ends_at = begins_at + seconds
    before, during = calls.between(starts_at, begins_at), calls.between(begins_at, ends_at)
    after = calls.between(ends_at, float("inf"))
    print(f"overload{suffix}: capacity {capacity:.0f} calls/s; before: {before.describe()}")
    print(f"  during: {during.describe()}")
    print(f"  after: {after.describe()}", flush=True)
    for error, count in list(calls.errors.items())[:3]:
        print(f"  {count} x {error}")
    refused = during.latency_s[during.outcome == Outcome.REFUSED]
    return {
        f"goodput_overload{suffix}": _answered_between(calls, begins_at, ends_at) / (capacity * seconds),
        f"refused_overload{suffix}": during.count(Outcome.REFUSED) / len(during),
        f"lost_overload{suffix}": during.count(Outcome.LOST, Outcome.WRONG, Outcome.FORGOTTEN) / len(during),
        f"refusal_p99_s{suffix}": float(np.percentile(refused, 99)) if len(refused) else 0.0,
        f"recovery_s{suffix}": _recovery_s(after, ends_at, _SLOW * before.percentile_s(99)),
    }


def _answered_between(calls: Calls, starts_at: float, ends_at: float) -> int:
    """How many rightly answered calls ended then."""
    ends = calls.scheduled + calls.latency_s
    return int(((calls.outcome == Outcome.ANSWERED) & (ends >= starts_at) & (ends < ends_at)).sum())


def _recovery_s(after: Calls, ended_at: float, slow_s: float) -> float:
    """From the end of the overload to the last call that was not answered, or slowly."""
    ill = (after.outcome != Outcome.ANSWERED) | (after.latency_s > slow_s)
    return float(after.scheduled[ill].max() - ended_at) if ill.any() else 0.0
