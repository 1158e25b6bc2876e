"""What can happen to a cluster under load, and what each of it has cost."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from benchmarks.cluster.calls import Calls, Outcome
from benchmarks.cluster.nodes import Node
from benchmarks.cluster.small_model import SmallModel

LOAD_SHARE = 0.6
"""Of the capacity."""
KILL_CALLS = 3_050
SETTLE_S = 1.0
"""How long a window goes on after the last thing of its event."""
BEFORE_S = 1.5
DOWN_S = 1.5
HANG_S = 6.0
LOOK_S = 0.1
UPGRADE_TIMEOUT_S = 60.0
LONGEST_S = 600.0
_NOTICE_S = 0.05
"""How long a proxy that shares the processors may take to see that a killed node's connections have ended."""


@dataclass(frozen=True, slots=True)
class Window:
    """
    When an event was under way: from `starts_at` to `whole_at`, when the cluster was whole again, and SETTLE_S more.

    `kills`: from when to when a node was being killed. `generation`: the one that answers all calls from
    `whole_at` on, after an upgrade.
    """

    event: str
    quiet_from: float
    starts_at: float
    whole_at: float
    kills: tuple[tuple[float, float], ...]
    generation: int | None = None

    @property
    def ends_at(self) -> float:
        return self.whole_at + SETTLE_S


@dataclass
class Stage:
    """Three nodes under a load of `rate` calls a second, and the windows of what has happened to them."""

    nodes: list[Node]
    model: SmallModel
    rate: float
    windows: list[Window] = field(default_factory=list)
    _kills: list[tuple[float, float]] = field(default_factory=list)

    def kill(self, node: Node) -> None:
        """Kills a node, and notes from when to when: its connections end in between."""
        begins_at = time.monotonic()
        node.kill()
        self._kills.append((begins_at, time.monotonic()))

    @contextmanager
    def window(self, event: str, *, changes_model: bool = False) -> Iterator[None]:
        """An event, after a quiet time and before one."""
        quiet_from = time.monotonic()
        time.sleep(BEFORE_S)
        self._kills = []
        starts_at = time.monotonic()
        yield
        whole_at = time.monotonic()
        generation = self.model.generation if changes_model else None
        time.sleep(SETTLE_S)
        self.windows.append(Window(event, quiet_from, starts_at, whole_at, tuple(self._kills), generation))


def kill(stage: Stage) -> None:
    """kill -9 and a restart, one node after the other, until KILL_CALLS calls were due meanwhile."""
    quiet_from = time.monotonic()
    turn = 0
    with stage.window("kill"):
        while turn == 0 or (time.monotonic() - quiet_from) * stage.rate < KILL_CALLS:
            node = stage.nodes[turn % len(stage.nodes)]
            turn += 1
            stage.kill(node)
            time.sleep(DOWN_S)
            node.start()
            node.wait_ready()
            time.sleep(SETTLE_S)


def hang(stage: Stage) -> None:
    """SIGSTOP, for longer than a call's deadline, and SIGCONT."""
    node = stage.nodes[0]
    with stage.window("hang"):
        node.hang()
        time.sleep(HANG_S)
        node.resume()


def drain(stage: Stage) -> None:
    """SIGTERM, and another start once it has ended."""
    with stage.window("drain"):
        _restart(stage, stage.nodes[1])


def rolling(stage: Stage) -> None:
    """SIGTERM and a start for each node, one after the other."""
    with stage.window("rolling"):
        for node in stage.nodes:
            _restart(stage, node)
            time.sleep(SETTLE_S)


def _restart(stage: Stage, node: Node) -> None:
    code = node.stop()
    if code != 0:
        raise SystemExit(f"{node.name} ended with {code} after SIGTERM")
    node.start()
    node.wait_ready()


def upgrade(stage: Stage) -> None:
    """A new version in the repository that all nodes watch."""
    with stage.window("upgrade", changes_model=True):
        stage.model.publish()
        gives_up_at = time.monotonic() + UPGRADE_TIMEOUT_S
        while not all(node.serves_version(stage.model.version) for node in stage.nodes):
            if time.monotonic() > gives_up_at:
                raise SystemExit(
                    f"version {stage.model.version} is not served {UPGRADE_TIMEOUT_S} s after it was added"
                )
            time.sleep(LOOK_S)


EVENTS: dict[str, Callable[[Stage], None]] = {
    "kill": kill,
    "hang": hang,
    "drain": drain,
    "rolling": rolling,
    "upgrade": upgrade,
}


def figures(way: str, calls: Calls, windows: list[Window], usual_p99_s: float) -> dict[str, float]:
    """What each event has cost. A call belongs to the last event whose quiet time had begun when it was due."""
    found: dict[str, float] = {}
    for number, window in enumerate(windows):
        following = windows[number + 1].quiet_from if number + 1 < len(windows) else float("inf")
        whole = calls.between(window.quiet_from, following)
        during = calls.between(window.starts_at, window.ends_at)
        print(f"  {window.event}: {during.describe()}", flush=True)
        found[f"lost_{way}_{window.event}"] = whole.lost
        found[f"calls_{way}_{window.event}"] = len(whole)
        found[f"retried_{way}_{window.event}"] = whole.retried
        if window.event == "kill":
            found[f"inflight_{way}_kill"] = _lost_in_flight(whole, window.kills)
        else:
            found[f"p99_{way}_{window.event}"] = during.percentile_s(99) / usual_p99_s
        if window.generation is not None:
            answered = calls.between(window.whole_at, following)
            answered_by = answered.generation[answered.outcome == Outcome.ANSWERED]
            found[f"stale_{way}_{window.event}"] = int((answered_by != window.generation).sum())
            found[f"fresh_{way}_{window.event}"] = int((answered_by == window.generation).sum())
    return found


def _lost_in_flight(calls: Calls, kills: tuple[tuple[float, float], ...]) -> int:
    """Lost calls that were under way while a node was killed, or sent on a connection not yet seen to have ended."""
    ends = calls.scheduled + calls.latency_s
    under_way = np.zeros(len(calls), np.bool_)
    for begins_at, ends_at in kills:
        under_way |= (calls.scheduled <= ends_at + _NOTICE_S) & (ends >= begins_at)
    return int((under_way & (calls.outcome != Outcome.ANSWERED)).sum())
