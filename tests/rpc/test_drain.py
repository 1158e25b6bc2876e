"""A server that stops, and connections that have grown old: nobody who has another server notices."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.serving_process import STOP_TIMEOUT_S, ServingProcess, serve

SERVICE = "trivec.v1.EmbeddingService"
WORKERS = 8


@pytest.fixture(scope="module")
def lasting(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    """The server that stays; its connections are old after a second."""
    log_path = tmp_path_factory.mktemp("lasting") / "log"
    with serve(mini_repository, "--max-connection-age-s", "1", log_path=log_path) as server:
        yield server


class Load:
    """Calls without end, none of them tried again by the client."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = EmbeddingServiceStub(channel)
        self.ends: Counter[str] = Counter()
        self._stopping = False

    async def reach(self, calls: int) -> None:
        """Waits for so many more calls."""
        wanted = self.ends.total() + calls
        while self.ends.total() < wanted:  # noqa: ASYNC110 - the calls are the event
            await asyncio.sleep(0.001)

    async def run(self) -> None:
        while not self._stopping:
            try:
                await self._stub.Embed(pb.EmbedRequest(texts=["a text"]))
                self.ends["OK"] += 1
            except grpc.aio.AioRpcError as error:
                self.ends[f"{error.code().name}: {error.details()}"] += 1

    def stop(self) -> None:
        self._stopping = True


@asynccontextmanager
async def load(*servers: ServingProcess, **config: object) -> AsyncIterator[Load]:
    service_config = json.dumps({"loadBalancingConfig": [{"round_robin": {}}], **config})
    options = [("grpc.service_config", service_config), ("grpc.enable_retries", 0)]
    targets = ",".join(server.target for server in servers)
    async with grpc.aio.insecure_channel(f"ipv4:{targets}", options=options) as channel:
        load = Load(channel)
        workers = [asyncio.ensure_future(load.run()) for _ in range(WORKERS)]
        try:
            yield load
        finally:
            load.stop()
            await asyncio.gather(*workers)


async def test_no_call_fails_through_the_sigterm_of_a_server_for_who_watches_health(
    mini_repository: Path, tmp_path: Path, lasting: ServingProcess
) -> None:
    flags = ("--drain-pause-s", "1")
    with serve(mini_repository, *flags, log_path=tmp_path / "log") as leaving:
        watching = {"healthCheckConfig": {"serviceName": SERVICE}}
        async with load(leaving, lasting, **watching) as calls:
            await calls.reach(100)
            leaving.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(leaving.process.wait, STOP_TIMEOUT_S)
            await calls.reach(100)
    assert code == 0
    assert set(calls.ends) == {"OK"}


async def test_no_call_fails_as_connections_are_renewed_for_their_age(lasting: ServingProcess) -> None:
    async with load(lasting) as calls, asyncio.timeout(60):
        before = ports_of(lasting)
        seen = set(before)
        while len(seen) < len(before) + 3:
            await calls.reach(10)
            seen |= ports_of(lasting)
    assert set(calls.ends) == {"OK"}


def ports_of(server: ServingProcess) -> set[int]:
    """The clients' ports of a server's connections."""
    port = int(server.target.rpartition(":")[2])
    held = psutil.Process(server.process.pid).net_connections("tcp")
    return {one.raddr.port for one in held if one.raddr and one.laddr.port == port}
