"""Both clients against a whole server with TLS that asks who calls."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from trivec_client import Tls, TrivecClientError
from trivec_server.settings import ServeSettings

from tests.rpc.client_calls import KINDS, Kind, connect
from tests.rpc.credentials import AccessFile, Authority, token_of
from tests.rpc.running_server import RunningServer, running_server
from tests.scripted_engine import Script, expected_dense
from tests.small_repository import MAX_TOKENS, ids_of, make_repository

TEXT = "w10 w11"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def server(tmp_path: Path, authority: Authority) -> AsyncIterator[RunningServer]:
    """It takes tokens."""
    access = AccessFile(tmp_path / "access.toml").write(reader={})
    settings = ServeSettings(tls=authority.server(), access_file=access.path)
    async with running_server(make_repository(tmp_path / "models"), Script(), settings=settings) as running:
        yield running


@pytest.mark.parametrize("balancing", [None, "round_robin"])
async def test_a_token_opens_the_server_and_watching_its_health_needs_none(
    kind: Kind, server: RunningServer, authority: Authority, balancing: str | None
) -> None:
    tls = Tls(ca_file=authority.file)
    async with connect(kind, server.target, tls=tls, token=token_of("reader"), balancing=balancing) as client:
        output = await client.call("encode", TEXT, max_length=MAX_TOKENS)
    np.testing.assert_allclose(output["dense_vecs"], expected_dense(ids_of(TEXT)), atol=1e-6)


@pytest.mark.parametrize("token", [None, "another-token"])
async def test_without_a_token_that_is_known_a_call_fails_at_once(
    kind: Kind, server: RunningServer, authority: Authority, token: str | None
) -> None:
    async with connect(kind, server.target, tls=Tls(ca_file=authority.file), token=token) as client:
        with pytest.raises(TrivecClientError) as caught:
            await client.call("encode", TEXT, max_length=MAX_TOKENS)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert token is None or token not in str(caught.value)


@pytest.mark.parametrize("balancing", [None, "round_robin"])
async def test_a_certificate_of_its_own_names_the_client(
    kind: Kind, tmp_path: Path, authority: Authority, balancing: str | None
) -> None:
    own = authority.pair("machine")
    certificate, key = tmp_path / "own.pem", tmp_path / "own.key"
    certificate.write_bytes(own.certificate)
    key.write_bytes(own.key)
    access = AccessFile(tmp_path / "access.toml").write(reader={"certificate": "machine"})
    settings = ServeSettings(tls=authority.server(client_ca=authority.file), access_file=access.path)
    tls = Tls(ca_file=authority.file, certificate_file=certificate, key_file=key, server_name="localhost")
    async with (
        running_server(make_repository(tmp_path / "models"), Script(), settings=settings) as server,
        connect(kind, server.target, tls=tls, balancing=balancing) as client,
    ):
        await client.call("encode", TEXT, max_length=MAX_TOKENS)
        assert server.metric("trivec_identity_requests_total", identity="reader") > 0
