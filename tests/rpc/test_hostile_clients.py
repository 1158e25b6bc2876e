"""
Clients that mean harm, or are broken, against a real server with tight limits: each is refused or contained, memory
stays bounded, and whoever behaves is served meanwhile and afterwards.
"""

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.request import urlopen

import grpc
import psutil
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec_client import TrivecClient

from tests.raw_http2 import EMBED, RST_STREAM, RawClient, frame_kinds, framed, header_frames
from tests.scraped import Scraped, read_scrape
from tests.serving_process import ServingProcess, serve

MIB = 1024 * 1024
CONNECTIONS, STREAMS, CALLS = 40, 100, 150
FLAGS = {
    "--max-connections": CONNECTIONS,
    "--max-concurrent-streams": STREAMS,
    "--max-concurrent-calls": CALLS,
    "--max-request-bytes": MIB,
    "--max-unread-bytes": MIB,
    "--request-timeout-s": 2,
    "--handshake-timeout-s": 1,
}
PATIENCE_S = 30.0
OK, EXHAUSTED, LATE = (
    code.value[0]
    for code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
)
SMALL = pb.EmbedRequest(texts=["hello"]).SerializeToString()


@dataclass
class Besieged:
    """The server, and somebody who behaves, on a connection of long standing."""

    server: ServingProcess
    friend: TrivecClient
    allowed_growth_bytes: int = 48 * MIB

    def __post_init__(self) -> None:
        self.target = self.server.target
        self._process = psutil.Process(self.server.process.pid)
        self.is_served()
        self._before = self._process.memory_info().rss

    def is_served(self) -> None:
        assert "dense_vecs" in self.friend.encode(["a text"])

    def check(self) -> None:
        """Who behaves is served, on an old connection and on a new one, and memory has not grown by much."""
        self.is_served()
        with TrivecClient(self.target, timeout_s=PATIENCE_S) as newcomer:
            assert "dense_vecs" in newcomer.encode(["a text"])
        assert self._process.memory_info().rss - self._before < self.allowed_growth_bytes

    def scrape(self) -> Scraped:
        with urlopen(f"http://127.0.0.1:{self.server.metrics_port}/metrics", timeout=PATIENCE_S) as answer:
            return read_scrape(answer.read().decode())

    def connect(self) -> socket.socket:
        host, _, port = self.target.rpartition(":")
        return socket.create_connection((host, int(port)), PATIENCE_S)


@pytest.fixture(scope="module")
def serving(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    flags = [part for flag, value in FLAGS.items() for part in (flag, str(value))]
    with serve(mini_repository, *flags, log_path=tmp_path_factory.mktemp("besieged") / "log") as server:
        yield server
        assert "Traceback" not in server.log
        assert server.stop() == 0


@pytest.fixture
def besieged(serving: ServingProcess) -> Iterator[Besieged]:
    with TrivecClient(serving.target, timeout_s=PATIENCE_S) as friend:
        yield Besieged(serving, friend)


def ends(connection: socket.socket) -> bool:
    """Reads until the server closes."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_bytes_that_are_no_http2_end_their_connection(besieged: Besieged) -> None:
    noise = random.Random(0)  # noqa: S311 - noise
    for _ in range(20):
        with besieged.connect() as connection:
            connection.sendall(noise.randbytes(4096))
            assert ends(connection)
    besieged.check()


def test_garbage_behind_a_good_beginning_ends_the_connection(besieged: Besieged) -> None:
    noise = random.Random(1)  # noqa: S311 - noise
    for _ in range(20):
        with RawClient(besieged.target) as client:
            assert client.call(EMBED, SMALL).status == OK
            client.socket.sendall(b"\xff" * 9 + noise.randbytes(4096))
            assert ends(client.socket)
    besieged.check()


def test_http1_is_turned_away(besieged: Besieged) -> None:
    for request in (b"GET / HTTP/1.1\r\nHost: trivec\r\n\r\n", b"POST /x HTTP/1.0\r\nContent-Length: 9\r\n\r\n"):
        with besieged.connect() as connection:
            connection.sendall(request)
            assert ends(connection)
    besieged.check()


def test_who_connects_and_says_nothing_is_disconnected(besieged: Besieged) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(besieged.connect()) for _ in range(10)]
        besieged.is_served()
        assert all(ends(connection) for connection in silent)
    besieged.check()


def test_a_half_closed_connection_is_given_up(besieged: Besieged) -> None:
    for _ in range(20):
        with RawClient(besieged.target) as client:
            stream = client.begin()
            client.send(stream, framed(SMALL)[:7])
            client.socket.shutdown(socket.SHUT_WR)
            assert ends(client.socket)
    besieged.check()


def test_connections_beyond_the_limit_are_closed_and_shown(besieged: Besieged) -> None:
    with ExitStack() as stack:
        answers = []
        for _ in range(CONNECTIONS + 20):
            client = stack.enter_context(RawClient(besieged.target))
            client.call(EMBED, SMALL)
            answers.append("closed" if client.closed else "served")
        assert 0 < answers.count("served") < CONNECTIONS
        assert answers.count("closed") >= 20
        scraped = besieged.scrape()
        assert scraped("trivec_connections_limit") == CONNECTIONS
        assert CONNECTIONS - 5 <= scraped("trivec_connections") <= CONNECTIONS
        besieged.is_served()
    besieged.check()


def test_ten_thousand_streams_of_who_heeds_no_setting_are_refused(besieged: Besieged) -> None:
    with besieged.connect() as connection:
        connection.sendall(b"".join(islice(header_frames(), 1 + 10_000)))
        besieged.is_served()
        resets = 0
        for kind in frame_kinds(connection):
            resets += kind == RST_STREAM
            if resets == 10_000 - STREAMS:
                break
        besieged.is_served()
    assert resets >= 10_000 - STREAMS
    besieged.check()


def test_requests_that_arrive_a_byte_at_a_time_are_ended(besieged: Besieged) -> None:
    before = besieged.scrape()("trivec_refused_calls_total", reason="slow")
    message = framed(SMALL)
    with RawClient(besieged.target) as client:
        streams = [client.begin() for _ in range(50)]
        for byte in range(4):
            for stream in streams:
                client.send(stream, message[byte : byte + 1])
        besieged.is_served()
        assert [client.wait(stream).status for stream in streams] == [LATE] * 50
    besieged.check()
    assert besieged.scrape()("trivec_refused_calls_total", reason="slow") == before + 50


def test_calls_that_do_not_arrive_give_way_to_others(besieged: Besieged) -> None:
    """All calls that may be under way are a slow client's: others are served nevertheless."""
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(besieged.target)) for _ in range(3)]
        slow = [(client, client.begin()) for client in clients for _ in range(STREAMS)]
        statuses = {client.wait(stream).status for client, stream in slow[-10:]}
        assert statuses <= {EXHAUSTED, LATE}
        besieged.is_served()
    besieged.check()


def test_messages_that_stay_unfinished_cost_no_more_than_their_limits(besieged: Besieged) -> None:
    besieged.allowed_growth_bytes = (STREAMS + 48) * MIB
    part = struct.pack(">BI", 0, MIB - 100) + bytes(MIB - 1024)
    with RawClient(besieged.target) as client:
        streams = [client.begin() for _ in range(STREAMS)]
        for stream in streams:
            client.send(stream, part)
        besieged.is_served()
        assert {client.wait(stream).status for stream in streams} == {LATE}
    besieged.check()


def test_a_message_of_100_mb_is_refused_by_its_length(besieged: Besieged) -> None:
    cancelled = {"method": "Embed", "model": "", "code": "CANCELLED"}
    before = besieged.scrape().get("trivec_requests_total", **cancelled) or 0
    with RawClient(besieged.target) as client:
        stream = client.begin()
        client.send(stream, struct.pack(">BI", 0, 100 * MIB) + bytes(64 * 1024))
        assert client.wait(stream).status == EXHAUSTED
        assert client.call(EMBED, SMALL).status == OK
    besieged.check()
    assert besieged.scrape()("trivec_requests_total", **cancelled) == before + 1


def test_too_much_metadata_is_refused(besieged: Besieged) -> None:
    headers = [(f"x-{number}", "v" * 1000) for number in range(30)]
    with RawClient(besieged.target) as client:
        assert client.call(EMBED, SMALL, headers[:5]).status == OK
        assert client.call(EMBED, SMALL, headers).status == EXHAUSTED
        assert client.call(EMBED, SMALL).status == OK
    besieged.check()


def test_who_does_not_agree_to_the_limits_is_disconnected(besieged: Besieged) -> None:
    with RawClient(besieged.target) as client:
        client.begin()
        # Without h2 nobody acknowledges the server's settings.
        assert ends(client.socket)
    besieged.check()


def test_who_reads_no_answers_gets_no_more(besieged: Besieged) -> None:
    before = besieged.scrape()("trivec_refused_calls_total", reason="unread")
    request = pb.EmbedRequest(texts=["a"] * 512).SerializeToString()
    with RawClient(besieged.target, opens_windows=False) as client:
        for _ in range(200):
            stream = client.begin()
            client.send(stream, framed(request), ends=True)
            while not (client.answers[stream].headers or client.closed):
                client.read()
            if client.answers[stream].status == EXHAUSTED:
                break
        assert client.answers[stream].status == EXHAUSTED
        assert b"unread" in client.answers[stream].headers["grpc-message"]
        besieged.is_served()
    besieged.check()
    assert besieged.scrape()("trivec_refused_calls_total", reason="unread") > before


def test_a_flood_of_resets_is_contained(besieged: Besieged) -> None:
    with RawClient(besieged.target) as client:
        for number in range(5000):
            stream = client.begin()
            client.h2.send_data(stream, framed(SMALL), end_stream=True)
            client.h2.reset_stream(stream)
            client.flush()
            if client.closed:
                break
            if number % 1000 == 0:
                besieged.is_served()
            if number % 100 == 0:
                client.socket.setblocking(False)
                with suppress(BlockingIOError):
                    client.h2.receive_data(client.socket.recv(1 << 16))
                client.socket.settimeout(PATIENCE_S)
        besieged.is_served()
    besieged.check()


def test_a_flood_of_pings_ends_its_connection(besieged: Besieged) -> None:
    with RawClient(besieged.target) as client:
        while not client.closed and client.goaway is None:
            for _ in range(100):
                client.h2.ping(bytes(8))
            client.flush()
            client.read()
        assert client.closed or client.goaway is not None
    besieged.check()
