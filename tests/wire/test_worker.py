"""`trivec serve` with its engine in a process of its own: killed under load, stopped, and bereft of its server."""

import os
import queue
import re
import select
import signal
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.serving_process import ServingProcess, serve
from tests.vector_decoding import dense_numbers, row_numbers

PATIENCE_S = 60
CLIENTS = 4
KILLS = 3
ANSWERS_BETWEEN = 6 * CLIENTS
"""Answers from a new engine after which it has surely computed what the old one had begun."""

IN_A_PROCESS = 'parameters { key: "worker_process" value: { string_value: "true" } }\n'
WORDS = ("search", "模型", "Zug", "ciudad", "vectors", "人工智能", "noche", "weather")


@pytest.fixture(scope="module")
def repository(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m3-mini, whose engine has a process of its own."""
    repository = tmp_path_factory.mktemp("repository")
    model = repository / "m3-mini"
    model.mkdir()
    config = (mini_repository / "m3-mini" / "config.pbtxt").read_text(encoding="utf-8")
    # In float32 the numbers of a text depend little on the batch that it is in.
    config, found = re.subn(r'^backend: "\w+"', 'backend: "onnxruntime"', config, flags=re.MULTILINE)
    assert found == 1
    (model / "config.pbtxt").write_text(config + IN_A_PROCESS, encoding="utf-8")
    (model / "1").symlink_to((mini_repository / "m3-mini" / "1").resolve())
    return repository


def engine_process(server: ServingProcess) -> psutil.Process:
    """The one that computes now."""
    (process,) = (each for each in psutil.Process(server.process.pid).children() if each.name() == "trivec-engine")
    return process


@contextmanager
def must_end(process: psutil.Process) -> Iterator[None]:
    """What the block does must bring the process to its end."""
    # Whoever inherits an orphan may leave it as a zombie; its end can be told nevertheless.
    handle = os.pidfd_open(process.pid)
    try:
        yield
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        assert poller.poll(PATIENCE_S * 1000), "it lives on"
    finally:
        os.close(handle)


def metric(server: ServingProcess, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=PATIENCE_S) as response:
        lines: list[str] = response.read().decode().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}{{"))
    return float(line.rsplit(" ", 1)[1])


def request_of(number: int) -> pb.EmbedRequest:
    """Requests of one to four texts of various lengths."""
    texts = [" ".join(WORDS[(number + word) % 8] for word in range(1 + (number * 7) % 40 + each)) for each in range(4)]
    return pb.EmbedRequest(texts=texts[: 1 + number % 4], modes=[pb.MODE_HYBRID])


REQUESTS = [request_of(number) for number in range(16)]


@dataclass
class Load:
    """Clients that send one request after the other, and never try one again."""

    target: str
    answers: "queue.Queue[tuple[int, pb.EmbedResponse | grpc.RpcError]]"
    stopping: threading.Event

    def run(self, first: int) -> None:
        with grpc.insecure_channel(self.target, options=[("grpc.enable_retries", 0)]) as channel:
            stub = EmbeddingServiceStub(channel)
            number = first
            while not self.stopping.is_set():
                try:
                    answer: pb.EmbedResponse | grpc.RpcError = stub.Embed(REQUESTS[number], timeout=PATIENCE_S)
                except grpc.RpcError as error:
                    answer = error
                self.answers.put((number, answer))
                number = (number + CLIENTS) % len(REQUESTS)

    def answered(self) -> "list[tuple[int, pb.EmbedResponse | grpc.RpcError]]":
        """What has come by now and was not looked at."""
        return [self.answers.get() for _ in range(self.answers.qsize())]


@contextmanager
def load_on(target: str) -> Iterator[Load]:
    load = Load(target, queue.Queue(), threading.Event())
    clients = [threading.Thread(target=load.run, args=(first,)) for first in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for client in clients:
            client.join()


def assert_same(answer: pb.EmbedResponse, expected: pb.EmbedResponse) -> None:
    assert len(answer.embeddings) == len(expected.embeddings)
    for one, other in zip(answer.embeddings, expected.embeddings, strict=True):
        np.testing.assert_allclose(dense_numbers(one.dense), dense_numbers(other.dense), atol=1e-5)
        np.testing.assert_allclose(row_numbers(one.multi_vector), row_numbers(other.multi_vector), atol=1e-5)
        assert list(one.sparse.ids) == list(other.sparse.ids)
        np.testing.assert_allclose(one.sparse.weights, other.sparse.weights, atol=1e-5)


def test_killing_the_engines_process_under_load_loses_no_request(repository: Path, tmp_path: Path) -> None:
    answers: list[tuple[int, pb.EmbedResponse | grpc.RpcError]] = []
    with serve(repository, log_path=tmp_path / "log") as server, grpc.insecure_channel(server.target) as channel:
        stub = EmbeddingServiceStub(channel)
        expected = [stub.Embed(request) for request in REQUESTS]
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="m3-mini"), timeout=PATIENCE_S * KILLS
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with load_on(server.target) as load:
            for _ in range(KILLS):
                answers += [load.answers.get(timeout=PATIENCE_S) for _ in range(ANSWERS_BETWEEN)]
                with must_end(engine_process(server)):
                    engine_process(server).kill()
                # Health tells of it, and of the new engine.
                assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
                assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
                answers += load.answered()
            answers += [load.answers.get(timeout=PATIENCE_S) for _ in range(ANSWERS_BETWEEN)]
        answers += load.answered()
        watch.cancel()
        assert metric(server, "trivec_engine_restarts_total") == KILLS
        assert metric(server, "trivec_running_engines") == 1
        assert metric(server, "trivec_batch_failures_total") == 0
        log = server.log
    assert log.count("the engine's process was killed by signal 9 (SIGKILL)") == KILLS
    for number, answer in answers:
        assert isinstance(answer, pb.EmbedResponse), answer
        assert_same(answer, expected[number])


def test_a_server_that_stops_leaves_no_engine_behind(repository: Path, tmp_path: Path) -> None:
    with serve(repository, log_path=tmp_path / "log") as server:
        process = engine_process(server)
        assert server.stop() == 0
        assert not process.is_running()
        assert "engine process killed" not in server.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_the_server_is_the_servers_alone(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with serve(repository, log_path=tmp_path / "log") as server:
        engine_process(server).send_signal(number)
        server.process.send_signal(number)
        assert server.process.wait(PATIENCE_S) == 0
        assert "engine lost" not in server.log
        assert "stopped" in server.log


def test_a_killed_server_leaves_no_engine_behind(repository: Path, tmp_path: Path) -> None:
    with serve(repository, log_path=tmp_path / "log") as server, must_end(engine_process(server)):
        server.process.kill()
