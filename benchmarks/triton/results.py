"""What was measured, and the figures made of it."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass
class Load:
    """
    What one server did for one client, over all rounds. `rates`: texts per second; `p99s_s`: of each round;
    `latencies_s`: of each request, where the client tells them.
    """

    work: str
    client: str
    concurrency: int
    server: str
    rates: list[float] = field(default_factory=list)
    p99s_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def p99_s(self) -> float:
        """Over the requests of all rounds; else the median of the rounds."""
        if self.latencies_s:
            return float(np.percentile(self.latencies_s, 99))
        return statistics.median(self.p99s_s)

    def add(self, rate: float, latencies_s: list[float], p99_s: float | None = None) -> None:
        self.rates.append(rate)
        self.latencies_s += latencies_s
        self.p99s_s.append(float(np.percentile(latencies_s, 99)) if p99_s is None else p99_s)

    def rate_ratio(self, other: "Load") -> float:
        """The median over the rounds: in each, both were measured one after the other."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True))


class Loads:
    """All loads, by what was measured."""

    def __init__(self) -> None:
        self._loads: dict[tuple[str, str, int, str], Load] = {}

    def __iter__(self) -> Iterator[Load]:
        return iter(self._loads.values())

    def of(self, work: str, client: str, concurrency: int, server: str) -> Load:
        key = (work, client, concurrency, server)
        return self._loads.setdefault(key, Load(*key))

    def ratio(self, work: str, concurrency: int, server: str, other: str, client: str | None = None) -> float:
        """Texts per second of one server over another's; of several clients the median."""
        return statistics.median(
            mine.rate_ratio(theirs) for mine, theirs in self._pairs(work, concurrency, server, other, client)
        )

    def p99_ratio(self, work: str, concurrency: int, server: str, other: str) -> float:
        """Likewise, of the times that 99 % of the requests stay below."""
        pairs = self._pairs(work, concurrency, server, other, None)
        return statistics.median(mine.p99_s / theirs.p99_s for mine, theirs in pairs)

    def _pairs(
        self, work: str, concurrency: int, server: str, other: str, client: str | None
    ) -> list[tuple[Load, Load]]:
        return [
            (load, self.of(work, load.client, concurrency, other))
            for load in list(self)
            if (load.work, load.concurrency, load.server) == (work, concurrency, server)
            and client in {None, load.client}
        ]


def figures(loads: Loads) -> dict[str, float]:
    """The ratios that goals are set for."""
    return {
        "mixed_vs_triton_c8": loads.ratio("mixed", 8, "trivec", "triton"),
        "mixed_vs_triton_c32": loads.ratio("mixed", 32, "trivec", "triton"),
        "p99_mixed_vs_triton_c32": loads.p99_ratio("mixed", 32, "trivec", "triton"),
        "short_vs_triton_c32": loads.ratio("short", 32, "trivec", "triton"),
        "ready_vs_triton_1": loads.ratio("ready, 1 text", 32, "trivec", "triton", "bytes"),
        "ready_vs_triton_32": loads.ratio("ready, 32 texts", 32, "trivec", "triton", "bytes"),
        "ready_vs_mlserver_1": loads.ratio("ready, 1 text", 32, "trivec", "mlserver", "bytes"),
        "ready_vs_mlserver_32": loads.ratio("ready, 32 texts", 32, "trivec", "mlserver", "bytes"),
        # Of requests of one text and of 32, those where it costs more.
        "kserve_vs_embed": min(
            loads.ratio(f"calls, {count}", 32, "ModelInfer", "Embed") for count in ("1 text", "32 texts")
        ),
    }


def table(loads: Loads) -> list[str]:
    """A line for each load."""
    lines = [f"{'':18}{'client':>14}{'under way':>10}{'server':>12}{'texts/s':>11}{'p99 ms':>9}"]
    lines += [
        f"{load.work:18}{load.client:>14}{load.concurrency:>10}{load.server:>12}"
        f"{load.rate:>11,.1f}{load.p99_s * 1000:>9.1f}"
        for load in loads
    ]
    return lines


def as_json(loads: Loads) -> list[dict[str, Any]]:
    """Loads without the single requests."""
    kept = ("work", "client", "concurrency", "server", "rates")
    return [
        {key: value for key, value in asdict(load).items() if key in kept} | {"p99_s": load.p99_s} for load in loads
    ]
