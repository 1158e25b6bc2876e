"""
A server under mixed requests for a long time, over connections that come and go: nothing may grow. The last lines are
`name value`; the exit code is 1 if something has grown.

    python -m benchmarks.soak --requests 200000
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import grpc
import psutil
import uvloop

from benchmarks.cluster.figures import judge, print_figures
from benchmarks.soak_calls import MODEL, Caller
from tests.command_line import trivec
from tests.serving_process import ServingProcess, serve
from tests.tiny_model import write_tiny_model

REQUESTS = 200_000
CONNECTIONS = 6
IN_FLIGHT = 6
"""Calls at a time on a connection."""
CALLS_PER_CONNECTION = 250
WARM_REQUESTS = 100_000
"""
What a server holds after so many is what it is compared with: until then caches fill, pools of threads come to their
sizes, and the memory taken at the busiest moments comes to what it needs. To be there soon these requests come at
WARM_TIMES as many at a time.
"""
WARM_TIMES = 2
_MOST_WARM = 0.85
"""Of fewer requests in all, this share."""
LOOKS = 10
LOOK_REQUESTS = 4_000
"""The least between two looks."""
_REST_S = 1.0
_REST_TIMEOUT_S = 60.0
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True, slots=True)
class Held:
    """What a server holds while nothing is asked of it."""

    rss_bytes: int
    fds: int
    threads: int
    tasks: int

    def __str__(self) -> str:
        return f"{self.rss_bytes / 1e6:.1f} MB, {self.fds} files, {self.threads} threads, {self.tasks} tasks"


def look(server: ServingProcess) -> Held:
    """What it holds now."""
    process = psutil.Process(server.process.pid)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
        found = re.search(r"^trivec_event_loop_tasks (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return Held(process.memory_info().rss, process.num_fds(), process.num_threads(), round(float(found[1])))


def look_at_rest(server: ServingProcess, first: Held | None = None) -> Held:
    """
    The same, after a while in which connections and calls that have ended are forgotten.

    `first`: with what it is compared; then a longer while, as gRPC's own threads end only when they had nothing to do
    for some 20 s.
    """
    gives_up_at = time.monotonic() + _REST_TIMEOUT_S
    time.sleep(_REST_S)
    held = look(server)
    while first and time.monotonic() < gives_up_at and (held.fds > first.fds or held.threads > first.threads):
        time.sleep(_REST_S)
        held = look(server)
    return held


async def send(target: str, requests: int, random: Random, outcomes: "Counter[str]", *, times: int = 1) -> None:
    """So many requests, over `times` CONNECTIONS at a time, each for CALLS_PER_CONNECTION calls."""
    sent = 0

    async def keep_connecting() -> None:
        nonlocal sent
        while sent < requests:
            left = CALLS_PER_CONNECTION

            async def keep_calling(caller: Caller) -> None:
                nonlocal sent, left
                while left > 0 and sent < requests:
                    left -= 1
                    count = await caller.one()
                    sent += count

            async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
                caller = Caller(channel, random, outcomes)
                await asyncio.gather(*(keep_calling(caller) for _ in range(times * IN_FLIGHT)))

    await asyncio.gather(*(keep_connecting() for _ in range(times * CONNECTIONS)))


def soak(requests: int, seed: int, folder: Path) -> dict[str, float]:
    """The figures of the whole run."""
    write_tiny_model(folder / MODEL)
    repository = folder / "models"
    done = trivec("pull", folder / MODEL, "--model-repository", repository)
    assert done.code == 0, done.err
    outcomes: Counter[str] = Counter()
    random = Random(seed)  # noqa: S311 - a mixture, not secrets
    started_at = time.monotonic()
    with serve(repository, "--log-level", "error") as server:
        warm = min(WARM_REQUESTS, round(requests * _MOST_WARM))
        uvloop.run(send(server.target, warm, random, outcomes, times=WARM_TIMES))
        first = look_at_rest(server)
        print(f"after {warm:,} requests: {first}", flush=True)
        count = max(1, min(LOOKS, (requests - warm) // LOOK_REQUESTS))
        last = first
        for number in range(1, count + 1):
            uvloop.run(send(server.target, (requests - warm) // count, random, outcomes))
            last = look_at_rest(server, first if number == count else None)
            print(f"after {warm + (requests - warm) * number // count:,}: {last}", flush=True)
    print(f"{time.monotonic() - started_at:.0f} s; {', '.join(f'{count:,} {how}' for how, count in outcomes.items())}")
    return {
        "soak_requests": sum(outcomes.values()),
        "soak_failures": sum(count for how, count in outcomes.items() if how.startswith("failed")),
        "soak_rss_growth": last.rss_bytes / first.rss_bytes - 1,
        "soak_fds": last.fds - first.fds,
        "soak_threads": last.threads - first.threads,
        "soak_tasks": last.tasks - first.tasks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trivec-soak-") as folder:
        figures = soak(arguments.requests, arguments.seed, Path(folder))
    missed = judge(figures)
    for line in missed.values():
        print(f"MISSED: {line}")
    print_figures(figures)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
