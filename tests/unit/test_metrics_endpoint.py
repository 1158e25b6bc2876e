"""Metrics and health over plain HTTP: paths, methods and statuses, and what a hung event loop looks like."""

import asyncio
import gzip
import http.client
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from trivec_server.metrics import Health, Metrics, MetricsEndpoint, Readiness
from trivec_server.metrics.endpoint import Heartbeat

from tests.scraped import read_scrape


class State:
    """What the server would say of itself."""

    def __init__(self) -> None:
        self.readiness = Readiness.READY


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def endpoint(state: State) -> Iterator[MetricsEndpoint]:
    health = Health(readiness=lambda: state.readiness, call_soon=lambda call: call())
    with closing(MetricsEndpoint(Metrics(), "127.0.0.1", 0, log_failure=no_failure, health=health)) as endpoint:
        yield endpoint


def no_failure(text: str) -> None:
    pytest.fail(text)


def ask(
    endpoint: MetricsEndpoint, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=60)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response, response.read()


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/metrics?name[]=up"])
def test_metrics_come_in_the_text_format(endpoint: MetricsEndpoint, path: str) -> None:
    openmetrics = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response, body = ask(endpoint, path, Accept=openmetrics)
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "nv_cpu_utilization" in read_scrape(body.decode()).kinds


def test_metrics_are_compressed_for_who_asks_for_it(endpoint: MetricsEndpoint) -> None:
    response, body = ask(endpoint, "/metrics", **{"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert b"nv_cpu_utilization" in gzip.decompress(body)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("readiness", "status"), [(Readiness.READY, 200), (Readiness.NOT_READY, 400), (Readiness.STOPPING, 503)]
)
def test_ready_has_tritons_statuses(
    endpoint: MetricsEndpoint, state: State, method: str, readiness: Readiness, status: int
) -> None:
    state.readiness = readiness
    assert ask(endpoint, "/v2/health/ready", method)[0].status == status


@pytest.mark.parametrize("readiness", Readiness)
def test_a_server_that_is_not_ready_is_live(endpoint: MetricsEndpoint, state: State, readiness: Readiness) -> None:
    state.readiness = readiness
    assert ask(endpoint, "/v2/health/live")[0].status == 200


@pytest.mark.parametrize("path", ["/metrics", "/v2/health/live", "/v2/health/ready", "/nowhere"])
def test_head_is_get_without_the_body(endpoint: MetricsEndpoint, path: str) -> None:
    response, body = ask(endpoint, path, "HEAD")
    assert body == b""
    assert response.status == ask(endpoint, path)[0].status


@pytest.mark.parametrize("path", ["/", "/v2", "/metrics/x", "/v2/health", "/favicon.ico"])
def test_another_path_is_one_line_that_names_what_there_is(endpoint: MetricsEndpoint, path: str) -> None:
    response, body = ask(endpoint, path)
    assert response.status == 404
    (line,) = body.decode().splitlines()
    assert "/metrics, /v2/health/live, /v2/health/ready" in line


def test_another_method_is_refused_in_one_line(endpoint: MetricsEndpoint) -> None:
    response, body = ask(endpoint, "/metrics", "POST")
    assert response.status == 501
    assert len(body.decode().splitlines()) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_answer_that_cannot_be_made_is_status_500_and_a_line_in_the_log(
    method: str,
) -> None:
    def fail() -> Readiness:
        raise RuntimeError("dictionary changed size during iteration")

    health = Health(readiness=fail, call_soon=lambda call: call())
    told: list[tuple[str, str]] = []

    def log(text: str) -> None:
        told.append((text, str(sys.exception())))

    with closing(MetricsEndpoint(Metrics(), "127.0.0.1", 0, log_failure=log, health=health)) as endpoint:
        response, body = ask(endpoint, "/v2/health/ready", method)
        assert response.status == 500
        assert body == (b"" if method == "HEAD" else b"the server failed to answer; its log says why\n")
        assert ask(endpoint, "/metrics")[0].status == 200
    assert told == [("could not answer /v2/health/ready over HTTP", "dictionary changed size during iteration")]


def test_a_loop_that_has_ended_is_not_live() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    health = Health(readiness=lambda: Readiness.STOPPING, call_soon=loop.call_soon_threadsafe)
    with closing(MetricsEndpoint(Metrics(), "127.0.0.1", 0, log_failure=no_failure, health=health)) as endpoint:
        for _ in range(2):
            response, body = ask(endpoint, "/v2/health/live")
            assert (response.status, body) == (503, b"the event loop has ended\n")


def test_without_health_there_are_no_probes() -> None:
    with closing(MetricsEndpoint(Metrics(), "127.0.0.1", 0, log_failure=no_failure)) as endpoint:
        assert ask(endpoint, "/v2/health/live")[0].status == 404
        assert ask(endpoint, "/metrics")[0].status == 200


def test_a_client_that_goes_away_disturbs_nothing(endpoint: MetricsEndpoint, capfd: pytest.CaptureFixture[str]) -> None:
    for sent in (b"GET /metr", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x00\xff\r\n\r\n"):
        with closing(socket.create_connection(("127.0.0.1", endpoint.port))) as connection:
            connection.sendall(sent)
    assert ask(endpoint, "/v2/health/live")[0].status == 200
    endpoint.close()
    assert capfd.readouterr().err == ""


def test_a_client_that_says_nothing_holds_up_no_other(endpoint: MetricsEndpoint) -> None:
    with closing(socket.create_connection(("127.0.0.1", endpoint.port))):
        assert ask(endpoint, "/metrics")[0].status == 200


def test_an_address_in_use_is_an_os_error(endpoint: MetricsEndpoint) -> None:
    with pytest.raises(OSError, match="in use"):
        MetricsEndpoint(Metrics(), "127.0.0.1", endpoint.port, log_failure=no_failure)


class Loop:
    """An event loop that runs what it was given when told to."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def turn(self) -> None:
        while self.calls:
            self.calls.pop()()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def heartbeat(loop: Loop, now: list[float]) -> Heartbeat:
    return Heartbeat(loop.calls.append, patience_s=60, clock=lambda: now[0])


def test_a_loop_that_leaves_a_beat_unanswered_for_too_long_hangs(heartbeat: Heartbeat, now: list[float]) -> None:
    assert heartbeat.is_beating()
    now[0] = 59.9
    assert heartbeat.is_beating()
    now[0] = 60.0
    assert not heartbeat.is_beating()


def test_a_loop_that_answers_late_is_live_again(heartbeat: Heartbeat, loop: Loop, now: list[float]) -> None:
    assert heartbeat.is_beating()
    now[0] = 100.0
    assert not heartbeat.is_beating()
    loop.turn()
    assert heartbeat.is_beating()


def test_time_between_probes_does_not_count(heartbeat: Heartbeat, loop: Loop, now: list[float]) -> None:
    assert heartbeat.is_beating()
    loop.turn()
    now[0] = 10_000.0
    assert heartbeat.is_beating()


def test_a_hanging_loop_is_sent_one_beat_whoever_asks(heartbeat: Heartbeat, loop: Loop) -> None:
    for _ in range(1000):
        heartbeat.is_beating()
    assert len(loop.calls) == 1


async def test_a_real_loop_answers_its_beats() -> None:
    running = asyncio.get_running_loop()
    health = Health(readiness=lambda: Readiness.READY, call_soon=running.call_soon_threadsafe)
    with closing(MetricsEndpoint(Metrics(), "127.0.0.1", 0, log_failure=no_failure, health=health)) as endpoint:
        for _ in range(3):
            response, _ = await asyncio.to_thread(ask, endpoint, "/v2/health/live")
            assert response.status == 200
