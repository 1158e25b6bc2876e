"""Who may call: tokens, scopes, limits of identities, and an access file that changes while the server runs."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from inference import grpc_service_pb2 as kserve
from trivec.v1 import embedding_pb2 as pb
from trivec_server.errors import SecurityFileError
from trivec_server.settings import ServeSettings

from tests.rpc.credentials import AccessFile, authorization, token_of
from tests.rpc.failures import failure_of, read_status
from tests.rpc.inference_server import SERVICE, embed
from tests.rpc.running_server import RunningServer, running_server, until
from tests.scripted_engine import Script
from tests.small_repository import make_repository

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
REQUEST = pb.EmbedStreamRequest(request=pb.EmbedRequest(texts=["w10"]))
LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="")
Metadata = list[tuple[str, str]]
Calls = Callable[[RunningServer, Metadata], Awaitable[None]]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def file(tmp_path: Path) -> AccessFile:
    """`reader` may infer, `operator` may manage."""
    return AccessFile(tmp_path / "access.toml").write(reader={}, operator={"scopes": ["admin"]})


@contextlib.asynccontextmanager
async def guarded(file: AccessFile, script: Script) -> AsyncIterator[RunningServer]:
    settings = ServeSettings(access_file=file.path, security_look_s=0.01)
    async with running_server(make_repository(file.path.parent / "repository"), script, settings=settings) as server:
        yield server


@pytest.fixture
async def server(file: AccessFile, script: Script) -> AsyncIterator[RunningServer]:
    async with guarded(file, script) as server:
        yield server


async def call_embed(server: RunningServer, metadata: Metadata) -> None:
    await server.stub.Embed(pb.EmbedRequest(texts=["w10"]), metadata=metadata)


async def call_list_models(server: RunningServer, metadata: Metadata) -> None:
    await server.stub.ListModels(pb.ListModelsRequest(), metadata=metadata)


def stream(server: RunningServer, method: str) -> "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]":
    """
    A method of streams, for one request: it is sent together with the stream's opening. Where a server ends a stream
    before a request is written, grpc.aio reports INTERNAL in the place of its status.
    """
    opened: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = server.channel.unary_stream(method)
    return opened


async def call_embed_stream(server: RunningServer, metadata: Metadata) -> None:
    request = pb.EmbedStreamRequest(id="1", request=pb.EmbedRequest(texts=["w10"])).SerializeToString()
    call = stream(server, "/trivec.v1.EmbeddingService/EmbedStream")(request, metadata=metadata)
    assert [pb.EmbedStreamResponse.FromString(answer).id async for answer in call] == ["1"]


async def call_infer(server: RunningServer, metadata: Metadata) -> None:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    await method(embed("w10").SerializeToString(), metadata=metadata)


async def call_stream_infer(server: RunningServer, metadata: Metadata) -> None:
    call = stream(server, f"/{SERVICE}/ModelStreamInfer")(embed("w10").SerializeToString(), metadata=metadata)
    assert len([answer async for answer in call]) == 1


async def call_index(server: RunningServer, metadata: Metadata) -> None:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(f"/{SERVICE}/RepositoryIndex")
    await method(kserve.RepositoryIndexRequest().SerializeToString(), metadata=metadata)


async def call_server_live(server: RunningServer, metadata: Metadata) -> None:
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(f"/{SERVICE}/ServerLive")
    await method(kserve.ServerLiveRequest().SerializeToString(), metadata=metadata)


async def call_reflection(server: RunningServer, metadata: Metadata) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString()
    call = stream(server, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(request, metadata=metadata)
    assert len([answer async for answer in call]) == 1


EVERY = [
    call_embed,
    call_list_models,
    call_embed_stream,
    call_infer,
    call_stream_infer,
    call_index,
    call_server_live,
    call_reflection,
]


async def code_of(calling: Awaitable[None]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calling
    return caught.value.code()


def refused(server: RunningServer, reason: str) -> float:
    return server.metric("trivec_auth_failures_total", reason=reason)


@pytest.mark.parametrize("call", EVERY)
async def test_a_call_without_a_token_is_unauthenticated(server: RunningServer, call: Calls) -> None:
    for metadata in ([], [("authorization", "Basic cmVhZGVy")], [("authorization", "Bearer")]):
        assert await code_of(call(server, metadata)) is UNAUTHENTICATED
    assert refused(server, "no_credentials") == 3


@pytest.mark.parametrize("call", EVERY)
async def test_a_call_with_a_wrong_token_is_unauthenticated(server: RunningServer, call: Calls) -> None:
    for token in ("wrong", token_of("reader") + "x", token_of("Reader")):
        assert await code_of(call(server, authorization(token))) is UNAUTHENTICATED
    assert refused(server, "unknown_credentials") == 3


@pytest.mark.parametrize("call", EVERY)
async def test_a_call_with_a_token_of_scope_infer_is_answered(server: RunningServer, call: Calls) -> None:
    await call(server, authorization(token_of("reader")))
    await call(server, [("authorization", f"bearer {token_of('reader')}")])
    assert server.metric("trivec_identity_requests_total", identity="reader") >= 2


@pytest.mark.parametrize("call", EVERY)
async def test_a_token_of_scope_admin_alone_asks_no_models(server: RunningServer, call: Calls) -> None:
    assert await code_of(call(server, authorization(token_of("operator")))) is DENIED
    assert refused(server, "scope") == 1


async def test_the_refusals_name_what_is_missing_and_nothing_of_the_token(server: RunningServer) -> None:
    missing = await failure_of(call_embed(server, []))
    assert "authorization: Bearer TOKEN" in missing.message
    wrong = await failure_of(call_embed(server, authorization("hunter2")))
    assert "hunter2" not in wrong.message
    scope = await failure_of(call_embed(server, authorization(token_of("operator"))))
    assert scope.message == "Embed needs the scope infer, which operator does not have"


async def test_health_needs_no_token(server: RunningServer) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    request = health_pb2.HealthCheckRequest()
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(request)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


@pytest.mark.parametrize("call", [call_embed, call_infer])
async def test_requests_past_an_identitys_rate_are_refused_with_a_hint_and_others_are_not(
    file: AccessFile, script: Script, call: Calls
) -> None:
    file.write(slow={"requests_per_s": 0.01, "burst": 2}, other={})
    async with guarded(file, script) as server:
        for _ in range(2):
            await call(server, authorization(token_of("slow")))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(server, authorization(token_of("slow")))
        assert caught.value.code() is EXHAUSTED
        assert "slow has sent more than its 0.01 requests a second" in str(caught.value.details())
        rich = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
        assert b"google.rpc.RetryInfo" in bytes(rich)
        await call(server, authorization(token_of("other")))
        assert server.metric("trivec_identity_refusals_total", identity="slow", limit="rate") == 1
        assert server.metric("trivec_identity_requests_total", identity="slow") == 2


async def test_messages_of_a_stream_count_among_the_requests_of_the_rate(file: AccessFile, script: Script) -> None:
    # The stream itself is the first.
    file.write(slow={"requests_per_s": 0.01, "burst": 3})
    async with guarded(file, script) as server:
        call = server.stub.EmbedStream(metadata=authorization(token_of("slow")))
        for number in range(4):
            await call.write(pb.EmbedStreamRequest(id=str(number), request=pb.EmbedRequest(texts=["w10"])))
        await call.done_writing()
        answers = {answer.id: answer async for answer in call}
        assert [answers[str(number)].HasField("error") for number in range(4)] == [False, False, True, True]
        failure = read_status(answers["3"].error)
        assert failure.code is EXHAUSTED
        assert failure.retry_delay_s is not None
        assert failure.retry_delay_s > 50


async def test_calls_past_an_identitys_concurrency_are_refused_until_one_has_ended(
    file: AccessFile, script: Script
) -> None:
    file.write(narrow={"max_concurrent": 2}, other={})
    async with guarded(file, script) as server:
        script.gate.clear()
        narrow = authorization(token_of("narrow"))
        running = [asyncio.ensure_future(call_embed(server, narrow)) for _ in range(2)]
        await until(lambda: server.metric("trivec_identity_requests_total", identity="narrow") == 2)
        refusal = await failure_of(call_embed(server, narrow))
        assert (refusal.code, refusal.retry_delay_s) == (EXHAUSTED, 0.1)
        other = asyncio.ensure_future(call_embed(server, authorization(token_of("other"))))
        script.gate.set()
        await asyncio.gather(*running, other)
        await call_embed(server, narrow)
        assert server.metric("trivec_identity_refusals_total", identity="narrow", limit="concurrency") == 1


async def test_a_cancelled_call_or_stream_gives_its_place_back(file: AccessFile, script: Script) -> None:
    file.write(narrow={"max_concurrent": 3})
    narrow = authorization(token_of("narrow"))
    async with guarded(file, script) as server:
        for _ in range(5):
            script.gate.clear()
            unary = server.stub.Embed(pb.EmbedRequest(texts=["w10"]), metadata=narrow)
            own = server.stub.EmbedStream(metadata=narrow)
            await own.write(REQUEST)
            infer: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = server.channel.stream_stream(
                f"/{SERVICE}/ModelStreamInfer"
            )
            tritons = infer(metadata=narrow)
            await tritons.write(embed("w10").SerializeToString())
            await until(lambda: server.pipeline().pending_requests == 3)
            assert await code_of(call_embed(server, narrow)) is EXHAUSTED
            for call in (unary, own, tritons):
                call.cancel()
            await until(lambda: server.pipeline().pending_requests == 0)
            script.gate.set()
        # All three places are free again.
        streams = [server.stub.EmbedStream(metadata=narrow) for _ in range(2)]
        for stream in streams:
            await stream.write(REQUEST)
            await stream.read()
        await call_embed(server, narrow)
        for stream in streams:
            stream.cancel()


def is_current(server: RunningServer) -> bool:
    return server.metric("trivec_access_file_current", file="access") == 1


async def reloads(server: RunningServer, result: str, count: int) -> None:
    await until(lambda: server.metric("trivec_access_reloads_total", result=result) == count)


async def test_a_call_with_several_tokens_is_refused_whichever_comes_first(server: RunningServer) -> None:
    good, bad = authorization(token_of("reader")), authorization("wrong")
    for metadata in (good + bad, bad + good, good + good):
        assert await code_of(call_embed(server, metadata)) is UNAUTHENTICATED


async def test_a_changed_file_holds_from_then_on(file: AccessFile, server: RunningServer) -> None:
    await call_embed(server, authorization(token_of("reader")))
    file.write(newcomer={})
    await reloads(server, "success", 1)
    await call_embed(server, authorization(token_of("newcomer")))
    assert await code_of(call_embed(server, authorization(token_of("reader")))) is UNAUTHENTICATED


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[identity]\n", "is not TOML"),
        ("", "has no [[identity]]"),
        ('[[identity]]\nname = "reader"\nscopes = ["infer"]\n', '[[identity]] 1 ("reader"): token_sha256 is missing'),
    ],
)
async def test_a_broken_file_is_counted_and_the_old_one_stays(
    file: AccessFile, server: RunningServer, text: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    await reloads(server, "failure", 1)
    await call_embed(server, authorization(token_of("reader")))
    written = capfd.readouterr()
    assert reason in written.out + written.err
    assert not is_current(server)
    file.write(newcomer={})
    await reloads(server, "success", 1)
    assert is_current(server)
    await call_embed(server, authorization(token_of("newcomer")))


async def test_a_broken_file_that_is_taken_back_is_the_one_in_use_again(
    file: AccessFile, server: RunningServer
) -> None:
    assert is_current(server)
    before = file.path.read_text(encoding="utf-8")
    file.write_text("[[identity]\n")
    await until(lambda: not is_current(server))
    file.write_text(before)
    await until(lambda: is_current(server))
    assert server.metric("trivec_access_reloads_total", result="success") == 0


async def test_the_log_says_where_a_refused_call_came_from(
    server: RunningServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert await code_of(call_embed(server, authorization("a token of nobody"))) is UNAUTHENTICATED
    written = capfd.readouterr()
    (line,) = [line for line in (written.out + written.err).splitlines() if "UNAUTHENTICATED" in line]
    assert re.search(r"peer=['\"]?ipv[46]:\S+:\d+", line)


async def test_a_flood_of_calls_without_a_token_is_no_flood_of_lines(
    server: RunningServer, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(100):
        assert await code_of(call_embed(server, [])) is UNAUTHENTICATED
    written = capfd.readouterr()
    lines = [line for line in (written.out + written.err).splitlines() if "[info" in line and "UNAUTHENTICATED" in line]
    assert 10 <= len(lines) <= 50


@pytest.mark.parametrize("kind", ["EmbedStream", "ModelStreamInfer"])
async def test_messages_of_a_stream_that_do_not_decode_are_logged_with_their_identity_and_count_in_its_rate(
    file: AccessFile, server: RunningServer, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write(reader={"requests_per_s": 0.001, "burst": 3})
    await reloads(server, "success", 1)
    service = "trivec.v1.EmbeddingService" if kind == "EmbedStream" else SERVICE
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = server.channel.stream_stream(f"/{service}/{kind}")
    call = method(metadata=authorization(token_of("reader")))
    answers: list[bytes] = []
    for _ in range(4):
        await call.write(b"\xff\xff")
        answer = await call.read()
        assert isinstance(answer, bytes)
        answers.append(answer)
    assert [b"requests a second" in answer for answer in answers] == [False, False, True, True]
    await call.done_writing()
    written = capfd.readouterr()
    lines = [line for line in (written.out + written.err).splitlines() if "INVALID_ARGUMENT" in line]
    assert len(lines) == 2
    assert all("identity=reader" in line for line in lines)


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        ("trivec.v1.EmbeddingService/EmbedStream", REQUEST.SerializeToString()),
        (f"{SERVICE}/ModelStreamInfer", embed("w10").SerializeToString()),
        ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", LIST_SERVICES.SerializeToString()),
    ],
    ids=["EmbedStream", "ModelStreamInfer", "ServerReflectionInfo"],
)
async def test_a_stream_ends_once_its_token_is_taken_out_of_the_file(
    file: AccessFile, server: RunningServer, path: str, raw: bytes
) -> None:
    method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = server.channel.stream_stream(f"/{path}")
    call = method(metadata=authorization(token_of("reader")))
    for _ in range(2):
        await call.write(raw)
        assert isinstance(await call.read(), bytes)
    file.write(newcomer={})
    await reloads(server, "success", 1)
    await call.write(raw)
    assert await call.code() is UNAUTHENTICATED


async def test_a_stream_goes_on_when_the_file_changes_and_its_token_stays(
    file: AccessFile, server: RunningServer
) -> None:
    call = server.stub.EmbedStream(metadata=authorization(token_of("reader")))
    await call.write(REQUEST)
    await call.read()
    file.write(reader={"max_concurrent": 1}, newcomer={})
    await reloads(server, "success", 1)
    await call.write(REQUEST)
    answer: object = await call.read()
    assert isinstance(answer, pb.EmbedStreamResponse)
    assert answer.HasField("response")
    # The stream itself is the one call of the new limit.
    assert await code_of(call_embed(server, authorization(token_of("reader")))) is EXHAUSTED
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    await call_embed(server, authorization(token_of("reader")))


async def test_no_identity_and_no_token_is_asked_for_without_an_access_file(tmp_path: Path, script: Script) -> None:
    async with running_server(make_repository(tmp_path), script) as server:
        for call in EVERY:
            await call(server, [])
            await call(server, authorization("anything"))


async def test_a_wrong_access_file_at_the_start_ends_it(tmp_path: Path, script: Script) -> None:
    file = AccessFile(tmp_path / "access.toml")
    with pytest.raises(SecurityFileError, match=r"access\.toml: cannot be read: No such file"):
        async with guarded(file, script):
            pass
