"""TLS: who is believed on either side, and certificates that change while the server runs."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub
from trivec_server.errors import SecurityFileError
from trivec_server.settings import ServeSettings, TlsSettings

from tests.rpc.credentials import AccessFile, Authority, Pair, authorization, token_of
from tests.rpc.running_server import RunningServer, running_server, until
from tests.scripted_engine import Script
from tests.small_repository import make_repository

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
REQUEST = pb.EmbedRequest(texts=["w10"])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """An authority that nobody has heard of, under the same name."""
    directory = tmp_path / "stranger"
    directory.mkdir()
    return Authority(directory)


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, tls: TlsSettings, access: AccessFile | None = None) -> AsyncIterator[RunningServer]:
    settings = ServeSettings(tls=tls, access_file=None if access is None else access.path, security_look_s=0.01)
    async with running_server(make_repository(tmp_path / "repository"), Script(), settings=settings) as server:
        yield server


async def embed(
    server: RunningServer, authority: Authority, pair: Pair | None = None, metadata: list[tuple[str, str]] | None = None
) -> None:
    """One call on a connection of its own."""
    async with authority.channel(server.target, pair) as channel:
        await EmbeddingServiceStub(channel).Embed(REQUEST, metadata=metadata or [], timeout=30)


async def refused(
    server: RunningServer, authority: Authority, pair: Pair | None = None, metadata: list[tuple[str, str]] | None = None
) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embed(server, authority, pair, metadata)
    return caught.value.code()


def is_current(server: RunningServer) -> bool:
    return server.metric("trivec_certificate_current", certificate="server") == 1


async def reloads(server: RunningServer, result: str, count: int) -> None:
    await until(lambda: server.metric("trivec_certificate_reloads_total", result=result) == count)


async def test_a_call_over_tls_is_answered_and_one_in_plain_text_is_not(tmp_path: Path, authority: Authority) -> None:
    async with serving(tmp_path, authority.server()) as server:
        await embed(server, authority)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stub.Embed(REQUEST, timeout=30)
        assert caught.value.code() is UNAVAILABLE
        await embed(server, authority)


async def test_a_client_that_trusts_another_authority_refuses_the_server(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    async with serving(tmp_path, authority.server()) as server:
        assert await refused(server, stranger) is UNAVAILABLE
        await embed(server, authority)


async def test_clients_must_show_a_certificate_of_the_authority(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    async with serving(tmp_path, authority.server(client_ca=authority.file)) as server:
        await embed(server, authority, authority.pair("client"))
        assert await refused(server, authority) is UNAVAILABLE
        assert await refused(server, authority, stranger.pair("client")) is UNAVAILABLE
        assert await refused(server, authority, authority.pair("client", days=-1)) is UNAVAILABLE
        await embed(server, authority, authority.pair("client"))


async def test_a_certificate_tells_who_calls_by_its_common_name_or_an_alternative_one(
    tmp_path: Path, authority: Authority
) -> None:
    access = AccessFile(tmp_path / "access.toml").write(
        named={"certificate": "indexer"}, alternative={"certificate": "search.example.org"}
    )
    async with serving(tmp_path, authority.server(client_ca=authority.file), access) as server:
        await embed(server, authority, authority.pair("host.example.org", common_name="indexer"))
        await embed(server, authority, authority.pair("other.example.org", "search.example.org"))
        assert server.metric("trivec_identity_requests_total", identity="named") == 1
        assert server.metric("trivec_identity_requests_total", identity="alternative") == 1
        assert (
            await refused(server, authority, authority.pair("somebody.example.org")) is grpc.StatusCode.UNAUTHENTICATED
        )


async def test_an_identity_with_token_and_certificate_needs_both(tmp_path: Path, authority: Authority) -> None:
    access = AccessFile(tmp_path / "access.toml")
    access.write(reader={})
    both = access.path.read_text() + 'certificate = "indexer"\n'
    access.write_text(both)
    token = authorization(token_of("reader"))
    async with serving(tmp_path, authority.server(client_ca=authority.file), access) as server:
        right = authority.pair(common_name="indexer")
        await embed(server, authority, right, token)
        assert await refused(server, authority, right) is grpc.StatusCode.UNAUTHENTICATED
        other = authority.pair(common_name="other")
        assert await refused(server, authority, other, token) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_changed_pair_is_shown_to_new_connections_and_open_ones_go_on(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    tls = authority.server()
    async with serving(tmp_path, tls) as server, authority.channel(server.target) as opened:
        await EmbeddingServiceStub(opened).Embed(REQUEST)
        replacement = stranger.pair()
        tls.private_key.write_bytes(replacement.key)
        tls.certificate.write_bytes(replacement.certificate)
        await reloads(server, "success", 1)
        await embed(server, stranger)
        assert await refused(server, authority) is UNAVAILABLE
        await EmbeddingServiceStub(opened).Embed(REQUEST)


async def test_a_changed_client_authority_holds_for_new_connections(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    tls = authority.server(client_ca=authority.file)
    async with serving(tmp_path, tls) as server:
        authority.file.write_bytes(stranger.pem)
        await reloads(server, "success", 1)
        await embed(server, authority, stranger.pair("client"))
        assert await refused(server, authority, authority.pair("client")) is UNAVAILABLE


@pytest.mark.parametrize("fault", ["key", "certificate", "missing", "ended"])
async def test_a_bad_pair_is_counted_and_the_old_one_stays(
    tmp_path: Path, authority: Authority, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    tls = authority.server()
    async with serving(tmp_path, tls) as server:
        if fault == "key":
            tls.private_key.write_bytes(authority.pair().key)
        elif fault == "certificate":
            tls.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
        elif fault == "missing":
            tls.private_key.unlink()
        else:
            authority.server(days=-1)
        await reloads(server, "failure", 1)
        await embed(server, authority)
        written = capfd.readouterr()
        assert "changed certificate refused, the old one stays" in written.out + written.err
        assert not is_current(server)
        authority.server()
        await reloads(server, "success", 1)
        assert is_current(server)
        await embed(server, authority)


async def test_a_bad_pair_that_is_taken_back_is_the_one_in_use_again(tmp_path: Path, authority: Authority) -> None:
    tls = authority.server()
    async with serving(tmp_path, tls) as server:
        assert is_current(server)
        before = tls.certificate.read_bytes()
        tls.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
        await until(lambda: not is_current(server))
        tls.certificate.write_bytes(before)
        await until(lambda: is_current(server))
        assert server.metric("trivec_certificate_reloads_total", result="success") == 0


async def test_no_call_fails_while_certificates_change_again_and_again(tmp_path: Path, authority: Authority) -> None:
    tls = authority.server()
    async with serving(tmp_path, tls) as server, authority.channel(server.target) as opened:
        stub = EmbeddingServiceStub(opened)
        rotating = True
        calls = 0

        async def load(*, on_new_connections: bool) -> None:
            nonlocal calls
            while rotating:
                await (embed(server, authority) if on_new_connections else stub.Embed(REQUEST))
                calls += 1

        loads = [asyncio.ensure_future(load(on_new_connections=number % 2 == 0)) for number in range(4)]
        for count in range(1, 11):
            authority.server()
            await reloads(server, "success", count)
        rotating = False
        await asyncio.gather(*loads)
        assert calls > 20
        assert server.metric("trivec_requests_total", method="Embed", model="small", code="OK") == calls


async def test_the_end_of_the_certificate_in_use_is_a_metric(tmp_path: Path, authority: Authority) -> None:
    tls = authority.server(days=100)
    async with serving(tmp_path, tls) as server:

        def shown() -> float:
            return server.metric("trivec_certificate_expiry_timestamp_seconds", certificate="server")

        def ends() -> float:
            return x509.load_pem_x509_certificate(tls.certificate.read_bytes()).not_valid_after_utc.timestamp()

        assert shown() == ends()
        authority.server(days=200)
        await reloads(server, "success", 1)
        assert shown() == ends() > time.time() + 199 * 24 * 3600


@pytest.mark.parametrize(("days", "warns"), [(13, True), (15, False)])
async def test_a_certificate_that_ends_in_two_weeks_is_warned_of(
    tmp_path: Path,
    authority: Authority,
    days: float,
    warns: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with serving(tmp_path, authority.server(days=days)):
        written = capfd.readouterr()
    assert ("certificate ends soon" in written.out + written.err) is warns


async def refusal_at_start(tmp_path: Path, tls: TlsSettings) -> str:
    with pytest.raises(SecurityFileError) as caught:
        async with serving(tmp_path, tls):
            pass
    return str(caught.value)


async def test_files_that_cannot_serve_are_named_at_the_start(tmp_path: Path, authority: Authority) -> None:
    tls = authority.server(client_ca=authority.file)
    good = tls.private_key.read_bytes()

    tls.private_key.write_bytes(authority.pair().key)
    assert f"{tls.private_key}: is not the private key of the first certificate" in await refusal_at_start(
        tmp_path / "1", tls
    )
    tls.private_key.write_bytes(b"nothing")
    assert f"{tls.private_key}: holds no private key" in await refusal_at_start(tmp_path / "2", tls)
    tls.private_key.write_bytes(good)
    missing = replace(tls, certificate=tmp_path / "nowhere.pem")
    assert "nowhere.pem: cannot be read: No such file" in await refusal_at_start(tmp_path / "3", missing)
    wrong = replace(tls, client_ca=tls.private_key)
    assert "holds no certificate that can be read" in await refusal_at_start(tmp_path / "4", wrong)
    ended = authority.server(days=-1)
    assert "ended at" in await refusal_at_start(tmp_path / "5", ended)


KEY_OF_A_CURVE_THAT_IS_NOT_SUPPORTED = b"""-----BEGIN EC PRIVATE KEY-----
MD4CAQEEDqlqwsTAXcQfjpwtz4zOoAcGBSuBBAAGoSADHgAEssK6RFd9XGhKQCPM
jIsqMOkBjaIhPEeUOIT3bw==
-----END EC PRIVATE KEY-----
"""


async def test_a_key_of_a_kind_that_is_not_supported_is_refused_and_a_good_one_is_taken_up_after_it(
    tmp_path: Path, authority: Authority
) -> None:
    tls = authority.server()
    async with serving(tmp_path, tls) as server:
        tls.private_key.write_bytes(KEY_OF_A_CURVE_THAT_IS_NOT_SUPPORTED)
        await reloads(server, "failure", 1)
        authority.server()
        await reloads(server, "success", 1)
        await embed(server, authority)


async def test_a_start_with_a_key_of_a_kind_that_is_not_supported_says_so(tmp_path: Path, authority: Authority) -> None:
    tls = authority.server()
    tls.private_key.write_bytes(KEY_OF_A_CURVE_THAT_IS_NOT_SUPPORTED)
    with pytest.raises(SecurityFileError, match="not supported"):
        async with serving(tmp_path, tls):
            pass


async def test_a_certificate_that_is_yet_to_begin_is_refused_once_and_taken_up_when_it_has(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tls = authority.server()
    clock = SlowClock()
    async with serving(tmp_path, tls) as server:
        monkeypatch.setattr("trivec_server.transport.tls.datetime", clock)
        authority.server(begins=datetime.now(UTC) - timedelta(hours=1))
        await reloads(server, "failure", 1)
        looks = clock.looks
        await until(lambda: clock.looks > looks + 5)
        assert server.metric("trivec_certificate_reloads_total", result="failure") == 1
        clock.behind = timedelta()
        await reloads(server, "success", 1)
    written = capfd.readouterr()
    assert (written.out + written.err).count("changed certificate refused") == 1


class SlowClock:
    """In place of `datetime`: a machine's clock that is a day behind."""

    def __init__(self) -> None:
        self.behind = timedelta(days=1)
        self.looks = 0

    def now(self, zone: timezone) -> datetime:
        self.looks += 1
        return datetime.now(zone) - self.behind

    def fromtimestamp(self, timestamp: float, zone: timezone) -> datetime:
        return datetime.fromtimestamp(timestamp, zone)


async def test_a_certificate_behind_the_first_that_has_ended_is_warned_of_and_no_more(
    tmp_path: Path, authority: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    tls = authority.server(days=100)
    ended = authority.pair(days=-1)
    tls.certificate.write_bytes(tls.certificate.read_bytes() + ended.certificate)
    async with serving(tmp_path, tls) as server:
        await embed(server, authority)
        shown = server.metric("trivec_certificate_expiry_timestamp_seconds", certificate="server")
        assert shown > time.time() + 99 * 24 * 3600
    written = capfd.readouterr()
    assert "certificate of no use" in written.out + written.err
