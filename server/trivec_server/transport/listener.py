"""The gRPC server: one port with EmbeddingService, Triton's GRPCInferenceService, health and reflection."""

import asyncio
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from trivec_server.errors import CommandError
from trivec_server.metrics import Metrics
from trivec_server.repository.control import ModelControl
from trivec_server.repository.registry import Registry, VersionRecord
from trivec_server.settings import ServeSettings
from trivec_server.transport.addresses import check_bindable, refuse_plaintext
from trivec_server.transport.calls import CallScope
from trivec_server.transport.channel_options import channel_options
from trivec_server.transport.embedding import SERVICE_NAME, EmbeddingService
from trivec_server.transport.kserve.service import SERVICE_NAME as INFERENCE_SERVICE_NAME
from trivec_server.transport.kserve.service import InferenceService
from trivec_server.transport.tls import Certificates
from trivec_server.transport.tracing import Tracing

_WatchContext: TypeAlias = "grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]"

_SERVER_NAMES = ("", SERVICE_NAME, INFERENCE_SERVICE_NAME)
"""The names of health that stand for the server as a whole."""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Listener:
    """
    Owns the port and the health of each name: "" and the services' are SERVING while a model is ready; a model's name
    while one of its versions is; `model/version` while that version is.
    """

    def __init__(
        self,
        settings: ServeSettings,
        registry: Registry,
        metrics: Metrics,
        control: ModelControl | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._certificates = None if settings.tls is None else Certificates(settings.tls, metrics.security)
        self._looking: asyncio.Future[None] | None = None
        self._server = grpc.aio.server(options=channel_options(settings))
        self._health = _Health()
        self._draining = False
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        scope = CallScope(metrics, settings.limits.max_response_bytes, tracing)
        self._service = EmbeddingService(registry, settings.limits, scope)
        self._inference = InferenceService(settings, registry, scope, control)
        self._server.add_generic_rpc_handlers((self._service.handler(), self._inference.handler()))
        if settings.reflection:
            names = (*_SERVER_NAMES[1:], health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server)

    async def start(self) -> int:
        """
        Opens the port, with health NOT_SERVING; returns the port bound.

        Raises:
            CommandError: the address cannot be bound, or is not loopback and there is neither TLS nor leave to do
                without.
        """
        for name in _SERVER_NAMES:
            await self._health.set(name, _NOT_SERVING)
        port = self._bind(self._server, self._settings.host, self._settings.grpc_port)
        await self._server.start()
        if self._certificates is not None:
            self._looking = asyncio.ensure_future(self._look_for_changes())
        return port

    def _bind(self, server: grpc.aio.Server, host: str, port: int) -> int:
        if self._certificates is None and not self._settings.allow_insecure:
            refuse_plaintext(host, "--host")
        address = f"{f'[{host}]' if ':' in host else host}:{port}"
        try:
            check_bindable(host, port)
            if self._certificates is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, self._certificates.credentials())
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CommandError(
                f"cannot listen on {address}: {reason}; stop the program that uses it, or choose another address with "
                "--grpc-port and --host"
            ) from error

    async def _look_for_changes(self) -> None:
        """Takes up certificates that have changed, until it is cancelled."""
        while self._certificates is not None:
            await asyncio.sleep(self._settings.security_look_s)
            await asyncio.to_thread(self._certificates.look)

    async def announce(self, record: VersionRecord) -> None:
        """Tells health watchers of a version's change of state."""
        if self._draining:
            return
        records = [other for other in self._registry.records() if other.key.name == record.key.name]
        model_ready = any(other.serves for other in records)
        await self._health.set(str(record.key), _status(record.serves))
        await self._health.set(record.key.name, _status(model_ready))
        for name in _SERVER_NAMES:
            await self._health.set(name, _status(self._registry.any_ready))

    async def enter_drain(self) -> None:
        """Health says NOT_SERVING for every name from now on; calls are still accepted."""
        self._draining = True
        self._inference.enter_drain()
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float | None) -> None:
        """
        Accepts no more calls, waits up to `grace_s` for what is in flight and cancels the rest. None: at once.

        Calls that would never end by themselves are ended: health is watched no more, streams read no more requests.
        """
        if self._looking is not None:
            self._looking.cancel()
        self._health.end_watches()
        self._service.end_streams()
        self._inference.stop()
        await self._server.stop(grace_s)


class _Health(health_aio.HealthServicer):  # type: ignore[misc] # the library is not typed
    """Health whose watches can be ended: a watching client would hold up each stop of the server."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _WatchContext) -> None:  # noqa: N802
        """As in the library, in a task of its own."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait([watch])
        finally:
            self._watches.discard(watch)
            watch.cancel()
        if not watch.cancelled():
            watch.result()

    def end_watches(self) -> None:
        """Ends all watches under way, with status OK: clients then watch another server."""
        for watch in self._watches:
            watch.cancel()


def _status(is_ready: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    return _SERVING if is_ready else _NOT_SERVING
