"""What a benchmark measured, as it is kept in JSON under `benchmarks/results/`."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class SystemResult:
    """
    One system on the mixed corpus. `precision`: of an engine of Trivec. `rates` are tokens per second, one for each
    round. `cosine`: the least between its dense vectors and those of the first system measured, which shows that both
    run the same model. `failure`: why there are no figures, or None.
    """

    name: str
    outputs: str
    settings: str = ""
    precision: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    rates: list[float | None] = field(default_factory=list)
    texts: int = 0
    cosine: float | None = None
    memory_mb: float | None = None
    failure: str | None = None
    tried: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float | None:
        """The median over the rounds."""
        rates = [rate for rate in self.rates if rate is not None]
        return statistics.median(rates) if rates else None


@dataclass
class Latency:
    """Requests one after the other."""

    system: str
    what: str
    count: int
    p50_s: float
    p99_s: float


@dataclass
class LengthRate:
    """Texts of one length, all outputs."""

    system: str
    tokens: int
    tokens_per_s: float
    memory_mb: float | None = None


@dataclass
class LoadPoint:
    """So many clients, each with one short query at a time."""

    system: str
    clients: int
    texts_per_s: float
    p50_s: float
    p99_s: float


@dataclass
class Results:
    """
    One run of a benchmark. `matmul`: FLOP per second by precision, one for each round. On a GPU also `passages`, tokens
    per second of 512-token passages by system and round, short texts per second through gRPC, and the most GPU memory
    that documents of 8192 tokens took.
    """

    kind: str
    machine: dict[str, Any]
    workload: dict[str, Any]
    chosen: str
    price_per_hour: float
    currency: str = "USD"
    systems: list[SystemResult] = field(default_factory=list)
    matmul: dict[str, list[float]] = field(default_factory=dict)
    latencies: list[Latency] = field(default_factory=list)
    lengths: list[LengthRate] = field(default_factory=list)
    load: list[LoadPoint] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    passages: dict[str, list[float]] = field(default_factory=dict)
    short_texts_per_s: float | None = None
    peak_8192_gb: float | None = None

    def system(self, name: str) -> SystemResult | None:
        """The system of this name."""
        return next((system for system in self.systems if system.name == name), None)

    def write(self, path: Path) -> None:
        """As JSON; floats with six digits are enough."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(asdict(self)), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_results(path: Path) -> Results:
    """The opposite of `Results.write`."""
    data = json.loads(path.read_text(encoding="utf-8"))
    lists = {"systems": SystemResult, "latencies": Latency, "lengths": LengthRate, "load": LoadPoint}
    parts: dict[str, Any] = {name: [kind(**item) for item in data.pop(name)] for name, kind in lists.items()}
    return Results(**data, **parts)


def ratio(mine: Sequence[float | None], others: Sequence[float | None]) -> float | None:
    """The median of the rounds' ratios: in each round both were measured shortly one after the other."""
    pairs = [(a, b) for a, b in zip(mine, others, strict=False) if a is not None and b is not None]
    return statistics.median(a / b for a, b in pairs) if pairs else None


def best_of(systems: Sequence[SystemResult]) -> SystemResult | None:
    """The fastest of those that ran."""
    return max((each for each in systems if each.tokens_per_s), key=lambda each: each.tokens_per_s or 0, default=None)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return value
