"""The part of the GPU benchmark that needs a server and texts: Trivec through gRPC, and FlagEmbedding beside it."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.engines.contest import fastest_setting
from benchmarks.engines.lengths import TextSet
from benchmarks.engines.peers.catalog import ALL_THREE, options_of
from benchmarks.engines.process import SystemFailed, WorkerProcess
from benchmarks.engines.results import Results, SystemResult
from benchmarks.engines.served import ServedTrivec
from benchmarks.engines.short_streams import stream_rate
from benchmarks.engines.systems import PeerSystem
from benchmarks.engines.variants import GPU_VARIANTS, Variant, make_repository
from benchmarks.engines.weights import BenchmarkModel, make_model
from benchmarks.engines.workload import TextMaker

_BATCH_SIZES = (64, 128, 256)
_SHORT_TEXTS = 16_384
_TEXTS_PER_REQUEST = 256
_HYBRID_TEXTS_PER_REQUEST = 128
_STREAMS = 4
_STREAM_S = 5.0
_MODULE = "benchmarks.engines.peers.flagembedding"


@dataclass(frozen=True, slots=True)
class ServedPlace:
    """Where the server runs, and how many texts its batches may have."""

    device: str
    batch_texts: int
    small: bool


def measure_served(
    arguments: argparse.Namespace, place: ServedPlace, results: Results, query_lengths: Sequence[int]
) -> None:
    """
    Adds the server and FlagEmbedding to the results.

    Raises:
        SystemFailed: the server does not start.
    """
    model = make_model(arguments.work, small=place.small)
    logs = model.work / "logs"
    logs.mkdir(exist_ok=True)
    maker = TextMaker(model.tokenizer_file, arguments.seed)
    mixed = maker.mixed_corpus(arguments.texts)
    variant = GPU_VARIANTS[0]
    result = SystemResult(f"trivec {variant.name}", ALL_THREE, texts=len(mixed.texts))
    peer_result = SystemResult("FlagEmbedding", ALL_THREE, texts=len(mixed.texts))
    results.systems += [result, peer_result]
    served = Variant("pytorch") if place.small else variant
    kind = "KIND_CPU" if place.small else "KIND_GPU"
    repository = make_repository(model, served, kind=kind, max_batch_size=place.batch_texts)
    server = ServedTrivec(repository, "float16", logs / "served.log", _HYBRID_TEXTS_PER_REQUEST)
    try:
        result.settings = server.settings
        server.embed(mixed)
        queries = maker.with_lengths("short", [*query_lengths][:_SHORT_TEXTS])
        for duration_s in (_STREAM_S / 2, _STREAM_S):
            results.short_texts_per_s = stream_rate(
                server.target,
                queries,
                texts_per_request=min(_TEXTS_PER_REQUEST, len(queries.texts)),
                streams=_STREAMS,
                duration_s=duration_s,
            )
        peer = _open_peer(model, mixed, place.device, peer_result)
        for _ in range(arguments.rounds):
            result.rates.append(mixed.tokens / server.embed(mixed))
            if peer is not None:
                peer_result.rates.append(mixed.tokens / peer.embed(mixed))
        result.memory_mb = server.rss_bytes / 1e6
        if peer is not None:
            peer.close()
    finally:
        server.close()


def _open_peer(model: BenchmarkModel, mixed: TextSet, device: str, result: SystemResult) -> PeerSystem | None:
    """FlagEmbedding in this environment, at the batch size that suits it best; None: it cannot run."""
    if find_spec("FlagEmbedding") is None:
        result.failure = "FlagEmbedding is not installed in this environment"
        return None
    opens = [
        partial(
            _start, options_of({"batch_size": size}, {}, model, device, 0), model.work / "logs" / "flagembedding.log"
        )
        for size in _BATCH_SIZES
    ]
    try:
        peer = opens[fastest_setting(opens, mixed.every(2), result.tried)]()
        peer.embed(mixed.every(8))
    except SystemFailed as failure:
        result.failure = str(failure)
        return None
    result.settings, result.versions = peer.settings, dict(peer.versions)
    return peer


def _start(options: dict[str, object], log: Path) -> PeerSystem:
    return PeerSystem(WorkerProcess(Path(sys.executable), _MODULE, options, log))
