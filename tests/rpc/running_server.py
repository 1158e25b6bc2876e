"""A whole server in this process, on a free port, with the scripted engine: registry, pipeline, real grpc.aio."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub
from trivec_server.backends.interface import Engine, EngineFactory, EngineRequest
from trivec_server.metrics import Metrics
from trivec_server.repository.control import ModelControl
from trivec_server.repository.registry import Registry, VersionRecord
from trivec_server.repository.staging import Engines
from trivec_server.serving.cache.opening import open_store
from trivec_server.serving.pipeline import Pipeline
from trivec_server.settings import Limits, ServeSettings
from trivec_server.transport.listener import Listener

from tests.scripted_engine import Script

if TYPE_CHECKING:
    # Only the stubs' types know this name.
    from trivec.v1.embedding_pb2_grpc import EmbeddingServiceAsyncStub

_PATIENCE_S = 30.0


@dataclass
class RunningServer:
    target: str
    channel: grpc.aio.Channel
    registry: Registry
    control: ModelControl
    metrics: Metrics
    listener: Listener
    loading: "asyncio.Future[None]"

    @property
    def stub(self) -> "EmbeddingServiceAsyncStub":
        return EmbeddingServiceStub(self.channel)

    def pipeline(self, model: str = "small", version: int = 0) -> Pipeline:
        return self.registry.resolve(model, version).pipeline

    def metric(self, name: str, **labels: str) -> float:
        """The value of a series of the model `small`, or of the labels given; 0 if it was never touched."""
        labels = labels or {"model": "small", "version": "1"}
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def running_server(
    repository: Path,
    script: Script | Mapping[str, Script],
    *,
    limits: Limits | None = None,
    default_model: str | None = None,
    settings: ServeSettings | None = None,
    clock: Callable[[], float] = time.monotonic,
    alone: bool = True,
) -> AsyncIterator[RunningServer]:
    """
    Serves the repository's models until the block ends; then stops as the real server does.

    `script` is that of every engine, or each model's own. `settings`: all others; the repository counts if they name
    none. `clock` is that of polling. `alone` False: another server runs in this process, and nothing is said of tasks
    and threads that are left at the end.
    """
    loading = loading_server(
        repository, script, limits=limits, default_model=default_model, settings=settings, clock=clock, alone=alone
    )
    async with loading as server:
        await server.loading
        for each in [script] if isinstance(script, Script) else script.values():
            each.forget()
        yield server


@asynccontextmanager
async def loading_server(
    repository: Path,
    script: Script | Mapping[str, Script],
    *,
    limits: Limits | None = None,
    default_model: str | None = None,
    settings: ServeSettings | None = None,
    clock: Callable[[], float] = time.monotonic,
    alone: bool = True,
) -> AsyncIterator[RunningServer]:
    """As `running_server`, but the block begins when the port is open, while the models load."""
    tasks = asyncio.all_tasks()
    settings = settings or ServeSettings()
    roots = (
        settings.model_repositories
        if settings.model_repositories != ServeSettings().model_repositories
        else (repository,)
    )
    settings = replace(settings, model_repositories=roots, grpc_port=0)
    if default_model is not None:
        settings = replace(settings, default_model=default_model)
    if limits is not None:
        settings = replace(settings, limits=limits)
    metrics = Metrics()
    changes: asyncio.Queue[VersionRecord] = asyncio.Queue()
    store = open_store(settings.cache)
    metrics.watch_cache(store.usage)
    registry = Registry(settings, metrics, store, on_change=changes.put_nowait)
    engines = Engines(of_texts={"scripted": scripted(script)})
    control = ModelControl(settings, registry, metrics, engines, clock=clock)
    listener = Listener(settings, registry, metrics, control)
    await listener.start()
    port = await listener.open()
    control.scan()

    async def announce() -> None:
        while True:
            listener.announce(await changes.get())
            changes.task_done()

    async def load() -> None:
        await control.load_first()
        await changes.join()

    announcing = asyncio.ensure_future(announce())
    # What the scan said is told before the block begins, what loading says while it runs.
    await changes.join()
    loading = asyncio.ensure_future(load())
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield RunningServer(f"127.0.0.1:{port}", channel, registry, control, metrics, listener, loading)
        await loading
    finally:
        # A test that fails must not leave a thread waiting.
        for each in [script] if isinstance(script, Script) else script.values():
            each.building.set()
            each.gate.set()
        await listener.stop(5)
        await control.close()
        await asyncio.to_thread(store.close)
        announcing.cancel()
        await asyncio.gather(announcing, return_exceptions=True)
    if not alone:
        return
    await until(lambda: not leftover_tasks(tasks), "tasks are left")
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("engine", "tokenizer"))]


def leftover_tasks(before: set[asyncio.Task[object]]) -> set[asyncio.Task[object]]:
    """Tasks that were not there before, but for the one that asks."""
    return {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}


def scripted(script: Script | Mapping[str, Script]) -> EngineFactory:
    """The engine `scripted`, with one script or each model's own."""

    def build(request: EngineRequest) -> Engine:
        chosen = script if isinstance(script, Script) else script[request.version_dir.parent.name]
        return chosen.build(request)

    return build


async def until(condition: Callable[[], bool], otherwise: str = "it never came true") -> None:
    """Waits for a condition that no event tells of."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(otherwise) from None


@asynccontextmanager
async def busy_engine(
    server: RunningServer, script: Script, *, model: str = "small", instances: int = 1
) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """
    Keeps every engine instance at a request of its own while the block runs, so that what is sent meanwhile queues.

    Gives a function that waits until so many tokens are in the queue.
    """
    pipeline = server.pipeline(model)
    script.gate.clear()
    blockers = []
    for _ in range(instances):
        blockers.append(asyncio.ensure_future(embed(server, pb.EmbedRequest(model=model, texts=["w999"]))))
        assert await asyncio.to_thread(script.entered.acquire, timeout=_PATIENCE_S), "the engine was not given work"

    async def wait_for_tokens(count: int) -> None:
        await until(lambda: pipeline.queued_tokens == count)

    try:
        yield wait_for_tokens
    finally:
        script.gate.set()
        await asyncio.gather(*blockers)


async def embed(server: RunningServer, request: pb.EmbedRequest) -> pb.EmbedResponse:
    """One Embed call, as a coroutine."""
    response: pb.EmbedResponse = await server.stub.Embed(request)
    return response
