"""inference.GRPCInferenceService: its calls, and their registration."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from inference import grpc_service_pb2 as pb

from trivec_server.errors import ControlDisabled, NotFound, Unsupported
from trivec_server.repository.control import ModelControl
from trivec_server.repository.normalized_config import normalized_config
from trivec_server.repository.registry import Registry
from trivec_server.settings import ServeSettings
from trivec_server.transport.access_file import Scope
from trivec_server.transport.calls import Call, CallScope, UnaryMethod, unary
from trivec_server.transport.kserve.inference import InferenceRequests
from trivec_server.transport.kserve.log_settings import update_log_settings
from trivec_server.transport.kserve.lookup import Lookup
from trivec_server.transport.kserve.metadata import describe_model, describe_server
from trivec_server.transport.kserve.repository import READY, check_repository_name, check_unload, parse_override
from trivec_server.transport.kserve.shared_memory import DISABLED, Regions
from trivec_server.transport.kserve.statistics import describe_statistics
from trivec_server.transport.kserve.stream import METHOD as STREAM_METHOD
from trivec_server.transport.kserve.stream import InferStream
from trivec_server.transport.kserve.trace_settings import TraceSettings
from trivec_server.transport.parse import parse_message
from trivec_server.transport.status import kserve_status_of

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

RequestT = TypeVar("RequestT", bound=Message)
_Answer: TypeAlias = Callable[[RequestT], Message]

_NO_CUDA = "CUDA shared memory is not supported; use system shared memory"


class InferenceService:
    """Triton's service beside our own, over the same models."""

    def __init__(
        self, settings: ServeSettings, registry: Registry, scope: CallScope, control: ModelControl | None
    ) -> None:
        """Without a `control` there is no index, and nothing is loaded or unloaded by calls."""
        self._registry = registry
        self._control = control
        self._scope = scope
        self._is_draining = False
        self._lookup = Lookup(registry)
        self._regions = Regions(allowed=settings.allow_client_shm)
        self._requests = InferenceRequests(self._lookup, settings.limits, self._regions)
        self._stream = InferStream(self._requests, settings.limits, scope)
        self._trace = TraceSettings(lambda model: self._lookup.is_ready(model, ""))

    def handler(self) -> grpc.GenericRpcHandler:
        """The service's methods, on raw bytes."""
        handlers = self._handlers(self._scope)
        handlers["ModelInfer"] = unary(self._scope, "ModelInfer", self.model_infer, kserve_status_of)
        handlers[STREAM_METHOD] = grpc.stream_stream_rpc_method_handler(self._stream.serve)
        return grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)

    def management_handler(self, scope: CallScope) -> grpc.GenericRpcHandler:
        """All methods but those that compute, for a port of their own; `scope` is that port's."""
        return grpc.method_handlers_generic_handler(SERVICE_NAME, self._handlers(scope))

    def _handlers(self, scope: CallScope) -> "dict[str, grpc.RpcMethodHandler[bytes, bytes]]":
        """The methods that compute nothing."""
        managing: dict[str, UnaryMethod] = {
            "RepositoryModelLoad": self.load_model,
            "RepositoryModelUnload": self.unload_model,
            **self._registrations(),
        }
        reading: dict[str, UnaryMethod] = {"RepositoryIndex": self.repository_index, **self._described()}
        both = self._settings_of(scope)
        return {
            name: unary(scope, name, run, kserve_status_of, needs)
            for methods, needs in ((managing, Scope.ADMIN), (reading, Scope.INFER), (both, None))
            for name, run in methods.items()
        }

    def enter_drain(self) -> None:
        """ServerReady says no from now on; requests are still served."""
        self._is_draining = True

    def stop(self) -> None:
        """Refuses requests, and lets streams answer what they have read, and end."""
        self._requests.stop()
        self._stream.end_all()

    async def model_infer(self, raw: bytes, call: Call) -> bytes:
        """One ModelInferRequest to one ModelInferResponse."""
        request = self._requests.prepare(parse_message(raw, pb.ModelInferRequest), call, len(raw))
        with request.in_use():
            return await request.respond()

    async def repository_index(self, raw: bytes, _: Call) -> bytes:
        """One RepositoryIndexRequest to one RepositoryIndexResponse."""
        message = parse_message(raw, pb.RepositoryIndexRequest)
        check_repository_name(message.repository_name)
        response = pb.RepositoryIndexResponse()
        for entry in await self._model_control().index():
            if entry.state == READY or not message.ready:
                response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return response.SerializeToString()

    async def load_model(self, raw: bytes, _: Call) -> bytes:
        """One RepositoryModelLoadRequest to one RepositoryModelLoadResponse."""
        message = parse_message(raw, pb.RepositoryModelLoadRequest)
        check_repository_name(message.repository_name)
        await self._model_control().load_model(message.model_name, parse_override(message.parameters))
        return b""

    async def unload_model(self, raw: bytes, _: Call) -> bytes:
        """One RepositoryModelUnloadRequest to one RepositoryModelUnloadResponse."""
        message = parse_message(raw, pb.RepositoryModelUnloadRequest)
        check_repository_name(message.repository_name)
        check_unload(message.parameters)
        await self._model_control().unload_model(message.model_name)
        return b""

    def _described(self) -> dict[str, UnaryMethod]:
        """The calls that are answered from what is known."""
        lookup = self._lookup
        return {
            "ServerLive": _answering(pb.ServerLiveRequest, lambda _: pb.ServerLiveResponse(live=True)),
            "ServerReady": _answering(pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=self._is_ready())),
            "ModelReady": _answering(
                pb.ModelReadyRequest,
                lambda asked: pb.ModelReadyResponse(ready=lookup.is_ready(asked.name, asked.version)),
            ),
            "ServerMetadata": _answering(
                pb.ServerMetadataRequest, lambda _: describe_server(allow_shared_memory=self._regions.allowed)
            ),
            "ModelMetadata": _answering(
                pb.ModelMetadataRequest, lambda asked: describe_model(lookup.ready_versions(asked.name, asked.version))
            ),
            "ModelConfig": _answering(
                pb.ModelConfigRequest,
                lambda asked: pb.ModelConfigResponse(
                    config=normalized_config(lookup.ready(asked.name, asked.version).loaded)
                ),
            ),
            "ModelStatistics": _answering(pb.ModelStatisticsRequest, self._statistics),
            "SystemSharedMemoryStatus": _answering(pb.SystemSharedMemoryStatusRequest, self._region_status),
            "CudaSharedMemoryStatus": _answering(pb.CudaSharedMemoryStatusRequest, _cuda_status),
        }

    def _registrations(self) -> dict[str, UnaryMethod]:
        """The calls that give and take the server memory of its machine."""
        return {
            "SystemSharedMemoryRegister": _answering(pb.SystemSharedMemoryRegisterRequest, self._register),
            "SystemSharedMemoryUnregister": _answering(pb.SystemSharedMemoryUnregisterRequest, self._unregister),
            "CudaSharedMemoryRegister": _answering(pb.CudaSharedMemoryRegisterRequest, self._refuse_cuda),
            "CudaSharedMemoryUnregister": _answering(pb.CudaSharedMemoryUnregisterRequest, self._refuse_cuda),
        }

    def _settings_of(self, scope: CallScope) -> dict[str, UnaryMethod]:
        """The calls that tell settings, and change them if some are given."""

        async def trace(raw: bytes, call: Call) -> bytes:
            asked = parse_message(raw, pb.TraceSettingRequest)
            scope.require(call, Scope.ADMIN if asked.settings else Scope.INFER)
            given = {key: list(setting.value) for key, setting in asked.settings.items()}
            return self._trace.update(asked.model_name, given).SerializeToString()

        async def log(raw: bytes, call: Call) -> bytes:
            asked = parse_message(raw, pb.LogSettingsRequest)
            scope.require(call, Scope.ADMIN if asked.settings else Scope.INFER)
            return update_log_settings(asked.settings).SerializeToString()

        return {"TraceSetting": trace, "LogSettings": log}

    def _is_ready(self) -> bool:
        if self._is_draining:
            return False
        return self._registry.any_ready if self._control is None else self._control.server_ready

    def _statistics(self, asked: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        versions = self._lookup.ready_for_statistics(asked.name, asked.version)
        return pb.ModelStatisticsResponse(
            model_stats=[
                describe_statistics(served.key, self._registry.statistics(served.key).snapshot()) for served in versions
            ]
        )

    def _region_status(self, asked: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        response = pb.SystemSharedMemoryStatusResponse()
        for name, region in self._regions.status(asked.name).items():
            told = response.regions[name]
            told.name, told.key, told.offset, told.byte_size = name, region.key, region.offset, region.size
        return response

    def _register(self, asked: pb.SystemSharedMemoryRegisterRequest) -> pb.SystemSharedMemoryRegisterResponse:
        self._regions.register(asked.name, asked.key, asked.offset, asked.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def _unregister(self, asked: pb.SystemSharedMemoryUnregisterRequest) -> pb.SystemSharedMemoryUnregisterResponse:
        self._regions.unregister(asked.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def _refuse_cuda(self, _: Message) -> Message:
        raise Unsupported(_NO_CUDA if self._regions.allowed else DISABLED)

    def _model_control(self) -> ModelControl:
        if self._control is None:
            raise ControlDisabled("this server has no model control")
        return self._control


def _cuda_status(asked: pb.CudaSharedMemoryStatusRequest) -> pb.CudaSharedMemoryStatusResponse:
    """There never is a region."""
    if asked.name:
        raise NotFound(f"Unable to find cuda shared memory region: '{asked.name}'")
    return pb.CudaSharedMemoryStatusResponse()


def _answering(request_type: type[RequestT], answer: "_Answer[RequestT]") -> UnaryMethod:
    """A method whose answer is known at once."""

    async def run(raw: bytes, _: Call) -> bytes:
        return answer(parse_message(raw, request_type)).SerializeToString()

    return run
