"""
The gRPC server: one port with EmbeddingService, Triton's GRPCInferenceService, health and reflection, and where it is
asked for another one for management alone.
"""

import asyncio

import grpc

from trivec_server.errors import CommandError
from trivec_server.logs import get_logger
from trivec_server.metrics import Metrics
from trivec_server.repository.control import ModelControl
from trivec_server.repository.registry import Registry, VersionRecord
from trivec_server.settings import ServeSettings
from trivec_server.transport.access import Access
from trivec_server.transport.addresses import check_addresses, check_bindable
from trivec_server.transport.calls import CallScope
from trivec_server.transport.channel_options import channel_options
from trivec_server.transport.embedding import SERVICE_NAME, EmbeddingService
from trivec_server.transport.gate import MANAGEMENT_PORT_RULE, Gate, main_port_rule
from trivec_server.transport.health import HEALTH_SERVICE_NAME, NOT_SERVING, SERVING, Health, Status
from trivec_server.transport.kserve.service import SERVICE_NAME as INFERENCE_SERVICE_NAME
from trivec_server.transport.kserve.service import InferenceService
from trivec_server.transport.load_report import LoadReport
from trivec_server.transport.management import ServedElsewhere
from trivec_server.transport.reflection import Reflection, add_reflection
from trivec_server.transport.tracing import Tracing

_log = get_logger(__name__)

_SERVER_NAMES = ("", SERVICE_NAME, INFERENCE_SERVICE_NAME)
"""The names of health that stand for the server as a whole."""
_PORT_FLAGS = "--grpc-port and --host"
_LULL_S = 0.003
_LULL_PATIENCE_S = 1.0


class Listener:
    """
    Owns the port and the health of each name: "" and the services' are SERVING while a model is ready; a model's name
    while one of its versions is; `model/version` while that version is; "live" from the opening of the port to its end.
    """

    def __init__(
        self,
        settings: ServeSettings,
        registry: Registry,
        metrics: Metrics,
        control: ModelControl | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """
        Raises:
            CommandError: an address is not loopback and there is neither TLS nor leave to do without; a certificate or
                the access file cannot be used.
        """
        self._settings = settings
        self._registry = registry
        is_loopback = check_addresses(settings)
        security = metrics.security
        self._connections = metrics.connections
        self._certificates = None
        if settings.tls is not None:
            from trivec_server.transport.tls import Certificates  # noqa: PLC0415 - others do without its package

            self._certificates = Certificates(settings.tls, security)
        self._access = None
        if settings.access_file is not None:
            has_client_ca = settings.tls is not None and settings.tls.client_ca is not None
            self._access = Access(settings.access_file, security, has_client_ca=has_client_ca)
        self._looking: asyncio.Future[None] | None = None
        self._health = Health(settings.limits, metrics)
        self._reflections: list[Reflection] = []
        gate = Gate(self._access, main_port_rule(settings, is_loopback=is_loopback), security)
        report = LoadReport(registry.loads) if settings.load_report else None
        scope = CallScope(metrics, settings.limits, gate, tracing, report)
        self._scope = scope
        self._service = EmbeddingService(registry, settings.limits, scope)
        self._inference = InferenceService(settings, registry, scope, control)
        handlers = (self._service.handler(), self._inference.handler())
        self._server = self._new_server(scope, handlers, _SERVER_NAMES[1:])
        self._management: grpc.aio.Server | None = None
        if settings.management_port is not None:
            gate = Gate(None, MANAGEMENT_PORT_RULE, security)
            scope = CallScope(metrics, settings.limits, gate, tracing)
            handlers = (self._inference.management_handler(scope), ServedElsewhere(scope))
            self._management = self._new_server(scope, handlers, (INFERENCE_SERVICE_NAME,))
        self.management_port: int | None = None
        self.is_open = False

    def _new_server(
        self, scope: CallScope, handlers: tuple[grpc.GenericRpcHandler, ...], names: tuple[str, ...]
    ) -> grpc.aio.Server:
        """A server with these handlers, health and reflection."""
        server = grpc.aio.server(options=channel_options(self._settings))
        server.add_generic_rpc_handlers((self._health.handler(), *handlers))
        if self._settings.reflection:
            self._reflections.append(add_reflection(server, (*names, HEALTH_SERVICE_NAME), scope))
        return server

    async def start(self) -> None:
        """
        Opens the management port, if there is one, as `management_port`; health says NOT_SERVING but for "live".

        Raises:
            CommandError: an address cannot be bound, that of the services included, which `open` opens.
        """
        for name in _SERVER_NAMES:
            self._health.set(name, NOT_SERVING)
        settings = self._settings
        self._check_bindable(settings.host, settings.grpc_port, _PORT_FLAGS)
        if self._management is not None and settings.management_port is not None:
            flags = "--management-port and --management-host"
            self.management_port = self._bind(
                self._management, settings.management_host, settings.management_port, flags
            )
            await self._management.start()
            _log.info("management port open", host=settings.management_host, port=self.management_port)
        if self._certificates is not None or self._access is not None:
            self._looking = asyncio.ensure_future(self._look_for_changes())

    async def open(self) -> int:
        """
        Opens the port of the services, after `start`, and returns it.

        Raises:
            CommandError: the address cannot be bound.
        """
        settings = self._settings
        port = self._bind(self._server, settings.host, settings.grpc_port, _PORT_FLAGS)
        await self._server.start()
        self.is_open = True
        self._connections.watch([port], settings.limits.max_connections)
        return port

    def _bind(self, server: grpc.aio.Server, host: str, port: int, flags: str) -> int:
        self._check_bindable(host, port, flags)
        address = _address(host, port)
        try:
            if self._certificates is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, self._certificates.credentials())
        except RuntimeError as error:
            raise _cannot_listen(address, str(error), flags) from error

    def _check_bindable(self, host: str, port: int, flags: str) -> None:
        try:
            check_bindable(host, port)
        except OSError as error:
            raise _cannot_listen(_address(host, port), str(error.strerror), flags) from error

    async def _look_for_changes(self) -> None:
        """Takes up certificates and an access file that have changed, until it is cancelled."""
        while True:
            await asyncio.sleep(self._settings.security_look_s)
            for files in (self._certificates, self._access):
                if files is None:
                    continue
                try:
                    await asyncio.to_thread(files.look)
                except Exception:  # noqa: BLE001 - without this task nothing would ever be taken up, or withdrawn
                    _log.exception("files of certificates and tokens could not be looked at; that is tried again")

    def announce(self, record: VersionRecord) -> None:
        """Tells health watchers of a version's change of state."""
        records = [other for other in self._registry.records() if other.key.name == record.key.name]
        model_ready = any(other.serves for other in records)
        self._health.set(str(record.key), _status(record.serves))
        self._health.set(record.key.name, _status(model_ready))
        for name in _SERVER_NAMES:
            self._health.set(name, _status(self._registry.any_ready))

    def enter_drain(self) -> None:
        """Health says NOT_SERVING for every name but "live" from now on; calls are still accepted."""
        self._inference.enter_drain()
        self._health.enter_drain()

    async def stop(self, grace_s: float | None) -> None:
        """
        Accepts no more calls, waits up to `grace_s` for what is in flight and cancels the rest. None: at once.

        Calls that would never end by themselves are ended: health is watched no more, streams read no more requests.
        """
        if self._looking is not None:
            self._looking.cancel()
        if grace_s:
            await self._wait_for_lull()
        self._health.end_watches()
        for reflection in self._reflections:
            reflection.end_all()
        self._service.end_streams()
        self._inference.stop()
        servers = [self._server] if self._management is None else [self._server, self._management]
        await asyncio.gather(*(server.stop(grace_s) for server in servers))

    async def _wait_for_lull(self) -> None:
        """
        Waits for a moment in which no call arrives, a second at most. A stopping server of gRPC ends what has arrived
        and is not accepted yet with CANCELLED, which clients take for their own doing.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _LULL_PATIENCE_S
        while loop.time() < give_up_at:
            begun = self._scope.calls_begun
            await asyncio.sleep(_LULL_S)
            if self._scope.calls_begun == begun:
                return


def _address(host: str, port: int) -> str:
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _cannot_listen(address: str, reason: str, flags: str) -> CommandError:
    return CommandError(
        f"cannot listen on {address}: {reason}; stop the program that uses it, or choose another address with {flags}"
    )


def _status(is_ready: bool) -> Status:
    return SERVING if is_ready else NOT_SERVING
