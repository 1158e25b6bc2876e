"""
The clients, in a process of their own and on a core of their own. Runs in `.venv-tritonclient`; `worker.py` says how it
is spoken to. Each keeps a number of requests of one text under way for some seconds, and tells the texts per second and
each request's seconds.
"""

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient import grpc as triton  # type: ignore[import-not-found, unused-ignore]
from tritonclient.grpc import aio as triton_aio  # type: ignore[import-not-found, unused-ignore]

from benchmarks.engines.worker import Message, Started, run_worker

_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass
class Sample:
    """What one measurement saw. `take` gives what to send next, in turn and for all threads."""

    ends_at: float
    _items: Iterator[Any]
    latencies_s: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> Any:
        with self._lock:
            return next(self._items)

    @property
    def is_over(self) -> bool:
        return time.perf_counter() >= self.ends_at

    def add(self, sent_at: float) -> None:
        self.latencies_s.append(time.perf_counter() - sent_at)


def _text_input(text: str) -> triton.InferInput:
    made = triton.InferInput("text", [1, 1], "BYTES")
    made.set_data_from_numpy(np.array([[text.encode()]], np.object_))
    return made


def _read(result: Any, outputs: list[str]) -> None:
    for name in outputs:
        result.as_numpy(name)


def _sync(message: Message, sample: Sample) -> None:
    """A thread for each request under way, as tritonclient's examples have it."""
    names, model = message["outputs"], message["model"]
    wanted = [triton.InferRequestedOutput(name) for name in names]

    def ask() -> None:
        with triton.InferenceServerClient(message["target"]) as client:
            while not sample.is_over:
                sent_at = time.perf_counter()
                _read(client.infer(model, [_text_input(sample.take())], outputs=wanted), names)
                sample.add(sent_at)

    threads = [_Asking(ask) for _ in range(message["concurrency"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.finish()


class _Asking(threading.Thread):
    """A thread whose failure is raised where it is joined."""

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._ask()
        except BaseException as error:  # noqa: BLE001 - raised by finish()
            self._failure = error

    def finish(self) -> None:
        self.join()
        if self._failure is not None:
            raise self._failure


def _stream(message: Message, sample: Sample) -> None:
    """One stream; an answer makes room for the next request."""
    names, model = message["outputs"], message["model"]
    wanted = [triton.InferRequestedOutput(name) for name in names]
    room = threading.Semaphore(message["concurrency"])
    sent_at: dict[str, float] = {}
    failures: list[Any] = []

    def answered(result: Any, error: Any) -> None:
        if error is None:
            _read(result, names)
            sample.add(sent_at.pop(result.get_response().id))
        else:
            failures.append(error)
        room.release()

    with triton.InferenceServerClient(message["target"]) as client:
        client.start_stream(answered)
        for number in itertools.count():
            room.acquire()
            if sample.is_over or failures:
                break
            sent_at[str(number)] = time.perf_counter()
            client.async_stream_infer(model, [_text_input(sample.take())], outputs=wanted, request_id=str(number))
        client.stop_stream()
    if failures:
        raise RuntimeError(str(failures[0]))


def _aio(message: Message, sample: Sample) -> None:
    names, model = message["outputs"], message["model"]
    wanted = [triton_aio.InferRequestedOutput(name) for name in names]

    async def run() -> None:
        async with triton_aio.InferenceServerClient(message["target"]) as client:

            async def ask() -> None:
                _read(await client.infer(model, [_text_input(sample.take())], outputs=wanted), names)

            await _keep_asking(ask, message["concurrency"], sample)

    asyncio.run(run())


def _bytes(message: Message, sample: Sample) -> None:
    """Ready messages over bare grpc.aio: a client that costs as little as Python can. For any method."""

    async def run() -> None:
        async with grpc.aio.insecure_channel(message["target"], options=_UNLIMITED) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(message["method"])

            async def ask() -> None:
                await call(sample.take())

            await _keep_asking(ask, message["concurrency"], sample)

    asyncio.run(run())


async def _keep_asking(ask: Callable[[], Awaitable[None]], concurrency: int, sample: Sample) -> None:
    async def keep_asking() -> None:
        while not sample.is_over:
            sent_at = time.perf_counter()
            await ask()
            sample.add(sent_at)

    await asyncio.gather(*(keep_asking() for _ in range(concurrency)))


_CLIENTS: dict[str, Callable[[Message, Sample], None]] = {
    "sync": _sync,
    "aio": _aio,
    "stream": _stream,
    "bytes": _bytes,
}


def start(options: Message) -> Started:
    """`options`: `core`, and `items`: a folder with what can be sent, by name; texts or messages, one a line."""
    os.sched_setaffinity(0, set(options["cores"]))
    items: dict[str, Iterator[Any]] = {}

    def measure(message: Message) -> Message:
        client, name = message["client"], message["items"]
        if name not in items:
            items[name] = itertools.cycle(_read_items(Path(options["items"]) / name, as_bytes=client == "bytes"))
        started_at = time.perf_counter()
        sample = Sample(started_at + message["seconds"], items[name])
        _CLIENTS[client](message, sample)
        elapsed_s = time.perf_counter() - started_at
        return {"rate": len(sample.latencies_s) / elapsed_s, "latencies_s": sample.latencies_s}

    operations = {"measure": measure, "dense": _dense}
    return Started("", {"tritonclient": version("tritonclient"), "grpcio": version("grpcio")}, operations)


def _dense(message: Message) -> Message:
    """The dense vector of one text, to see that servers have the same model."""
    with triton.InferenceServerClient(message["target"]) as client:
        wanted = [triton.InferRequestedOutput("dense")]
        result = client.infer(message["model"], [_text_input(message["text"])], outputs=wanted)
    return {"dense": result.as_numpy("dense")[0].tolist()}


def _read_items(path: Path, *, as_bytes: bool) -> list[Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [bytes.fromhex(line) for line in lines] if as_bytes else lines


if __name__ == "__main__":
    run_worker(start)
