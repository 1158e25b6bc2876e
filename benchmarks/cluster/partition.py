"""A node that cannot be reached, while it runs and serves: a firewall drops what is sent to its port and from it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.cluster.calls import Calls, Outcome
from benchmarks.cluster.nodes import Node

PARTITION_S = 6.0
HEALED_S = 6.0
PROBE_SHARE = 0.05
_SAMPLE_S = 0.25
_STRAY_S = 0.25
"""A call that takes so long, while those beside it do not, was sent to where it could not arrive."""
_BESIDE_S = 0.1
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


def figures(way: str, calls: Calls, partition: Partition, *, share_rate: float) -> dict[str, float]:
    """How long calls went on to where they could not arrive, and were away after. `share_rate`: the node's calls/s."""
    during = calls.between(partition.began_at, partition.healed_at)
    whole = calls.between(partition.began_at, float("inf"))
    print(f"  partition: {during.describe()}", flush=True)
    return {
        f"lost_{way}_partition": whole.lost,
        f"calls_{way}_partition": len(whole),
        f"partition_leave_s_{way}": _leave_s(during, partition.began_at, share_rate),
        f"partition_return_s_{way}": _return_s(partition, share_rate),
    }


def _leave_s(during: Calls, began_at: float, share_rate: float) -> float:
    """
    From the beginning to the last call that was sent to the node in vain. Single ones do not count, by which a balancer
    without health checks tries whether it is back: less than PROBE_SHARE of its calls in the second that follows.
    """
    late = (during.latency_s > _STRAY_S) | (during.retries > 0) | (during.outcome != Outcome.ANSWERED)
    strays = []
    for due in during.scheduled[late].tolist():
        beside = during.between(due - _BESIDE_S, due + _BESIDE_S)
        # When the machine stumbles, all calls are late.
        if float(np.median(beside.latency_s)) < _STRAY_S / 2:
            strays.append(due)
    followed = [due for due in strays if sum(due <= other < due + 1 for other in strays) >= PROBE_SHARE * share_rate]
    return max(followed, default=began_at) - began_at


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
