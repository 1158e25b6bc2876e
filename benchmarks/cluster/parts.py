"""What there is to measure, and for how long."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.cluster.balance import measure_slow_node
from benchmarks.cluster.events import EVENTS
from benchmarks.cluster.faults import IN_FLIGHT, POLLING, measure_way
from benchmarks.cluster.nodes import Node, running_nodes
from benchmarks.cluster.overload import measure_overload
from benchmarks.cluster.scaling import measure_scaling
from benchmarks.cluster.sleeping import MAX_QUEUE_TIME_S, make_sleeping_repository, sleep_command
from benchmarks.cluster.small_model import SmallModel, serve_command
from benchmarks.cluster.ways import WAYS, open_way
from benchmarks.soak import soak

NODES = 3
USUAL_PARTS = (*WAYS, "sleeping", "soak")
PARTS = (*USUAL_PARTS, "overload-small")
"""The last says something only where the sender has processors of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """For how long to measure."""

    events: tuple[str, ...] = (*EVENTS, "partition")
    overload_s: float = 20.0
    capacity_s: float = 4.0
    slow_node_s: float = 8.0
    soak_requests: int = 200_000


SHORT = Plan(soak_requests=56_000)
"""The soak shows faults that grow fast; slow ones are seen by `make soak`."""


_OPTIONS = {"nginx": ("--open-when-loaded", "--exit-on-error")}
"""nginx does not ask for health: it would send calls to a node that listens and is not ready, or has no model."""


class Parts:
    """
    Measures one part after the other in a folder that exists. Nodes with the small model serve all the ways that want
    the same of them.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._stack = ExitStack()
        self._small: tuple[SmallModel, list[Node], tuple[str, ...]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave_nodes()

    def measure(self, part: str, events: Sequence[str] | None = None) -> dict[str, float]:
        """The figures of one of PARTS; of a way with all events, or only these."""
        if part in WAYS:
            model, nodes = self._small_nodes(_OPTIONS.get(part, ()))
            return measure_way(part, nodes, model, self._folder, self._plan.events if events is None else events)
        self._leave_nodes()
        if part == "sleeping":
            return self._measure_sleeping()
        return self._measure_overload_small() if part == "overload-small" else self._measure_soak()

    def _small_nodes(self, options: tuple[str, ...]) -> tuple[SmallModel, list[Node]]:
        if self._small is None or self._small[2] != options:
            self._leave_nodes()
            model = SmallModel(self._new_folder("small"))
            model.build()
            commands = [serve_command(model.repository, *POLLING, *options)] * NODES
            self._small = model, self._stack.enter_context(running_nodes(self._folder, *commands)), options
        return self._small[:2]

    def _leave_nodes(self) -> None:
        self._stack.close()
        self._small = None

    def _measure_sleeping(self) -> dict[str, float]:
        """What does not depend on processors: scaling, overload, a slow node."""
        folder, plan = self._new_folder("sleeping"), self._plan
        repository, corpus = make_sleeping_repository(folder)
        with running_nodes(folder, *[sleep_command(repository)] * NODES) as nodes:
            found = measure_scaling(nodes, corpus, folder, seconds=plan.capacity_s)
            with open_way("envoy", nodes, folder) as targets:
                found |= measure_overload(targets, corpus, folder, seconds=plan.overload_s, in_flight=16 * NODES)
        return found | measure_slow_node(repository, corpus, folder, seconds=plan.slow_node_s)

    def _measure_overload_small(self) -> dict[str, float]:
        """The overload of nodes that compute, on processors that they share with who sends it."""
        folder = self._new_folder("overload")
        model = SmallModel(folder)
        model.build()
        command = serve_command(model.repository, "--max-queue-time-s", str(MAX_QUEUE_TIME_S))
        with running_nodes(folder, *[command] * NODES) as nodes, open_way("envoy", nodes, folder) as targets:
            return measure_overload(
                targets, model.corpus, folder, seconds=self._plan.overload_s, in_flight=IN_FLIGHT, suffix="_small"
            )

    def _measure_soak(self) -> dict[str, float]:
        return soak(self._plan.soak_requests, 1, self._new_folder("soak"))

    def _new_folder(self, name: str) -> Path:
        number = len(list(self._folder.iterdir()))
        path = self._folder / f"{name}-{number}"
        path.mkdir()
        return path
