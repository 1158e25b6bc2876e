"""
What Trivec itself costs: its whole path with an engine that returns ready arrays (1024 dimensions), tokenizer
included, beside a bare grpc.aio server that sends the same embeddings. Server on one core, client on another; the two
servers are measured in turn, in several rounds of one run. The last lines are `name value`.

    python -m benchmarks.overhead
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import grpc
import numpy as np
import psutil
from trivec.v1 import embedding_pb2 as pb
from trivec_server.repository.mini_file import MiniFile, find_mini_file

IN_FLIGHT = 32
REQUESTS = 2000
TEXT_WORDS = 8
STREAM_TEXTS = 24
STREAM_TEXT_WORDS = 800
STREAM_REQUESTS = 4
_OPTIONS = [("grpc.max_receive_message_length", -1)]
_EMBED = "/trivec.v1.EmbeddingService/Embed"
_EMBED_STREAM = "/trivec.v1.EmbeddingService/EmbedStream"


@dataclass
class Load:
    """What one server did with one kind of request, over all rounds."""

    rates: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    cpu_shares: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def rate_ratio(self, other: "Load") -> float:
        """The median over the rounds: in each, both were measured one after the other."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True))

    @property
    def p99_ms(self) -> float:
        return float(np.percentile(self.latencies_s, 99)) * 1000


@dataclass(frozen=True)
class ServerProcess:
    target: str
    process: psutil.Process


@contextmanager
def server_process(core: int, *arguments: str) -> Iterator[ServerProcess]:
    """A server pinned to one core; its first line is `port N`."""
    command = ["taskset", "--cpu-list", str(core), sys.executable, "-m", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if not words:
            raise SystemExit(f"{' '.join(arguments)} did not start")
        try:
            yield ServerProcess(f"127.0.0.1:{words[1]}", psutil.Process(process.pid))
        finally:
            process.terminate()


def draw_texts(count: int, words: int, vocabulary: int) -> list[str]:
    """
    Texts that all differ; their words are drawn from the commonest of XLM-RoBERTa's vocabulary, by its own unigram
    probabilities.
    """
    file = MiniFile(find_mini_file())
    pieces = [(score, piece[1:]) for piece, score in zip(file.pieces, file.scores, strict=True) if _is_word(piece)]
    pieces = sorted(pieces, reverse=True)[:vocabulary]
    weights = np.exp(np.array([score for score, _ in pieces], np.float64))
    random = np.random.default_rng(7)
    drawn = random.choice([piece for _, piece in pieces], (count, words), p=weights / weights.sum())
    return [" ".join(text) for text in drawn]


def embed_requests(texts: int, vocabulary: int) -> list[bytes]:
    """Requests of short texts (8 words, about 10 tokens), dense vectors packed as float32."""
    drawn = draw_texts(REQUESTS * texts, TEXT_WORDS, vocabulary)
    return [
        pb.EmbedRequest(texts=drawn[start : start + texts], encoding=pb.VECTOR_ENCODING_FLOAT32).SerializeToString()
        for start in range(0, len(drawn), texts)
    ]


def _is_word(piece: str) -> bool:
    return piece.startswith("\u2581") and piece[1:].isalnum()


async def measure_unary(
    server: ServerProcess, requests: list[bytes], texts: int, duration_s: float, load: Load
) -> None:
    """IN_FLIGHT requests at a time; adds texts/s, latencies and the server's share of its core."""
    async with grpc.aio.insecure_channel(server.target, options=_OPTIONS) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_EMBED)
        upcoming = cycle(requests)
        for _ in range(20):
            await call(next(upcoming))
        done = 0
        started_at = time.perf_counter()
        ends_at = started_at + duration_s
        cpu_before = _cpu_s(server)

        async def keep_asking() -> None:
            nonlocal done
            while (asked_at := time.perf_counter()) < ends_at:
                await call(next(upcoming))
                load.latencies_s.append(time.perf_counter() - asked_at)
                done += 1

        await asyncio.gather(*(keep_asking() for _ in range(IN_FLIGHT)))
        elapsed_s = time.perf_counter() - started_at
    load.rates.append(done * texts / elapsed_s)
    load.cpu_shares.append((_cpu_s(server) - cpu_before) / elapsed_s)


async def measure_stream(server: ServerProcess, method: str, requests: list[bytes], load: Load) -> None:
    """Sends all requests on one stream and reads every answer; adds bytes/s."""
    async with grpc.aio.insecure_channel(server.target, options=_OPTIONS) as channel:
        for is_warm in (False, True):
            method_call: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
            stream = method_call()
            received = 0
            started_at = time.perf_counter()
            cpu_before = _cpu_s(server)
            for request in requests if is_warm else requests[:1]:
                await stream.write(request)
            await stream.done_writing()
            async for message in stream:
                received += len(message)
            elapsed_s = time.perf_counter() - started_at
            if is_warm:
                load.rates.append(received / elapsed_s)
                load.cpu_shares.append((_cpu_s(server) - cpu_before) / elapsed_s)


def stream_requests(vocabulary: int) -> list[bytes]:
    """Requests for multi-vectors, about 4 MB a text."""
    drawn = draw_texts(STREAM_REQUESTS * STREAM_TEXTS, STREAM_TEXT_WORDS, vocabulary)
    return [
        pb.EmbedStreamRequest(
            id=str(start),
            request=pb.EmbedRequest(
                texts=drawn[start : start + STREAM_TEXTS],
                modes=[pb.MODE_MULTI_VECTOR],
                encoding=pb.VECTOR_ENCODING_FLOAT32,
            ),
        ).SerializeToString()
        for start in range(0, len(drawn), STREAM_TEXTS)
    ]


def _cpu_s(server: ServerProcess) -> float:
    times = server.process.cpu_times()
    return times.user + times.system


async def run(rounds: int, duration_s: float, vocabulary: int) -> dict[str, dict[str, Load]]:
    """All measurements: kind of request -> server -> load."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("needs two cores: one for the server, one for the client")
    os.sched_setaffinity(0, {cores[1]})
    loads = {kind: {"bare": Load(), "trivec": Load()} for kind in ("32", "1", "stream")}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trivec = stack.enter_context(server_process(cores[0], "benchmarks.ready_engine", str(folder / "models")))
        bare = stack.enter_context(server_process(cores[0], "benchmarks.bare_server"))
        answers = stream_requests(vocabulary)
        messages = [str(STREAM_TEXTS * 4).encode()] * STREAM_REQUESTS
        requests = {texts: embed_requests(texts, vocabulary) for texts in (32, 1)}
        for number in range(1 + rounds):
            if number == 1:
                # The first round is a warm-up: words are learnt, connections and caches are cold.
                loads = {kind: {"bare": Load(), "trivec": Load()} for kind in loads}
            for texts in (32, 1):
                for name, server in (("bare", bare), ("trivec", trivec)):
                    await measure_unary(server, requests[texts], texts, duration_s, loads[str(texts)][name])
            await measure_stream(bare, "/bare.Bare/Stream", messages, loads["stream"]["bare"])
            await measure_stream(trivec, _EMBED_STREAM, answers, loads["stream"]["trivec"])
    return loads


def report(loads: dict[str, dict[str, Load]]) -> None:
    """A table, then the figures."""
    print(f"{'':8}{'server':>8}{'rate':>14}{'p99 ms':>10}{'core':>8}")
    for kind, servers in loads.items():
        unit = "MB/s" if kind == "stream" else "texts/s"
        for name, load in servers.items():
            rate = load.rate / 1e6 if kind == "stream" else load.rate
            p99 = f"{load.p99_ms:.2f}" if load.latencies_s else ""
            core = statistics.median(load.cpu_shares)
            print(f"{kind:8}{name:>8}{rate:>9,.0f} {unit:<7}{p99:>7}{core:>8.0%}")
    for kind in ("32", "1"):
        print(f"throughput_ratio_{kind} {loads[kind]['trivec'].rate_ratio(loads[kind]['bare']):.3f}")
    for kind in ("32", "1"):
        print(f"p99_ratio_{kind} {loads[kind]['trivec'].p99_ms / loads[kind]['bare'].p99_ms:.3f}")
    print(f"stream_bandwidth_ratio {loads['stream']['trivec'].rate_ratio(loads['stream']['bare']):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.8, help="per measurement")
    parser.add_argument("--vocabulary", type=int, default=20_000, help="how many different words the texts have")
    arguments = parser.parse_args()
    report(asyncio.run(run(arguments.rounds, arguments.seconds, arguments.vocabulary)))


if __name__ == "__main__":
    main()
