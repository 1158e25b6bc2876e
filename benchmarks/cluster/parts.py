"""What there is to measure, and how long each part of it takes."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.balance import measure_slow_node
from benchmarks.cluster.events import EVENTS
from benchmarks.cluster.faults import IN_FLIGHT, POLLING, measure_way
from benchmarks.cluster.nodes import running_nodes
from benchmarks.cluster.overload import measure_overload
from benchmarks.cluster.partition import find_iptables
from benchmarks.cluster.scaling import measure_scaling
from benchmarks.cluster.sleeping import make_sleeping_repository, sleep_command
from benchmarks.cluster.small_model import SmallModel, serve_command
from benchmarks.cluster.ways import WAYS, open_way

NODES = 3
PARTS = ("faults", "sleeping", "overload-small")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure, and for how long."""

    ways: tuple[str, ...] = WAYS
    events: tuple[str, ...] = (*EVENTS, "partition")
    overload_s: float = 20.0
    capacity_s: float = 4.0
    slow_node_s: float = 8.0


def run_part(part: str, plan: Plan, folder: Path) -> dict[str, float]:
    """The figures of one part. `folder` exists and may be used by several parts."""
    if part == "faults":
        return measure_faults(plan, _new(folder, part))
    if part == "sleeping":
        return measure_sleeping(plan, _new(folder, part))
    return measure_overload_small(plan, _new(folder, part))


def measure_faults(plan: Plan, folder: Path) -> dict[str, float]:
    """Every event, by every way, on the same three nodes."""
    if "partition" in plan.events:
        find_iptables()
    found: dict[str, float] = {}
    model = SmallModel(folder)
    model.build()
    with running_nodes(folder, *[serve_command(model.repository, *POLLING)] * NODES) as nodes:
        for way in plan.ways:
            found |= measure_way(way, nodes, model, folder, list(plan.events))
    balances = [found[f"balance_{way}"] for way in plan.ways]
    return found | {"balance_max_over_mean": max(balances)}


def measure_sleeping(plan: Plan, folder: Path) -> dict[str, float]:
    """What does not depend on processors: scaling, overload, a slow node."""
    repository, corpus = make_sleeping_repository(folder)
    with running_nodes(folder, *[sleep_command(repository)] * NODES) as nodes:
        found = measure_scaling(nodes, corpus, folder, seconds=plan.capacity_s)
        with open_way("envoy", nodes, folder) as targets:
            found |= measure_overload(targets, corpus, folder, seconds=plan.overload_s, in_flight=16 * NODES)
    return found | measure_slow_node(repository, corpus, folder, seconds=plan.slow_node_s)


def measure_overload_small(plan: Plan, folder: Path) -> dict[str, float]:
    """The overload of nodes that compute, on processors that they share with who sends it."""
    model = SmallModel(folder)
    model.build()
    flags = ("--max-queue-time-s", "0.5")
    with (
        running_nodes(folder, *[serve_command(model.repository, *flags)] * NODES) as nodes,
        open_way("envoy", nodes, folder) as targets,
    ):
        return measure_overload(
            targets, model.corpus, folder, seconds=plan.overload_s, in_flight=IN_FLIGHT, suffix="_small"
        )


def _new(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path
