"""A node that cannot be reached, while it runs and serves: a firewall drops what is sent to its port and from it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.calls import Calls, Outcome
from benchmarks.cluster.nodes import Node

PARTITION_S = 6.0
HEALED_S = 6.0
_SAMPLE_S = 0.25
_STRAY_S = 0.25
_STRAY_SHARE = 4
"""A call that takes longer than both, so many times the usual p99, or was sent again, had been sent in vain."""
_PROBES = {"envoy": 0.0, "client": 0.0, "nginx": 0.05}
"""nginx has no health checks: it tries by a call now and then whether a node is back. Of the node's usual calls."""
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Partition:
    """Instants of one partition, and (instant, calls answered so far) of the node from its end on."""

    began_at: float
    healed_at: float
    answered: list[tuple[float, int]]


def cut_off(node: Node) -> Partition:
    """Cuts a node off under load, heals that, and watches how it gets calls again."""
    with _dropped(node.grpc_port):
        began_at = time.monotonic()
        time.sleep(PARTITION_S)
    healed_at = time.monotonic()
    answered = [(healed_at, node.answered())]
    while time.monotonic() < healed_at + HEALED_S:
        time.sleep(_SAMPLE_S)
        answered.append((time.monotonic(), node.answered()))
    return Partition(began_at, healed_at, answered)


def figures(way: str, calls: Calls, partition: Partition, *, rate: float, usual_p99_s: float) -> dict[str, float]:
    """
    How long calls went on to where they could not arrive, and were away after.

    Args:
        way: to the nodes.
        calls: of the whole load.
        partition: when it was.
        rate: calls a second to a node while nothing happens.
        usual_p99_s: the p99 then.
    """
    during = calls.between(partition.began_at, partition.healed_at)
    whole = calls.between(partition.began_at, float("inf"))
    print(f"  partition: {during.describe()}", flush=True)
    late = (during.latency_s > max(_STRAY_S, _STRAY_SHARE * usual_p99_s)) | (during.outcome != Outcome.ANSWERED)
    strays = (during.scheduled[late | (during.retries > 0)] - partition.began_at).tolist()
    return {
        f"lost_{way}_partition": whole.lost,
        f"calls_{way}_partition": len(whole),
        f"retried_{way}_partition": whole.retried,
        f"partition_leave_s_{way}": _leave_s(strays, probes=_PROBES[way] * rate),
        f"partition_return_s_{way}": _return_s(partition, rate),
    }


def _leave_s(strays: list[float], *, probes: float) -> float:
    """The last of these instants, but for single ones: no more than `probes` in the second that follows."""
    return max((due for due in strays if sum(due <= other < due + 1 for other in strays) > probes), default=0.0)


def _return_s(partition: Partition, share_rate: float) -> float:
    """From the end to when the node first gets half of its fair share; infinite if it does not."""
    for (since, before), (until, after) in zip(partition.answered, partition.answered[2:], strict=False):
        if after - before >= share_rate / 2 * (until - since):
            return until - partition.healed_at
    return float("inf")


@contextmanager
def _dropped(port: int) -> Iterator[None]:
    """Packets to and from a port of the loopback interface are dropped, without a word to the sender."""
    rules = [["INPUT", "-i", "lo", "-p", "tcp", end, str(port), "-j", "DROP"] for end in ("--dport", "--sport")]
    iptables = find_iptables()
    set_up: list[list[str]] = []
    try:
        for rule in rules:
            subprocess.run([iptables, "-w", "-I", *rule], check=True)
            set_up.append(rule)
        yield
    finally:
        for rule in set_up:
            subprocess.run([iptables, "-w", "-D", *rule], check=True)


def find_iptables() -> str:
    """
    The program, which works here.

    Raises:
        SystemExit: it does not; says what is missing.
    """
    if os.geteuid() != 0:
        raise SystemExit("the partition drops packets with iptables, which only root may: run this as root")
    own = _ROOT / ".iptables" / "bin" / "iptables"
    found = str(own) if own.exists() else shutil.which("iptables", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise SystemExit("the partition needs iptables: apt-get install iptables, or `make .iptables/.ready`")
    looked = subprocess.run([found, "-w", "-S", "INPUT"], check=False, capture_output=True, text=True)
    if looked.returncode:
        raise SystemExit(f"the partition needs iptables, and here it does not work: {looked.stderr.strip()}")
    return found
