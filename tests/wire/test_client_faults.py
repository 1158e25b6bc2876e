"""The client of three server processes, of which one is killed, hangs, drains or is slow under load."""

import asyncio
import queue
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from trivec_client import TrivecClientError

from tests.rpc.client_calls import KINDS, AnyClient, Kind, connect
from tests.rpc.running_server import until
from tests.scripted_engine import expected_dense
from tests.small_repository import ids_of, make_repository
from tests.wire.scripted_process import ScriptedProcess, scripted_process

CALLERS = 6
PAUSE_S = 0.01
"""Between the calls of one caller: the load is to be steady, not all that the machine can do."""
TIMEOUT_S = 5.0
PATIENCE_S = 30.0
TEXT = "w10 w11 w12"


@dataclass
class Node:
    """One server of three; started again on the same port after it has ended."""

    repository: Path
    processes: ExitStack
    process: ScriptedProcess = field(init=False)
    port: int = 0

    def begin(self) -> None:
        serving = scripted_process(self.repository, grpc_port=self.port, drain_pause_s=0.5)
        self.process = self.processes.enter_context(serving)

    def wait_until_loaded(self) -> None:
        port, _ = self.process.expect("loaded")
        self.port = int(port)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def batches(self) -> int:
        """Batches that the server has begun since the last time it was asked."""
        count = 0
        while True:
            try:
                count += self.process.said.get_nowait().startswith("entered")
            except queue.Empty:
                return count


@dataclass
class Load:
    """What came of the calls until now. `lost` must stay empty."""

    answered: list[int] = field(default_factory=lambda: [0] * CALLERS)
    lost: list[TrivecClientError] = field(default_factory=list)

    async def go_on(self, calls: int) -> None:
        """Waits until every caller has got so many answers more, the call that is under way not counted."""
        wanted = [count + calls + 1 for count in self.answered]
        await until(
            lambda: bool(self.lost) or all(have >= want for have, want in zip(self.answered, wanted, strict=True))
        )
        assert self.lost == []


@asynccontextmanager
async def load(client: AnyClient) -> AsyncIterator[Load]:
    """Calls that follow one another, unary and streamed in turn, each with its deadline, while the block runs."""
    running = Load()
    over = asyncio.Event()

    async def call_again_and_again(caller: int) -> None:
        while not over.is_set():
            try:
                output = await client.call(
                    "encode", TEXT, return_colbert_vecs=bool(caller % 2), timeout_s=TIMEOUT_S, max_length=64
                )
            except TrivecClientError as error:
                running.lost.append(error)
            else:
                np.testing.assert_allclose(output["dense_vecs"], expected_dense(ids_of(TEXT)), atol=1e-6)
                running.answered[caller] += 1
            await asyncio.sleep(PAUSE_S)

    callers = [asyncio.create_task(call_again_and_again(caller)) for caller in range(CALLERS)]
    try:
        yield running
    finally:
        over.set()
        await asyncio.gather(*callers)
    assert running.lost == []


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    with ExitStack() as processes:
        made = []
        for number in range(3):
            directory = tmp_path_factory.mktemp(f"node{number}")
            made.append(Node(make_repository(directory / "repository"), processes))
        for node in made:
            node.begin()
        for node in made:
            node.wait_until_loaded()
        yield made


@pytest.fixture(params=KINDS)
async def running(request: pytest.FixtureRequest, nodes: list[Node]) -> AsyncIterator[Load]:
    """Load on all three nodes."""
    kind: Kind = request.param
    for node in nodes:
        node.batches()
    async with connect(kind, [node.target for node in nodes]) as client, load(client) as running:
        for node in nodes:
            await until(lambda node=node: node.batches() > 0)  # type: ignore[misc]
        yield running


async def test_no_call_is_lost_when_a_node_is_killed_and_it_gets_calls_again_when_it_is_back(
    running: Load, nodes: list[Node]
) -> None:
    nodes[0].process.signal(signal.SIGKILL)
    await running.go_on(20)
    await asyncio.to_thread(nodes[0].process.wait)
    nodes[0].begin()
    await asyncio.to_thread(nodes[0].wait_until_loaded)
    await until(lambda: nodes[0].batches() > 0)
    await running.go_on(5)


async def test_no_call_is_lost_when_a_node_hangs_and_it_gets_calls_again_when_it_goes_on(
    running: Load, nodes: list[Node]
) -> None:
    nodes[1].process.signal(signal.SIGSTOP)
    try:
        await running.go_on(20)
    finally:
        nodes[1].process.signal(signal.SIGCONT)
    nodes[1].batches()
    await until(lambda: nodes[1].batches() > 0)
    await running.go_on(5)


async def test_no_call_is_lost_when_a_node_drains(running: Load, nodes: list[Node]) -> None:
    nodes[2].process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(nodes[2].process.wait) == 0
    await running.go_on(5)
    nodes[2].begin()
    await asyncio.to_thread(nodes[2].wait_until_loaded)
    await until(lambda: nodes[2].batches() > 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_least_loaded_gives_a_slow_node_fewer_calls(kind: Kind, nodes: list[Node]) -> None:
    nodes[0].process.tell("slow")
    targets = [node.target for node in nodes]
    try:
        async with connect(kind, targets, balancing="least_loaded") as client, load(client) as running:
            shares = [1, 1, 1]
            async with asyncio.timeout(PATIENCE_S):
                while 2 * shares[0] > min(shares[1:]):
                    for node in nodes:
                        node.batches()
                    await running.go_on(10)
                    shares = [node.batches() for node in nodes]
    finally:
        nodes[0].process.tell("fast")
