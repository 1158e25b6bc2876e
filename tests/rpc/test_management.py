"""Calls that manage the server: from where, and by whom."""

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference import grpc_service_pb2 as kserve
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub
from trivec_server.errors import CommandError
from trivec_server.settings import ControlMode, Management, ServeSettings

from tests.rpc.credentials import AccessFile, Authority, authorization, token_of
from tests.rpc.failures import failure_of
from tests.rpc.inference_server import SERVICE, embed
from tests.rpc.running_server import RunningServer, running_server
from tests.scripted_engine import Script
from tests.small_repository import make_repository

SERVICE_NAME = SERVICE.rpartition(".")[2]
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
Metadata = list[tuple[str, str]]
UnaryCall: TypeAlias = "grpc.aio.UnaryUnaryCall[bytes, bytes]"

LOG = kserve.LogSettingsRequest()
LOG.settings["log_verbose_level"].uint32_param = 0
TRACE = kserve.TraceSettingRequest()
TRACE.settings["trace_rate"].value.append("7")
MANAGING: dict[str, Message] = {
    "RepositoryModelLoad": kserve.RepositoryModelLoadRequest(model_name="small"),
    "RepositoryModelUnload": kserve.RepositoryModelUnloadRequest(model_name="small"),
    "LogSettings": LOG,
    "TraceSetting": TRACE,
    "SystemSharedMemoryRegister": kserve.SystemSharedMemoryRegisterRequest(name="x"),
    "SystemSharedMemoryUnregister": kserve.SystemSharedMemoryUnregisterRequest(),
    "CudaSharedMemoryRegister": kserve.CudaSharedMemoryRegisterRequest(name="x"),
    "CudaSharedMemoryUnregister": kserve.CudaSharedMemoryUnregisterRequest(),
}
READING: dict[str, Message] = {
    "RepositoryIndex": kserve.RepositoryIndexRequest(),
    "ModelConfig": kserve.ModelConfigRequest(name="small"),
    "ModelMetadata": kserve.ModelMetadataRequest(name="small"),
    "ModelStatistics": kserve.ModelStatisticsRequest(),
    "ServerReady": kserve.ServerReadyRequest(),
    "LogSettings": kserve.LogSettingsRequest(),
    "TraceSetting": kserve.TraceSettingRequest(),
    "SystemSharedMemoryStatus": kserve.SystemSharedMemoryStatusRequest(),
}
OF_ITS_OWN_ACCORD = {
    # Refused for another reason once it is admitted: this server was not told to allow shared memory.
    "SystemSharedMemoryRegister",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "SystemSharedMemoryUnregister",
}


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, **given: object) -> AsyncIterator[RunningServer]:
    settings = ServeSettings(
        model_control_mode=ControlMode.EXPLICIT,
        load_models=("small",),
        security_look_s=0.01,
        **given,  # type: ignore[arg-type] # fields of ServeSettings
    )
    async with running_server(make_repository(tmp_path / "repository"), Script(), settings=settings) as server:
        yield server


@contextlib.asynccontextmanager
async def management_channel(server: RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.listener.management_port}") as channel:
        yield channel


def send(channel: grpc.aio.Channel, name: str, message: Message, metadata: Metadata | None = None) -> UnaryCall:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/{name}")
    return method(message.SerializeToString(), metadata=metadata or [])


async def check_admitted(channel: grpc.aio.Channel, name: str, metadata: Metadata | None = None) -> None:
    """That a managing call gets further than the gate."""
    code = await send(channel, name, MANAGING[name], metadata).code()
    assert code is grpc.StatusCode.OK or (name in OF_ITS_OWN_ACCORD and code is not DENIED)


@pytest.mark.parametrize("name", MANAGING)
async def test_a_server_of_this_machine_alone_is_managed_by_anyone_on_it(tmp_path: Path, name: str) -> None:
    async with serving(tmp_path) as server:
        await check_admitted(server.channel, name)


@pytest.mark.parametrize("name", MANAGING)
async def test_with_a_port_for_it_management_is_taken_there_alone(tmp_path: Path, name: str) -> None:
    async with serving(tmp_path, management_port=0) as server, management_channel(server) as management:
        refusal = await failure_of(send(server.channel, name, MANAGING[name]))
        assert refusal.code is DENIED
        assert refusal.message == f"{name} manages the server, which needs the server's management port"
        assert server.metric("trivec_auth_failures_total", reason="management") == 1
        await check_admitted(management, name)


@pytest.mark.parametrize("name", MANAGING)
async def test_with_an_access_file_management_needs_the_scope_admin(tmp_path: Path, name: str) -> None:
    access = AccessFile(tmp_path / "access.toml").write(reader={}, operator={"scopes": ["admin"]})
    async with serving(tmp_path, access_file=access.path) as server:
        refusal = await failure_of(send(server.channel, name, MANAGING[name], authorization(token_of("reader"))))
        assert refusal.code is DENIED
        assert "needs an identity with the scope admin" in refusal.message
        unknown = await failure_of(send(server.channel, name, MANAGING[name]))
        assert unknown.code is grpc.StatusCode.UNAUTHENTICATED
        await check_admitted(server.channel, name, authorization(token_of("operator")))


@pytest.mark.parametrize("name", MANAGING)
async def test_a_server_that_other_machines_reach_is_not_managed_over_its_port(tmp_path: Path, name: str) -> None:
    async with serving(tmp_path, host="0.0.0.0", allow_insecure=True) as server:  # noqa: S104 - the claim
        refusal = await failure_of(send(server.channel, name, MANAGING[name]))
        assert refusal.code is DENIED
        assert "--management-port" in refusal.message
        assert "--access-file" in refusal.message


@pytest.mark.parametrize("name", MANAGING)
async def test_management_off_refuses_even_admins(tmp_path: Path, name: str) -> None:
    access = AccessFile(tmp_path / "access.toml").write(operator={"scopes": ["admin", "infer"]})
    async with serving(tmp_path, access_file=access.path, management=Management.OFF) as server:
        operator = authorization(token_of("operator"))
        refusal = await failure_of(send(server.channel, name, MANAGING[name], operator))
        assert refusal.code is DENIED
        assert "--management off" in refusal.message
        for reading, message in READING.items():
            await send(server.channel, reading, message, operator)


async def test_what_is_only_read_is_answered_on_both_ports(tmp_path: Path) -> None:
    async with serving(tmp_path, management_port=0) as server, management_channel(server) as management:
        for name, message in READING.items():
            assert await send(server.channel, name, message) == await send(management, name, message)


async def test_the_ports_share_what_is_set(tmp_path: Path) -> None:
    async with serving(tmp_path, management_port=0) as server, management_channel(server) as management:
        await send(management, "TraceSetting", TRACE)
        told = await send(server.channel, "TraceSetting", kserve.TraceSettingRequest())
        assert list(kserve.TraceSettingResponse.FromString(told).settings["trace_rate"].value) == ["7"]
        await send(management, "RepositoryModelUnload", MANAGING["RepositoryModelUnload"])
        ready = await send(server.channel, "ModelReady", kserve.ModelReadyRequest(name="small"))
        assert not kserve.ModelReadyResponse.FromString(ready).ready


async def test_nothing_is_computed_on_the_port_for_management(tmp_path: Path) -> None:
    async with serving(tmp_path, management_port=0) as server, management_channel(server) as management:
        elsewhere = "is not served on the port for management; send it to --grpc-port"
        stub = EmbeddingServiceStub(management)
        own = await failure_of(stub.Embed(pb.EmbedRequest(texts=["w10"])))
        assert (own.code, own.message) == (UNIMPLEMENTED, f"Embed {elsewhere}")
        tritons = await failure_of(send(management, "ModelInfer", embed("w10")))
        assert (tritons.code, tritons.message) == (UNIMPLEMENTED, f"ModelInfer {elsewhere}")
        stream = stub.EmbedStream()
        await stream.write(pb.EmbedStreamRequest())
        assert await stream.code() is UNIMPLEMENTED


async def test_health_is_told_on_the_port_for_management(tmp_path: Path) -> None:
    async with serving(tmp_path, management_port=0) as server, management_channel(server) as management:
        stub = health_pb2_grpc.HealthStub(management)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="small"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_port_for_management_asks_for_no_token_and_speaks_tls_where_the_other_does(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    access = AccessFile(tmp_path / "access.toml").write(reader={})
    async with (
        serving(tmp_path, management_port=0, tls=authority.server(), access_file=access.path) as server,
        authority.channel(f"127.0.0.1:{server.listener.management_port}") as management,
        authority.channel(server.target) as main,
    ):
        await check_admitted(management, "RepositoryModelUnload")
        refusal = await failure_of(
            send(main, "RepositoryModelLoad", MANAGING["RepositoryModelLoad"], authorization(token_of("reader")))
        )
        assert refusal.message.endswith("needs the server's management port or an identity with the scope admin")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])  # noqa: S104 - refused
async def test_a_port_for_management_that_other_machines_reach_needs_tls_or_leave(tmp_path: Path, host: str) -> None:
    with pytest.raises(CommandError, match=r"--management-host .* is not loopback"):
        async with serving(tmp_path, management_port=0, management_host=host):
            pass


async def test_without_reflection_the_services_are_not_described(tmp_path: Path) -> None:
    async with serving(tmp_path, reflection=False) as server:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = server.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        call = method()
        assert await call.code() is UNIMPLEMENTED


def test_the_guide_says_of_every_call_what_it_needs() -> None:
    guide = Path(__file__).parents[2] / "docs" / "security.md"
    rows = re.findall(r"^\| (.+) \| (infer|management) \|$", guide.read_text(encoding="utf-8"), re.MULTILINE)
    told = {
        needs: {name for calls, of in rows if of == needs for name in re.split(r", | with.*", calls) if name}
        for needs in ("infer", "management")
    }
    services = (pb.DESCRIPTOR.services_by_name["EmbeddingService"], kserve.DESCRIPTOR.services_by_name[SERVICE_NAME])
    methods = {method.name for service in services for method in service.methods}
    assert told["management"] == set(MANAGING)
    assert told["infer"] - {"reflection"} == methods - (set(MANAGING) - {"LogSettings", "TraceSetting"})


async def test_a_server_of_this_machine_warns_that_proxies_on_it_let_everybody_manage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    warning = "through a proxy on this machine that is everybody it serves"
    async with serving(tmp_path / "open"):
        pass
    written = capfd.readouterr()
    assert warning in written.out + written.err
    async with serving(tmp_path / "off", management=Management.OFF):
        pass
    written = capfd.readouterr()
    assert warning not in written.out + written.err


async def test_a_port_for_management_that_asks_for_certificates_warns_that_any_will_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path)
    tls = authority.server(client_ca=authority.file)
    async with serving(tmp_path / "asks", management_port=0, management_host="0.0.0.0", tls=tls):  # noqa: S104
        pass
    written = capfd.readouterr()
    assert "whoever has a certificate of the authority in --tls-client-ca" in written.out + written.err
