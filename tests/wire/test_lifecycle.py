"""The server as a process: starting, failing to start, draining, stopping, its metrics and its logs."""

import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.command_line import trivec
from tests.ports import free_port
from tests.serving_process import ServingProcess, serve
from tests.small_repository import make_repository
from tests.wire.scripted_process import ScriptedProcess, scripted_process

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SECRET = "Quetzalcoatlus"  # noqa: S105 - a word of a text that must not be logged


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


class Client:
    """A client of a scripted process whose models are loaded."""

    def __init__(self, server: ScriptedProcess) -> None:
        port, _ = server.expect("loaded")
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = EmbeddingServiceStub(self.channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def embed(self, *texts: str, request_id: str = "") -> "grpc._CallFuture[pb.EmbedResponse]":
        """A call under way."""
        return self.stub.Embed.future(pb.EmbedRequest(texts=texts, request_id=request_id))

    def watch(self) -> Iterator[health_pb2.HealthCheckResponse]:
        watching: Iterator[health_pb2.HealthCheckResponse] = health_pb2_grpc.HealthStub(self.channel).Watch(
            health_pb2.HealthCheckRequest()
        )
        return watching


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_in_flight_finish_and_exits_with_0(repository: Path, number: signal.Signals) -> None:
    with scripted_process(repository, drain_pause_s=0, drain_grace_s=60) as server, Client(server) as client:
        watch = client.watch()
        assert next(watch).status == SERVING
        server.tell("hold")
        server.expect("obeyed")
        call = client.embed("w10")
        server.expect("entered")
        server.signal(number)
        assert next(watch).status == NOT_SERVING
        server.tell("release")
        assert len(call.result(60).embeddings) == 1
        server.expect("stopped")
        assert server.wait() == 0


def test_queued_requests_are_in_flight_too(repository: Path) -> None:
    with scripted_process(repository, drain_pause_s=0, drain_grace_s=60) as server, Client(server) as client:
        server.tell("hold")
        server.expect("obeyed")
        calls = [client.embed(f"w{number}") for number in range(10, 40)]
        server.expect("entered")
        # A stream's answer is in flight once its request is read; a call's, once it has arrived.
        assert len(client.stub.ListModels(pb.ListModelsRequest()).models) == 1
        watch = client.watch()
        assert next(watch).status == SERVING
        server.signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        server.tell("release")
        assert all(len(call.result(60).embeddings) == 1 for call in calls)
        assert server.wait() == 0


def test_a_stream_ends_once_what_it_has_read_is_answered(repository: Path) -> None:
    with scripted_process(repository, drain_pause_s=0, drain_grace_s=600) as server, Client(server) as client:
        server.tell("hold")
        server.expect("obeyed")
        requests = Requests()
        answers = client.stub.EmbedStream(requests)
        requests.send(pb.EmbedStreamRequest(id="read", request=pb.EmbedRequest(texts=["w10"])))
        server.expect("entered")
        server.signal(signal.SIGTERM)
        server.tell("release")
        assert next(answers).id == "read"
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        requests.end()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in str(caught.value.details())
        assert server.wait() == 0


def test_a_client_that_watches_health_does_not_hold_up_the_stop(repository: Path) -> None:
    with scripted_process(repository, drain_pause_s=0, drain_grace_s=600) as server, Client(server) as client:
        watch = client.watch()
        assert next(watch).status == SERVING
        server.signal(signal.SIGTERM)
        assert [response.status for response in watch] == [NOT_SERVING]
        assert server.wait() == 0


def test_an_engine_that_is_at_work_beyond_the_grace_is_not_waited_for(repository: Path) -> None:
    with scripted_process(repository, drain_pause_s=0, drain_grace_s=0.2) as server, Client(server) as client:
        server.tell("hold")
        server.expect("obeyed")
        call = client.embed("w10")
        server.expect("entered")
        server.signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            call.result(60)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.wait() == 0
        assert "an engine is still at work" in server.log


def test_a_model_that_is_loading_is_not_waited_for(repository: Path) -> None:
    with scripted_process(repository, commands=("hold-building",), drain_pause_s=0) as server:
        server.expect("building")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_a_second_signal_ends_the_process_at_once_with_1(repository: Path) -> None:
    with scripted_process(repository, drain_pause_s=600, drain_grace_s=600) as server, Client(server) as client:
        watch = client.watch()
        assert next(watch).status == SERVING
        server.signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        server.signal(signal.SIGTERM)
        assert server.wait() == 1


def test_calls_are_still_taken_during_the_pause(repository: Path) -> None:
    with scripted_process(repository, drain_pause_s=600) as server, Client(server) as client:
        watch = client.watch()
        assert next(watch).status == SERVING
        server.signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert len(client.embed("w10").result(60).embeddings) == 1


def probe(port: int, path: str) -> int:
    """The status of an HTTP probe; 0 from a port that does not speak HTTP."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0


def test_http_probes_follow_the_server_from_loading_to_draining(repository: Path) -> None:
    with scripted_process(repository, commands=("hold-building",), drain_pause_s=600) as server:
        server.expect("building")
        listening = psutil.Process(server.process.pid).net_connections("tcp4")
        ports = [connection.laddr.port for connection in listening if connection.status == psutil.CONN_LISTEN]
        (port,) = (port for port in ports if probe(port, "/v2/health/live") == 200)
        assert probe(port, "/v2/health/ready") == 400
        assert probe(port, "/metrics") == 200
        server.tell("release")
        with Client(server) as client:
            assert (probe(port, "/v2/health/live"), probe(port, "/v2/health/ready")) == (200, 200)
            watch = client.watch()
            assert next(watch).status == SERVING
            server.signal(signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            assert (probe(port, "/v2/health/live"), probe(port, "/v2/health/ready")) == (200, 503)


def refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 60).close()
    except ConnectionRefusedError:
        return True
    return False


def test_if_asked_the_port_opens_once_the_models_are_loaded(repository: Path) -> None:
    port = free_port()
    with scripted_process(repository, commands=("hold-building",), open_when_loaded=True, grpc_port=port) as server:
        server.expect("building")
        assert refuses_connections(port)
        server.tell("release")
        with Client(server) as client:
            assert next(client.watch()).status == SERVING
            assert not refuses_connections(port)


def test_if_asked_the_port_opens_once_the_models_have_failed(repository: Path) -> None:
    (repository / "small" / "1" / "tokenizer.json").write_text("{}")
    with scripted_process(repository, open_when_loaded=True) as server, Client(server) as client:
        assert next(client.watch()).status == NOT_SERVING


def test_a_server_whose_port_is_not_open_yet_stops_without_a_pause(repository: Path) -> None:
    with scripted_process(repository, commands=("hold-building",), open_when_loaded=True, drain_pause_s=600) as server:
        server.expect("building")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_a_port_that_opens_late_is_asked_for_at_the_start(repository: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as occupant:
        port = str(occupant.getsockname()[1])
        finished = trivec(
            *("serve", "--model-repository", repository, "--open-when-loaded", "--grpc-port", port),
            *("--metrics-port", "0"),
        )
    assert finished.code == 1
    (line,) = finished.err.splitlines()
    assert port in line
    assert "--grpc-port" in line


def test_a_port_that_was_taken_while_the_models_loaded_is_named(repository: Path) -> None:
    port = free_port()
    with scripted_process(repository, commands=("hold-building",), open_when_loaded=True, grpc_port=port) as server:
        server.expect("building")
        with closing(socket.create_server(("127.0.0.1", port))):
            server.tell("release")
            assert server.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}" in server.log


def test_the_server_stays_up_without_a_model_and_says_why(repository: Path) -> None:
    (repository / "small" / "1" / "tokenizer.json").write_text("{}")
    with scripted_process(repository, drain_pause_s=0) as server, Client(server) as client:
        assert next(client.watch()).status == NOT_SERVING
        (model,) = client.stub.ListModels(pb.ListModelsRequest()).models
        assert "tokenizer.json" in model.state_reason
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "no model is ready" in server.log


@pytest.mark.parametrize("flag", ["--grpc-port", "--metrics-port"])
def test_a_port_in_use_is_one_line_that_names_it(tmp_path: Path, flag: str) -> None:
    repository = make_repository(tmp_path / "repository")
    with closing(socket.create_server(("127.0.0.1", 0))) as occupant:
        port = str(occupant.getsockname()[1])
        other = "--metrics-port" if flag == "--grpc-port" else "--grpc-port"
        finished = trivec("serve", "--model-repository", repository, flag, port, other, "0")
    assert finished.code == 1
    (line,) = finished.err.splitlines()
    assert line.startswith("error: ")
    assert port in line
    assert flag in line


def test_a_message_size_beyond_grpcs_own_limit_is_one_line(repository: Path) -> None:
    finished = trivec("serve", "--model-repository", repository, "--max-request-bytes", "2147483648")
    assert finished.code == 2
    (line,) = finished.err.splitlines()
    assert "--max-request-bytes" in line
    assert "2147483647" in line


def test_a_server_whose_output_nobody_reads_serves_on(mini_repository: Path, tmp_path: Path) -> None:
    port = str(free_port())
    reader, writer = os.pipe()
    os.close(reader)
    flags = ["--model-repository", str(mini_repository), "--grpc-port", port, "--metrics-port", "-1"]
    log_path = tmp_path / "server.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trivec_server", "serve", *flags, "--drain-pause-s", "0"], stdout=writer, stderr=log
        )
    os.close(writer)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            while next(watch).status != SERVING:
                pass
            assert EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(texts=["a"])).embeddings
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log_path.read_text()


def test_a_duration_beyond_grpcs_own_limit_stands_for_ever(repository: Path) -> None:
    with (
        scripted_process(
            repository, keepalive_time_s=1e12, max_connection_age_s=1e12, max_connection_age_grace_s=1e12
        ) as server,
        Client(server) as client,
    ):
        assert len(client.embed("w10").result(60).embeddings) == 1


def test_a_host_that_is_not_this_machines_is_one_line(repository: Path) -> None:
    finished = trivec("serve", "--model-repository", repository, "--host", "203.0.113.1", "--allow-insecure")
    assert finished.code == 1
    (line,) = finished.err.splitlines()
    assert "203.0.113.1" in line
    assert "--host" in line


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_failure_in_the_engine_is_logged_with_the_request_and_without_its_text(
    repository: Path, log_format: str
) -> None:
    with scripted_process(repository, log_format=log_format, drain_pause_s=0) as server, Client(server) as client:
        server.tell("fail")
        server.expect("obeyed")
        with pytest.raises(grpc.RpcError) as caught:
            client.embed(f"w777 {SECRET}", request_id="the-request").result(60)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "the-request" in server.log
    assert "the engine fails on 1 texts" in server.log
    assert SECRET not in server.log
    assert "777" not in re.sub(r'"timestamp": "[^"]*"|^\S+', "", server.log, flags=re.MULTILINE)
    if log_format == "json":
        assert all(json.loads(line)["event"] for line in server.log.splitlines())


class Requests:
    """A stream's requests, one by one."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[pb.EmbedStreamRequest | None] = queue.SimpleQueue()

    def send(self, request: pb.EmbedStreamRequest) -> None:
        self._queue.put(request)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> "Requests":
        return self

    def __next__(self) -> pb.EmbedStreamRequest:
        request = self._queue.get()
        if request is None:
            raise StopIteration
        return request


@pytest.fixture(scope="module")
def serving(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    """`trivec serve` of m3-mini, as a user starts it; it must stop as it should, too."""
    log_path = tmp_path_factory.mktemp("serving") / "server.log"
    with serve(mini_repository, "--log-level", "debug", log_path=log_path) as server:
        yield server
        assert server.stop() == 0
        assert "stopped" in server.log


def scrape(server: ServingProcess) -> dict[str, float]:
    """The series of the metrics endpoint, by name with labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=60) as response:
        text = response.read().decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_the_greeting_says_what_is_served_where_and_how_to_call_it(serving: ServingProcess) -> None:
    assert f"serves gRPC on {serving.target}, metrics on port {serving.metrics_port}" in serving.greeting
    assert "m3-mini/1: READY, engine onnxruntime on cpu in float32" in serving.greeting
    assert "a demonstration model, not for production" in serving.greeting
    assert f"{serving.target} trivec.v1.EmbeddingService/Embed" in serving.greeting
    assert f'TrivecClient("{serving.target}")' in serving.greeting


def test_the_snippet_of_the_greeting_runs(serving: ServingProcess) -> None:
    lines = serving.greeting.splitlines()
    snippet = "\n".join(line[2:] for line in lines[lines.index("or in this server's Python environment:") + 1 :])
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "colbert_vecs" in done.stdout


def test_metrics_tell_of_requests_batches_and_errors(serving: ServingProcess) -> None:
    before = scrape(serving)
    with grpc.insecure_channel(serving.target) as channel:
        stub = EmbeddingServiceStub(channel)
        request = pb.EmbedRequest(texts=["one", "two words", "and a third text"], modes=[pb.MODE_HYBRID])
        tokens = stub.Embed(request).usage.total_tokens
        with pytest.raises(grpc.RpcError):
            stub.Embed(pb.EmbedRequest())
        stub.Embed(pb.EmbedRequest(texts=["word " * 2000], truncation=pb.TRUNCATION_RIGHT, max_tokens=8))
    after = scrape(serving)
    model = 'model="m3-mini",version="1"'

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert grown('trivec_requests_total{code="OK",method="Embed",model="m3-mini"}') == 2
    assert grown('trivec_requests_total{code="INVALID_ARGUMENT",method="Embed",model=""}') == 1
    assert grown('trivec_request_duration_seconds_count{method="Embed",model="m3-mini"}') == 2
    assert grown(f"trivec_texts_total{{{model}}}") == 4
    assert grown(f"trivec_tokens_total{{{model}}}") == tokens + 8
    assert grown(f"trivec_truncated_texts_total{{{model}}}") == 1
    assert grown(f"trivec_batch_rows_sum{{{model}}}") == 4
    assert grown(f"trivec_batch_tokens_sum{{{model}}}") == tokens + 8
    assert grown(f"trivec_compute_duration_seconds_sum{{{model}}}") > 0
    for stage in ("tokenize", "queue", "compute"):
        assert grown(f"trivec_{stage}_duration_seconds_count{{{model}}}") >= 2
    padding = f"trivec_batch_padding_ratio_sum{{{model}}}"
    assert 0 <= grown(padding) < grown(f"trivec_batch_padding_ratio_count{{{model}}}")
    assert after[f"trivec_model_ready{{{model}}}"] == 1
    assert after[f"trivec_model_load_duration_seconds{{{model}}}"] > 0
    assert after[f"trivec_queued_tokens{{{model}}}"] == 0
    assert after["process_resident_memory_bytes"] > 0


def test_logs_name_the_request_and_never_hold_its_text(serving: ServingProcess) -> None:
    with grpc.insecure_channel(serving.target) as channel:
        stub = EmbeddingServiceStub(channel)
        stub.Embed(pb.EmbedRequest(texts=[SECRET], request_id="served"))
        for request in (
            pb.EmbedRequest(texts=[f"{SECRET} " * 2000], request_id="too-long"),
            pb.EmbedRequest(texts=[SECRET], modes=[pb.Mode.ValueType(9)], request_id="unknown-mode"),
        ):
            with pytest.raises(grpc.RpcError):
                stub.Embed(request)
        with pytest.raises(grpc.RpcError):
            stub.Score(pb.ScoreRequest(query=SECRET, passages=[f"{SECRET} " * 2000], request_id="score"))
        with pytest.raises(grpc.RpcError):
            stub.Tokenize(pb.TokenizeRequest(texts=[f"{SECRET} " * 2000], request_id="tokens"))
    for request_id in ("too-long", "unknown-mode", "score", "tokens"):
        assert request_id in serving.log
    assert SECRET not in serving.log
    assert "Traceback" not in serving.log
