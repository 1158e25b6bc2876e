"""The composition root: builds the server's parts, starts them, and stops them in the order that loses nothing."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn

import uvloop

from trivec_server.backends.hardware import nvidia_gpu_uuids
from trivec_server.backends.host_memory import give_memory_back
from trivec_server.backends.interface import EngineFactory
from trivec_server.backends.tensor_interface import TensorEngineFactory
from trivec_server.errors import CommandError, LoadError
from trivec_server.logs import get_logger
from trivec_server.metrics import Health, Metrics, MetricsEndpoint, Readiness
from trivec_server.repository.control import ModelControl
from trivec_server.repository.engines import ENGINES, TENSOR_ENGINES
from trivec_server.repository.registry import Registry, VersionRecord
from trivec_server.repository.staging import Engines
from trivec_server.serving.cache.opening import open_store
from trivec_server.serving.cache.store import RowStore
from trivec_server.settings import ControlMode, ServeSettings
from trivec_server.transport.listener import Listener
from trivec_server.transport.tracing import open_tracing

_log = get_logger(__name__)

_FORCED_EXIT_CODE = 1
_CLOSE_S = 1.0
_GC_ALLOCATIONS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """
    What is said once the models are loaded (or have failed): the ports bound, every version, and what callers need.
    """

    host: str
    grpc_port: int
    metrics_port: int | None
    default_model: str | None
    control_mode: ControlMode
    records: tuple[VersionRecord, ...]
    management_port: int | None = None
    has_tls: bool = False
    asks_certificates: bool = False
    asks_tokens: bool = False
    has_reflection: bool = True


def serve(
    settings: ServeSettings,
    *,
    engines: Mapping[str, EngineFactory] = ENGINES,
    tensor_engines: Mapping[str, TensorEngineFactory] = TENSOR_ENGINES,
    on_loaded: Callable[[Started], None] = lambda _: None,
) -> None:
    """
    Serves until SIGTERM or SIGINT, then drains and returns; a thread that is busy beyond the grace, or loading a model,
    is not waited for: the process then ends here, with code 0. A second signal ends it at once, with code 1.

    Raises:
        CommandError: the repository is unusable, a port cannot be bound or, with `exit_on_error`, a model of those to
            load first cannot be served.
    """
    try:
        store = open_store(settings.cache)
    except LoadError as error:
        raise CommandError(str(error)) from None
    uvloop.run(_Server(settings, Engines(of_texts=engines, of_tensors=tensor_engines), store, on_loaded).run())


class _Server:
    """One run of the server."""

    def __init__(
        self, settings: ServeSettings, engines: Engines, store: RowStore, on_loaded: Callable[[Started], None]
    ) -> None:
        self._settings = settings
        self._on_loaded = on_loaded
        self._store = store
        self._metrics = Metrics()
        self._metrics.watch_cache(store.usage)
        self._tracing = open_tracing(settings.tracing, self._metrics)
        self._changes: asyncio.Queue[VersionRecord] = asyncio.Queue()
        self._registry = Registry(settings, self._metrics, store, on_change=self._changes.put_nowait)
        self._control = ModelControl(settings, self._registry, self._metrics, engines, after_release=_settle_memory)
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Start to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        await _start_threads()
        self._control.scan()
        listener = Listener(self._settings, self._registry, self._metrics, self._control, self._tracing)
        fault = None
        try:
            await listener.start()
            grpc_port = None if self._settings.open_when_loaded else await listener.open()
            with contextlib.ExitStack() as stack:
                metrics_port = self._open_metrics(stack)
                async with asyncio.TaskGroup() as tasks:
                    announcing = tasks.create_task(self._announce(listener))
                    loading = tasks.create_task(self._control.load_first())
                    stopping = tasks.create_task(self._stop.wait())
                    await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
                    looking = None
                    if loading.done():
                        # Watchers hear of the last version before the user does.
                        await self._changes.join()
                        _settle_memory()
                        # Requests leave hardly any cycles behind: looking for them 20 times less often is enough.
                        gc.set_threshold(_GC_ALLOCATIONS, 50, 100)
                        fault = await self._end_start(listener, grpc_port, metrics_port)
                        looking = tasks.create_task(self._control.run())
                    await stopping
                    still_loading = self._control.is_loading
                    loading.cancel()
                    if looking is not None:
                        looking.cancel()
                    has_callers = listener.is_open and fault is None
                    await self._drain(listener, pause_s=self._settings.drain_pause_s if has_callers else 0.0)
                    if still_loading:
                        _leave("a model is still loading")
                    announcing.cancel()
        finally:
            await listener.stop(None)
        if fault is not None:
            raise CommandError(fault)

    async def _end_start(self, listener: Listener, grpc_port: int | None, metrics_port: int | None) -> str | None:
        """Opens the port if it is not open yet, and says what is served; or the fault for which the server stops."""
        fault = self._fault_of_start()
        if fault is None and grpc_port is None and not self._stop.is_set():
            try:
                grpc_port = await listener.open()
            except CommandError as error:
                fault = str(error)
        if grpc_port is not None:
            self._say_loaded(grpc_port, metrics_port, listener.management_port)
        if fault is not None:
            self._stop.set()
        return fault

    def _fault_of_start(self) -> str | None:
        """With `exit_on_error`: what could not be served of what was to be loaded first."""
        failures = self._control.failures() if self._settings.exit_on_error else []
        if not failures:
            return None
        return f"not every model could be loaded, and --exit-on-error is set: {'; '.join(failures)}"

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
        loop = asyncio.get_running_loop()
        health = Health(readiness=self._readiness, call_soon=loop.call_soon_threadsafe)
        self._metrics.watch_gpus(nvidia_gpu_uuids, _log.warning)
        self._metrics.watch_tasks(lambda: len(asyncio.all_tasks(loop)))
        try:
            endpoint = MetricsEndpoint(
                self._metrics, self._settings.metrics_host, port, log_failure=_log.exception, health=health
            )
        except OSError as error:
            raise CommandError(
                f"cannot serve metrics on {self._settings.metrics_host}:{port}: {error.strerror}; choose another "
                "port with --metrics-port"
            ) from error
        stack.callback(endpoint.close)
        return endpoint.port

    def _readiness(self) -> Readiness:
        """What probes over HTTP are told. For any thread."""
        if self._stop.is_set():
            return Readiness.STOPPING
        return Readiness.READY if self._control.server_ready else Readiness.NOT_READY

    async def _announce(self, listener: Listener) -> None:
        while True:
            listener.announce(await self._changes.get())
            self._changes.task_done()

    def _say_loaded(self, grpc_port: int, metrics_port: int | None, management_port: int | None) -> None:
        tls = self._settings.tls
        records = tuple(self._registry.records())
        if records and not self._registry.any_ready:
            _log.error("no model is ready: health says NOT_SERVING; the reasons are above and in ListModels")
        self._on_loaded(
            Started(
                host=self._settings.host,
                grpc_port=grpc_port,
                metrics_port=metrics_port,
                management_port=management_port,
                has_tls=tls is not None,
                asks_certificates=tls is not None and tls.client_ca is not None,
                asks_tokens=self._settings.access_file is not None,
                has_reflection=self._settings.reflection,
                default_model=self._registry.default_model,
                control_mode=self._control.mode,
                records=records,
            )
        )

    async def _drain(self, listener: Listener, *, pause_s: float) -> None:
        """NOT_SERVING, a pause for balancers to see it, what is in flight, then the engines."""
        _log.info("draining", pause_s=pause_s, grace_s=self._settings.drain_grace_s)
        listener.enter_drain()
        await asyncio.sleep(pause_s)
        ends_at = asyncio.get_running_loop().time() + self._settings.drain_grace_s
        await listener.stop(self._settings.drain_grace_s)
        waits_for = "an engine is still at work, or being unloaded"
        try:
            async with asyncio.timeout_at(max(ends_at, asyncio.get_running_loop().time() + _CLOSE_S)):
                await self._control.close()
                waits_for = "the cache is still being closed"
                await asyncio.to_thread(self._store.close)
                waits_for = "spans are still being sent"
                if self._tracing is not None:
                    await asyncio.to_thread(self._tracing.close)
        except TimeoutError:
            _leave(waits_for)
        _log.info("stopped")


async def _start_threads() -> None:
    """
    The event loop's threads, all of them at once. Left to itself the pool adds one whenever all are busy, for days, and
    each takes memory of its own: what the process holds would grow with the rarest of its bursts.
    """
    count = min(32, (os.cpu_count() or 1) + 4)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(count, thread_name_prefix="event loop"))
    all_run = threading.Barrier(count)
    await asyncio.gather(*(asyncio.to_thread(all_run.wait) for _ in range(count)))


def _settle_memory() -> None:
    """
    What was unloaded goes, back to the system, too; what is loaded stays, and the collector need not look at it again
    and again.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    give_memory_back()


def _leave(reason: str) -> NoReturn:
    """Ends the process as asked, although a thread is busy that cannot be interrupted; nobody waits for its work."""
    _log.warning("stopped without waiting any longer", reason=reason)
    sys.stdout.flush()
    os._exit(0)
