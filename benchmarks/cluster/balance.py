"""One node of three that is four times as slow."""

from pathlib import Path

from benchmarks.cluster.events import LOAD_SHARE
from benchmarks.cluster.load import running_load
from benchmarks.cluster.nodes import running_nodes
from benchmarks.cluster.sleeping import BATCH_S, sleep_command
from benchmarks.cluster.ways import open_way

SLOWER = 4
FAIR_SHARE = 1 / (1 + 2 * SLOWER)
"""The slow node's share of what the nodes together can do."""
_IN_FLIGHT = 32


def measure_slow_node(repository: Path, corpus: Path, folder: Path, *, seconds: float) -> dict[str, float]:
    """The slow node's share of the calls, behind Envoy."""
    usual, slow = sleep_command(repository), sleep_command(repository, SLOWER * BATCH_S)
    found: dict[str, float] = {"share_slow_node_fair": FAIR_SHARE}
    with (
        running_nodes(folder, usual, usual, slow) as nodes,
        open_way("envoy", nodes, folder) as targets,
        running_load(corpus, targets, folder) as load,
    ):
        capacity = load.capacity(seconds=seconds / 2, in_flight=_IN_FLIGHT)
        before = [node.answered() for node in nodes]
        load.begin((seconds, LOAD_SHARE * capacity))
        calls = load.finish(now=False)
        answered = [node.answered() - count for node, count in zip(nodes, before, strict=True)]
    print(f"slow node: capacity {capacity:.0f} calls/s; {calls.describe()}; by node {answered}", flush=True)
    return found | {"share_slow_node": answered[-1] / sum(answered), "lost_slow_node": calls.lost}
