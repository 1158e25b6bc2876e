"""Latency one at a time and under load, and throughput by length, of Trivec's servers."""

import threading
import time
from collections.abc import Sequence

import numpy as np
from trivec_client import TrivecClient

from benchmarks.engines.figures import DIRECT_SUFFIX
from benchmarks.engines.lengths import TextSet
from benchmarks.engines.results import Latency, LengthRate, LoadPoint
from benchmarks.engines.served import ServedTrivec
from benchmarks.engines.systems import DirectSystem, System
from benchmarks.engines.workload import TextMaker

_WARM_TEXTS = 4


def measure_latency(name: str, system: System, texts: TextSet) -> Latency:
    """Texts one after the other, each in a call of its own."""
    system.embed_each(TextSet(texts.name, texts.texts[:_WARM_TEXTS], texts.lengths[:_WARM_TEXTS]))
    return _latency(name, texts.name, system.embed_each(texts))


def measure_beside_engine(name: str, served: System, direct: DirectSystem, texts: TextSet) -> tuple[Latency, Latency]:
    """The server and the bare engine in turn, text by text, so that both see the same machine."""
    both: tuple[list[float], list[float]] = ([], [])
    for text, length in zip(texts.texts, texts.lengths, strict=True):
        one = TextSet(texts.name, (text,), (length,))
        for system, seconds in zip((served, direct), both, strict=True):
            seconds.append(system.embed(one))
    # The first quarter warms up: every length is met once.
    begin = len(texts.texts) // 4
    return _latency(name, texts.name, both[0][begin:]), _latency(name + DIRECT_SUFFIX, texts.name, both[1][begin:])


def measure_lengths(
    name: str, system: System, maker: TextMaker, lengths: Sequence[int], tokens: int
) -> list[LengthRate]:
    """Tokens per second at each length, over about so many tokens, one text at least."""
    rates = []
    for length in lengths:
        texts = maker.of_length(max(1, tokens // length), length)
        # A new length costs an engine a moment the first time.
        system.embed(TextSet(texts.name, texts.texts[:1], texts.lengths[:1]))
        seconds = system.embed(texts)
        rates.append(LengthRate(name, length, texts.tokens / seconds, system.rss_bytes / 1e6))
        print(f"{name}, {length} tokens a text: {texts.tokens / seconds:,.0f} tokens/s", flush=True)
    return rates


def measure_load(
    name: str, served: ServedTrivec, queries: TextSet, clients: Sequence[int], duration_s: float
) -> list[LoadPoint]:
    """Short queries, dense vectors: so many clients, each of which sends the next one when it has its answer."""
    return [_load_point(name, served, queries, count, duration_s) for count in clients]


def _load_point(name: str, served: ServedTrivec, queries: TextSet, clients: int, duration_s: float) -> LoadPoint:
    seconds: list[float] = []
    ends_at = time.perf_counter() + duration_s
    with TrivecClient(served.target) as client:

        def keep_asking(first: int) -> None:
            number = first
            while (asked_at := time.perf_counter()) < ends_at:
                client.encode([queries.texts[number % len(queries.texts)]])
                seconds.append(time.perf_counter() - asked_at)
                number += clients

        started_at = time.perf_counter()
        threads = [threading.Thread(target=keep_asking, args=(first,)) for first in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed_s = time.perf_counter() - started_at
    p50, p99 = np.percentile(seconds, [50, 99])
    return LoadPoint(name, clients, len(seconds) / elapsed_s, float(p50), float(p99))


def _latency(name: str, what: str, seconds: list[float]) -> Latency:
    p50, p99 = np.percentile(seconds, [50, 99])
    return Latency(name, what, len(seconds), float(p50), float(p99))
