"""
A load generator in a process of its own. It reads commands from stdin, one JSON object a line, and answers on stdout.

    python -m benchmarks.cluster.generator CORPUS TARGET...

`{"closed": {"seconds": 3, "in_flight": 16}}`: so many calls at a time; answered by `{"rate": R}`, calls a second.

`{"open": {"phases": [[seconds, rate], ...], "seed": 1}}`: calls at instants fixed in advance, whatever becomes of
those before them; answered by `{"starts_at": T}`. A call's latency and deadline count from its scheduled instant.

`{"finish": {"now": true, "path": FILE}}`: ends that load, or with `now` false waits for its end; answered by
`{"calls": N}` once the last call has ended, with all of them in FILE.
"""

import argparse
import asyncio
import contextvars
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import grpc
import numpy as np
import uvloop
from numpy.typing import NDArray
from trivec_client import AsyncTrivecClient, RetryPolicy, TrivecClientError
from trivec_client.clock import AsyncSystemClock

from benchmarks.cluster.calls import Calls, Outcome, write_calls
from benchmarks.cluster.corpus import Corpus, read_corpus

DEADLINE_S = 5.0
MAX_TOKENS = 64
"""No text of a corpus is longer; it is what all models here take."""
Balancing = Literal["round_robin", "least_loaded"]
_LEAD_S = 0.2
"""From the command to the first call."""
_PATIENCE_S = 5.0
"""How long after its deadline a call may end; what has not ended then never will."""
_CLOSED_TIMEOUT_S = 30.0

_retries: contextvars.ContextVar[Counter[str]] = contextvars.ContextVar("retries")


class CountingClock(AsyncSystemClock):
    """The client's clock. It waits on it before each further try, so that tries can be counted."""

    async def sleep(self, delay_s: float) -> None:
        _retries.get(Counter())["retries"] += 1
        await super().sleep(delay_s)


class Generator:
    """Sends the texts of a corpus through one or more clients, each with a connection of its own."""

    def __init__(self, corpus: Corpus, clients: list[AsyncTrivecClient]) -> None:
        self._corpus = corpus
        self._clients = clients
        self._sent = 0

    async def closed(self, *, seconds: float, in_flight: int) -> float:
        """Answered calls a second, with so many under way at a time."""
        ends_at = time.monotonic() + seconds
        done = 0

        async def keep_asking() -> None:
            nonlocal done
            while time.monotonic() < ends_at:
                outcome, _, _ = await self._call(_CLOSED_TIMEOUT_S, self._next_call())
                done += outcome is Outcome.ANSWERED

        started_at = time.monotonic()
        await asyncio.gather(*(keep_asking() for _ in range(in_flight)))
        return done / (time.monotonic() - started_at)

    async def open(self, scheduled: NDArray[np.float64], ended: asyncio.Event) -> Calls:
        """One call at each instant, until `ended` is set."""
        count = len(scheduled)
        latency_s = np.full(count, DEADLINE_S + _PATIENCE_S)
        outcome = np.full(count, Outcome.FORGOTTEN, np.uint8)
        retries = np.zeros(count, np.uint16)
        generation = np.full(count, -1, np.int8)
        errors: Counter[str] = Counter()

        async def one(number: int, due: float) -> None:
            tries: Counter[str] = Counter()
            _retries.set(tries)
            how, answered_by, error = await self._call(due + DEADLINE_S - time.monotonic(), self._next_call())
            latency_s[number] = time.monotonic() - due
            outcome[number], retries[number], generation[number] = how, tries["retries"], answered_by
            if error:
                errors[error] += 1

        tasks: set[asyncio.Task[None]] = set()
        sent = 0
        for due in scheduled.tolist():
            wait_s = due - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if ended.is_set():
                break
            task = asyncio.create_task(one(sent, due))
            sent += 1
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await _end(tasks)
        return Calls(
            scheduled[:sent],
            latency_s[:sent],
            outcome[:sent],
            retries[:sent],
            generation[:sent],
            dict(errors.most_common()),
        )

    def _next_call(self) -> int:
        self._sent += 1
        return self._sent % len(self._corpus.calls)

    async def _call(self, timeout_s: float, index: int) -> tuple[Outcome, int, str]:
        """One call: how it ended, which generation of the model answered, and the error."""
        client = self._clients[self._sent % len(self._clients)]
        try:
            vectors = (await client.encode(self._corpus.calls[index], max_length=MAX_TOKENS, timeout_s=timeout_s))[
                "dense_vecs"
            ]
        except TrivecClientError as error:
            refused = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            return Outcome.REFUSED if refused else Outcome.LOST, -1, f"{error.code.name}: {error.message}"[:200]
        answered_by = None if vectors is None else self._corpus.generation_of(index, vectors)
        if answered_by is None:
            return Outcome.WRONG, -1, "the answer is not that of these texts"
        return Outcome.ANSWERED, answered_by, ""


async def _end(tasks: set["asyncio.Task[None]"]) -> None:
    """Waits for calls; one that has not ended well after its deadline never will."""
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=DEADLINE_S + _PATIENCE_S)
        for task in left:
            task.cancel()


def make_schedule(phases: Sequence[tuple[float, float]], seed: int, starts_at: float) -> NDArray[np.float64]:
    """Instants of a Poisson process, one phase of (seconds, calls a second) after the other."""
    chance = np.random.default_rng(seed)
    instants = []
    for seconds, rate in phases:
        # Given their number, the instants of a Poisson process are evenly distributed.
        instants.append(starts_at + np.sort(chance.uniform(0, seconds, round(rate * seconds))))
        starts_at += seconds
    return np.concatenate(instants)


async def obey(generator: Generator) -> None:
    """Runs the commands from stdin until it ends."""
    loop = asyncio.get_running_loop()
    running: asyncio.Task[Calls] | None = None
    ended = asyncio.Event()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command: dict[str, Any] = json.loads(line)
        answer: dict[str, float]
        if "closed" in command:
            answer = {"rate": await generator.closed(**command["closed"])}
        elif "open" in command:
            starts_at = time.monotonic() + _LEAD_S
            ended.clear()
            running = asyncio.create_task(generator.open(make_schedule(**command["open"], starts_at=starts_at), ended))
            answer = {"starts_at": starts_at}
        else:
            assert running is not None
            if command["finish"]["now"]:
                ended.set()
            calls = await running
            write_calls(Path(command["finish"]["path"]), calls)
            answer = {"calls": len(calls)}
        print(json.dumps(answer), flush=True)


def make_client(
    targets: list[str], balancing: Balancing, hedging_delay_s: float | None, *, retries: bool
) -> AsyncTrivecClient:
    """A client as a user makes it: one target, or several to balance over."""
    retry = RetryPolicy(max_attempts=1, overload_timeout_s=0)
    if retries:
        retry = RetryPolicy(max_attempts=10, hedging_delay_s=hedging_delay_s)
    if len(targets) == 1:
        return AsyncTrivecClient(targets[0], retry=retry, clock=CountingClock())
    return AsyncTrivecClient(targets, balancing=balancing, retry=retry, clock=CountingClock())


async def run(arguments: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            make_client(
                arguments.targets,
                arguments.balancing,
                arguments.hedging_delay_s,
                retries=not arguments.no_retries,
            )
            for _ in range(arguments.connections)
        ]
        for client in clients:
            await stack.enter_async_context(client)
        await obey(Generator(read_corpus(arguments.corpus), clients))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--connections", type=int, default=2, help="clients, each with a connection of its own")
    parser.add_argument(
        "--balancing",
        choices=get_args(Balancing),
        default="round_robin",
        help="how a client chooses among several targets",
    )
    parser.add_argument("--hedging-delay-s", type=float, help="send again what is not answered by then")
    parser.add_argument("--no-retries", action="store_true", help="the first failure of a call is its end")
    # A pause of the collector would count as the servers' latency.
    gc.disable()
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
