"""What three nodes answer, over what one does."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.cluster.load import running_load
from benchmarks.cluster.nodes import Node
from benchmarks.cluster.ways import open_way

_IN_FLIGHT_PER_NODE = 16
_WARM_S = 1.0


def measure_scaling(nodes: Sequence[Node], corpus: Path, folder: Path, *, seconds: float) -> dict[str, float]:
    """Both behind Envoy, one after the other. The nodes sleep, so that they do not share what they compute with."""
    rates: list[float] = []
    for some in (nodes[:1], nodes):
        in_flight = _IN_FLIGHT_PER_NODE * len(some)
        with open_way("envoy", some, folder) as targets, running_load(corpus, targets, folder) as load:
            load.capacity(seconds=_WARM_S, in_flight=in_flight)
            rates.append(load.capacity(seconds=seconds, in_flight=in_flight))
    print(f"scaling: {rates[0]:.0f} calls/s by one node, {rates[1]:.0f} by {len(nodes)}", flush=True)
    return {"scaling_3_nodes": rates[1] / rates[0]}
