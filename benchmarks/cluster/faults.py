"""The events, the balance and the partition of one way to three nodes with the small model."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster import events, partition
from benchmarks.cluster.events import LOAD_SHARE, LONGEST_S, Stage
from benchmarks.cluster.load import Load, running_load
from benchmarks.cluster.nodes import Node
from benchmarks.cluster.small_model import SmallModel
from benchmarks.cluster.ways import open_way

IN_FLIGHT = 32
WARM_S = 2.0
CAPACITY_S = 4.0
BALANCE_S = 8.0
_HEDGED = {"client": ("hang",), "nginx": ("hang", "partition")}
"""
Events that calls wait for: clients by themselves until pings tell them, through nginx until their deadlines. Hedges are
for those who do not want to. Whether clients by themselves leave a node that is cut off is seen without them.
"""

POLLING = (
    *("--model-control-mode", "poll"),
    *("--repository-poll-secs", "5", "--repository-stability-secs", "0.5"),
)
"""Not so often that the nodes, which share the processors here, would all load a new version at once."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What the load is like while nothing happens."""

    rate: float
    p99_s: float
    figures: dict[str, float]


def measure_way(way: str, nodes: list[Node], model: SmallModel, folder: Path, names: Sequence[str]) -> dict[str, float]:
    """Capacity, balance, the events of these names, and the partition if it is one of them."""
    print(f"{way}:", flush=True)
    with open_way(way, nodes, folder) as targets:
        with running_load(model.corpus, targets, folder) as load:
            usual = _measure_usual(way, load, nodes)
        found = dict(usual.figures)
        for options, some in _groups(way, usual, names):
            with running_load(model.corpus, targets, folder, *options) as load:
                measured = _measure_events(way, load, nodes, model, usual, some)
            found |= measured | {name: found.get(name, 0) + measured[name] for name in measured if _is_sum(name)}
        return found


def _groups(way: str, usual: Usual, names: Sequence[str]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Events, and the options of the clients that they are measured with."""
    # What a proxy loses of a killed node's calls is seen only if clients do not send them again.
    alone = [name for name in names if name == "kill" and way != "client"]
    hedged = [name for name in names if name in _HEDGED.get(way, ())]
    plain = [name for name in names if name not in (*alone, *hedged)]
    if alone:
        yield ("--no-retries",), alone
    if plain:
        yield (), plain
    if hedged:
        yield ("--hedging-delay-s", f"{usual.p99_s:.6f}"), hedged


def _is_sum(name: str) -> bool:
    return name.startswith(("wrong_", "forgotten_"))


def _measure_usual(way: str, load: Load, nodes: list[Node]) -> Usual:
    load.capacity(seconds=WARM_S, in_flight=IN_FLIGHT)
    capacity = load.capacity(seconds=CAPACITY_S, in_flight=IN_FLIGHT)
    rate = LOAD_SHARE * capacity
    before = [node.answered() for node in nodes]
    load.begin((BALANCE_S, rate))
    calls = load.finish(now=False)
    answered = [node.answered() - count for node, count in zip(nodes, before, strict=True)]
    print(f"  capacity {capacity:.0f} calls/s; at {LOAD_SHARE:.0%}: {calls.describe()}; by node {answered}", flush=True)
    found = {
        f"capacity_{way}": capacity,
        f"balance_{way}": max(answered) * len(nodes) / sum(answered),
    }
    return Usual(rate, calls.percentile_s(99), found)


def _measure_events(
    way: str, load: Load, nodes: list[Node], model: SmallModel, usual: Usual, names: Sequence[str]
) -> dict[str, float]:
    stage = Stage(nodes, model, usual.rate)
    load.begin((LONGEST_S, usual.rate))
    time.sleep(WARM_S)
    cut = None
    for name in names:
        if name == "partition":
            cut = partition.cut_off(nodes[2])
        else:
            events.EVENTS[name](stage)
    calls = load.finish(now=True)
    found: dict[str, float] = {f"wrong_{way}": calls.wrong, f"forgotten_{way}": calls.forgotten}
    until_cut = calls.between(0, cut.began_at if cut else float("inf"))
    found |= events.figures(way, until_cut, stage.windows, usual.p99_s)
    if cut:
        found |= partition.figures(way, calls, cut, rate=usual.rate / len(nodes), usual_p99_s=usual.p99_s)
    for error, count in list(calls.errors.items())[:5]:
        print(f"  {count} x {error}", flush=True)
    return found
