"""The composition root: builds the server's parts, starts them, and stops them in the order that loses nothing."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import uvloop

from trivec_server.backends.interface import EngineFactory
from trivec_server.errors import CommandError
from trivec_server.logs import get_logger
from trivec_server.metrics import Metrics, MetricsEndpoint
from trivec_server.repository.engines import ENGINES
from trivec_server.repository.registry import Registry, VersionRecord
from trivec_server.settings import ServeSettings
from trivec_server.transport.listener import Listener

_log = get_logger(__name__)

_FORCED_EXIT_CODE = 1
_CLOSE_S = 1.0
_GC_ALLOCATIONS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What is said once the models are loaded (or have failed): the ports bound and every version."""

    host: str
    grpc_port: int
    metrics_port: int | None
    default_model: str | None
    records: tuple[VersionRecord, ...]


def serve(
    settings: ServeSettings,
    *,
    engines: Mapping[str, EngineFactory] = ENGINES,
    on_loaded: Callable[[Started], None] = lambda _: None,
) -> None:
    """
    Serves until SIGTERM or SIGINT, then drains and returns; a thread that is busy beyond the grace, or loading a model,
    is not waited for: the process then ends here, with code 0. A second signal ends it at once, with code 1.

    Raises:
        CommandError: the repository is unusable or a port cannot be bound.
    """
    uvloop.run(_Server(settings, engines, on_loaded).run())


class _Server:
    """One run of the server."""

    def __init__(
        self, settings: ServeSettings, engines: Mapping[str, EngineFactory], on_loaded: Callable[[Started], None]
    ) -> None:
        self._settings = settings
        self._on_loaded = on_loaded
        self._metrics = Metrics()
        self._changes: asyncio.Queue[VersionRecord] = asyncio.Queue()
        self._registry = Registry(settings, self._metrics, engines, on_change=self._changes.put_nowait)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Start to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        entries = self._registry.scan()
        listener = Listener(self._settings, self._registry, self._metrics)
        grpc_port = await listener.start()
        try:
            with contextlib.ExitStack() as stack:
                metrics_port = self._open_metrics(stack)
                async with asyncio.TaskGroup() as tasks:
                    announcing = tasks.create_task(self._announce(listener))
                    loading = tasks.create_task(self._registry.load(entries))
                    stopping = tasks.create_task(self._stop.wait())
                    await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
                    if loading.done():
                        # Watchers hear of the last version before the user does.
                        await self._changes.join()
                        # What is loaded stays: the collector need not look at it again and again.
                        gc.freeze()
                        # Requests leave hardly any cycles behind: looking for them 20 times less often is enough.
                        gc.set_threshold(_GC_ALLOCATIONS, 50, 100)
                        self._say_loaded(grpc_port, metrics_port)
                    await stopping
                    still_loading = loading.cancel()
                    await self._drain(listener)
                    if still_loading:
                        _leave("a model is still loading")
                    announcing.cancel()
        finally:
            await listener.stop(None)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            _log.warning("second signal: stopping at once")
            # A batch that is being computed cannot be interrupted in any milder way.
            os._exit(_FORCED_EXIT_CODE)
        self._stop.set()

    def _open_metrics(self, stack: contextlib.ExitStack) -> int | None:
        port = self._settings.metrics_port
        if port is None:
            return None
        try:
            endpoint = MetricsEndpoint(self._metrics, self._settings.metrics_host, port)
        except OSError as error:
            raise CommandError(
                f"cannot serve metrics on {self._settings.metrics_host}:{port}: {error.strerror}; choose another "
                "port with --metrics-port"
            ) from error
        stack.callback(endpoint.close)
        return endpoint.port

    async def _announce(self, listener: Listener) -> None:
        while True:
            await listener.announce(await self._changes.get())
            self._changes.task_done()

    def _say_loaded(self, grpc_port: int, metrics_port: int | None) -> None:
        records = tuple(self._registry.records())
        if not self._registry.any_ready:
            _log.error("no model is ready: health says NOT_SERVING; the reasons are above and in ListModels")
        self._on_loaded(
            Started(
                host=self._settings.host,
                grpc_port=grpc_port,
                metrics_port=metrics_port,
                default_model=self._registry.default_model,
                records=records,
            )
        )

    async def _drain(self, listener: Listener) -> None:
        """NOT_SERVING, a pause for balancers to see it, what is in flight, then the engines."""
        _log.info("draining", pause_s=self._settings.drain_pause_s, grace_s=self._settings.drain_grace_s)
        await listener.enter_drain()
        await asyncio.sleep(self._settings.drain_pause_s)
        ends_at = asyncio.get_running_loop().time() + self._settings.drain_grace_s
        await listener.stop(self._settings.drain_grace_s)
        try:
            async with asyncio.timeout_at(max(ends_at, asyncio.get_running_loop().time() + _CLOSE_S)):
                await self._registry.close()
        except TimeoutError:
            _leave("an engine is still at work")
        _log.info("stopped")


def _leave(reason: str) -> NoReturn:
    """Ends the process as asked, although a thread is busy that cannot be interrupted; nobody waits for its work."""
    _log.warning("stopped without waiting any longer", reason=reason)
    sys.stdout.flush()
    os._exit(0)
