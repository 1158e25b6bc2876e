"""A whole server in this process, on a free port, with the scripted engine: registry, pipeline, real grpc.aio."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
from tests.scripted_engine import Script

from trivec_server.metrics import Metrics
from trivec_server.repository.registry import Registry
from trivec_server.settings import Limits, ServeSettings
from trivec_server.transport.listener import Listener


@dataclass
class RunningServer:
    target: str
    channel: grpc.aio.Channel
    registry: Registry
    metrics: Metrics
    listener: Listener


@asynccontextmanager
async def running_server(
    repository: Path, script: Script, *, limits: Limits | None = None, default_model: str | None = None
) -> AsyncIterator[RunningServer]:
    """Serves the repository's models until the block ends; then stops as the real server does."""
    settings = ServeSettings(model_repository=repository, grpc_port=0, default_model=default_model)
    settings = replace(settings, limits=limits or Limits())
    metrics = Metrics()
    registry = Registry(settings, metrics, {"scripted": script.build})
    listener = Listener(settings, registry, metrics)
    port = await listener.start()
    await registry.load(registry.scan())
    for record in registry.records():
        await listener.announce(record)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield RunningServer(f"127.0.0.1:{port}", channel, registry, metrics, listener)
    finally:
        await listener.stop(5)
        await registry.close()
