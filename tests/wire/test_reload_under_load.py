"""A server that loads a model anew again and again, under constant load: no request fails, and nothing is kept."""

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import grpc
import numpy as np
import psutil
import pytest
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub
from trivec_server.repository.pull import pull

from tests.numerics.figures import show
from tests.repository_calls import RepositoryCalls
from tests.scraped import Scraped, read_scrape
from tests.serving_process import ServingProcess, serve
from tests.tiny_model import write_tiny_model
from tests.wire.constant_load import REQUEST, Vectors, constant_load, dense_rows

Mode = Literal["explicit", "poll"]

PATIENCE_S = 60.0
POLL_PAUSE_S = 0.02
WARM_UP = 2
"""Loads before anything is measured: pools of threads and of memory have their size by then."""
LOADS = {"m3-mini": 6, "tiny": 30}
SAMPLE_S = 0.02
MAX_MEMORY_GROWTH = 1.10
"""The memory in the last third of the loads over that in the first: medians of the least that the process took during
each load, which is when the engine that was replaced has gone."""
MAX_GROWTH_PER_LOAD = 0.25
"""Threads, and open files, for each load: the least number in the last third less that in the first. Of either an
engine has at least one."""

FLAGS: dict[Mode, tuple[str, ...]] = {
    "explicit": ("--model-control-mode", "explicit", "--load-model", "*"),
    "poll": (
        *("--model-control-mode", "poll"),
        *("--repository-poll-secs", "0.1", "--repository-stability-secs", "0.05"),
    ),
}


@dataclass
class ChangingModel:
    """A model directory that is one thing or another. `change` makes it the other, in one step as deployments do."""

    name: str
    repository: Path
    change: Callable[[int], None]
    config_json: Callable[[int], str | None] = lambda _: None


def changing_config(root: Path, mini_repository: Path, mode: Mode) -> ChangingModel:
    """m3-mini with one prefix or another: its config.pbtxt is replaced, or comes with the load."""
    repository = root / "repository"
    source = (mini_repository / "m3-mini").resolve()
    target = repository / "m3-mini"
    target.mkdir(parents=True)
    (target / "1").symlink_to(source / "1")
    text = (source / "config.pbtxt").read_text()
    assert '"query: "' in text

    def change(step: int) -> None:
        draft = root / "draft"
        draft.write_text(text.replace('"query: "', f'"query {step % 2}: "'))
        draft.replace(target / "config.pbtxt")

    def config_json(step: int) -> str:
        parameters = {"pooling": "mean", "query_prefix": f"query {step % 2}: "}
        values = {key: {"string_value": value} for key, value in parameters.items()}
        return json.dumps({"backend": "onnxruntime", "max_batch_size": 64, "parameters": values})

    change(0)
    if mode == "explicit":
        return ChangingModel("m3-mini", repository, lambda _: None, config_json)
    return ChangingModel("m3-mini", repository, change)


def changing_weights(root: Path) -> ChangingModel:
    """A small model whose version is a link, which is set to one set of weights or another."""
    repository = root / "repository"
    versions = []
    for seed in (7, 8):
        write_tiny_model(root / f"checkpoint-{seed}", seed=seed)
        place = root / f"pulled-{seed}"
        versions.append(pull(str(root / f"checkpoint-{seed}"), place, name="tiny", report=lambda _: None))
    target = repository / "tiny"
    target.mkdir(parents=True)
    shutil.copy(versions[0].parent / "config.pbtxt", target)

    def change(step: int) -> None:
        draft = root / "link"
        draft.symlink_to(versions[step % 2])
        draft.replace(target / "1")

    change(0)
    return ChangingModel("tiny", repository, change)


@dataclass
class Reloads:
    """Loads the model of a running server anew, again and again."""

    server: ServingProcess
    calls: RepositoryCalls
    model: ChangingModel
    mode: Mode
    steps: int = 0

    @property
    def scrape(self) -> Scraped:
        url = f"http://127.0.0.1:{self.server.metrics_port}/metrics"
        with urllib.request.urlopen(url) as response:
            return read_scrape(response.read().decode())

    @property
    def count(self) -> int:
        """The loads that succeeded, as the server counts them."""
        return int(self.scrape.get("trivec_model_reloads_total", model=self.model.name, result="success") or 0)

    def load(self) -> None:
        """Changes the model, and returns once what it has become serves."""
        self.steps += 1
        before = self.count
        self.model.change(self.steps)
        if self.mode == "explicit":
            self.calls.load(self.model.name, self.model.config_json(self.steps))
        ends_at = time.monotonic() + PATIENCE_S
        while self.count == before:
            assert time.monotonic() < ends_at, f"the change was not loaded: {self.calls.index()}"
            # A scrape costs the server more than a request does.
            time.sleep(POLL_PAUSE_S)
        assert self.count == before + 1

    def answer(self) -> Vectors:
        with grpc.insecure_channel(self.server.target) as channel:
            return dense_rows(EmbeddingServiceStub(channel).Embed(REQUEST, timeout=PATIENCE_S))


@contextmanager
def reloading(model: ChangingModel, mode: Mode, log_path: Path) -> Iterator[Reloads]:
    with (
        serve(model.repository, *FLAGS[mode], log_path=log_path) as server,
        RepositoryCalls(server.target) as calls,
    ):
        yield Reloads(server, calls, model, mode)


@dataclass
class Taken:
    """The least that a process takes during each load: bytes of memory, threads, open files."""

    process: psutil.Process
    memory: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Looks on until it is over."""
        while not self.over.wait(SAMPLE_S):
            self.memory[-1] = min(self.memory[-1], self.process.memory_info().rss)
            self.threads[-1] = min(self.threads[-1], self.process.num_threads())
            self.files[-1] = min(self.files[-1], self.process.num_fds())

    def begin(self) -> None:
        """Another load begins."""
        self.memory.append(self.process.memory_info().rss)
        self.threads.append(self.process.num_threads())
        self.files.append(self.process.num_fds())


@contextmanager
def watching(server: ServingProcess) -> Iterator[Taken]:
    taken = Taken(psutil.Process(server.process.pid))
    taken.begin()
    thread = threading.Thread(target=taken.watch)
    thread.start()
    try:
        yield taken
    finally:
        taken.over.set()
        thread.join()


def thirds(values: Sequence[float], of: Callable[[Sequence[float]], float]) -> tuple[float, float]:
    """A measure of the first and of the last third."""
    count = len(values) // 3
    return of(values[:count]), of(values[-count:])


@pytest.mark.parametrize("mode", ["explicit", "poll"])
@pytest.mark.parametrize("name", ["m3-mini", "tiny"])
def test_no_request_fails_and_nothing_is_kept_while_a_model_is_loaded_again_and_again(
    tmp_path: Path, mini_repository: Path, name: str, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    is_mini = name == "m3-mini"
    model = changing_config(tmp_path, mini_repository, mode) if is_mini else changing_weights(tmp_path)
    with reloading(model, mode, tmp_path / "log") as reloads:
        reloads.load()
        one = reloads.answer()
        reloads.load()
        other = reloads.answer()
        assert not np.allclose(one, other, atol=1e-3)
        with constant_load(reloads.server.target, name) as load:
            for _ in range(WARM_UP):
                reloads.load()
            begun = len(load.answers)
            with watching(reloads.server) as taken:
                for _ in range(LOADS[name]):
                    taken.begin()
                    reloads.load()
            during = len(load.answers) - begun
        assert load.failures == []
        assert set(load.calls) == {"Embed", "EmbedStream", "ModelInfer"}
        assert during >= LOADS[name]
        # Every request was answered by one of the two, and each of them has answered some.
        matches = [(np.allclose(rows, one, atol=1e-3), np.allclose(rows, other, atol=1e-3)) for rows in load.answers]
        assert set(matches) == {(True, False), (False, True)}
        assert reloads.calls.index() == {(name, "1"): ("READY", "")}
        scrape = reloads.scrape
        assert scrape("trivec_running_engines", model=name, version="1") == 1
        assert scrape.get("trivec_model_reloads_total", model=name, result="failure") == 0
        assert reloads.server.stop() == 0
        log = reloads.server.log
    memory = thirds(taken.memory[1:], median)
    threads, files = thirds(taken.threads[1:], min), thirds(taken.files[1:], min)
    done = f"{LOADS[name]} loads under {sum(load.calls.values())} requests"
    used = f"memory {memory[0] / 1e6:.0f} to {memory[1] / 1e6:.0f} MB, threads {threads[0]} to {threads[1]}"
    show(capsys, f"{name}, {mode}: {done}; {used}, open files {files[0]} to {files[1]}")
    assert log.count("model ready") == log.count("model unloaded") == reloads.steps + 1
    assert memory[1] <= MAX_MEMORY_GROWTH * memory[0]
    for before, after in (threads, files):
        assert after - before <= MAX_GROWTH_PER_LOAD * LOADS[name]
