"""The peers of the CPU benchmark: where each runs, with which settings, what it gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.engines.environments import environment
from benchmarks.engines.process import SystemFailed, run_module
from benchmarks.engines.weights import MAX_TOKENS, BenchmarkModel

Options: TypeAlias = Mapping[str, Any]
ALL_THREE = "all three"
DENSE = "dense"


@dataclass(frozen=True, slots=True)
class Peer:
    """
    A system to compare with. Of several `settings` the fastest is measured. `prepare` makes files that it needs and
    gives further options.
    """

    name: str
    environment: str
    module: str
    outputs: str
    settings: tuple[Options, ...]
    prepare: Callable[[BenchmarkModel, bool], Options] = field(default=lambda _model, _install: {})


def _exported(model: BenchmarkModel, may_install: bool) -> Path:
    """An ONNX graph of the checkpoint, by optimum."""
    directory = model.work / "onnx"
    directory.mkdir(exist_ok=True)
    python = environment("infinity", may_install=may_install)
    run_module(python, "benchmarks.engines.peers.export_onnx", model.checkpoint, directory)
    return directory


def _prepare_infinity(model: BenchmarkModel, may_install: bool) -> Options:
    return {"model": str(_exported(model, may_install))}


def _prepare_bge_m3_lite(model: BenchmarkModel, may_install: bool) -> Options:
    if model.small:
        raise SystemFailed("it knows BGE-M3's own shapes alone")
    directory = _exported(model, may_install)
    python = environment("bge-m3-lite", may_install=may_install)
    run_module(python, "benchmarks.engines.peers.fuse_onnx", directory)
    return {"directory": str(directory), "graph": "model_fused.onnx"}


def _prepare_triton(model: BenchmarkModel, may_install: bool) -> Options:
    return {"directory": str(model.work / "triton"), "version": str(model.version)}


CPU_PEERS = (
    Peer(
        "FlagEmbedding",
        "flagembedding",
        "benchmarks.engines.peers.flagembedding",
        ALL_THREE,
        ({"batch_size": 16}, {"batch_size": None}),
    ),
    Peer(
        "sentence-transformers",
        "sentence-transformers",
        "benchmarks.engines.peers.sentence_transformers",
        DENSE,
        (
            {"backend": "torch", "precision": "float32", "batch_size": 16},
            {"backend": "torch", "precision": "float32", "batch_size": 32},
        ),
    ),
    Peer(
        "sentence-transformers, bfloat16",
        "sentence-transformers",
        "benchmarks.engines.peers.sentence_transformers",
        DENSE,
        (
            {"backend": "torch", "precision": "bfloat16", "batch_size": 16},
            {"backend": "torch", "precision": "bfloat16", "batch_size": 32},
        ),
    ),
    Peer(
        "sentence-transformers, OpenVINO",
        "sentence-transformers",
        "benchmarks.engines.peers.sentence_transformers",
        DENSE,
        ({"backend": "openvino", "precision": "bfloat16", "batch_size": 16},),
    ),
    Peer(
        "infinity-emb",
        "infinity",
        "benchmarks.engines.peers.infinity",
        DENSE,
        (
            {"engine": "torch", "precision": "float32", "batch_size": 16},
            {"engine": "torch", "precision": "bfloat16", "batch_size": 16},
        ),
    ),
    Peer(
        "infinity-emb, optimum",
        "infinity",
        "benchmarks.engines.peers.infinity",
        DENSE,
        ({"engine": "optimum", "precision": "float32", "batch_size": 16},),
        _prepare_infinity,
    ),
    Peer(
        "bge-m3-lite",
        "bge-m3-lite",
        "benchmarks.engines.peers.bge_m3_lite",
        ALL_THREE,
        ({"batch_size": 12, "spin": True},),
        _prepare_bge_m3_lite,
    ),
    Peer(
        "m3serve",
        "m3serve",
        "benchmarks.engines.peers.m3serve",
        ALL_THREE,
        ({"batch_size": 8, "attention": "sdpa"}, {"batch_size": 16, "attention": "sdpa"}),
    ),
    Peer(
        "Triton",
        "triton",
        "benchmarks.engines.peers.triton",
        ALL_THREE,
        ({"batch_size": 8},),
        _prepare_triton,
    ),
)


def options_of(setting: Options, prepared: Options, model: BenchmarkModel, device: str, threads: int) -> dict[str, Any]:
    """Everything that a peer's module is told."""
    common = {"model": str(model.checkpoint), "max_tokens": MAX_TOKENS, "device": device, "threads": threads}
    return {**common, **setting, **prepared}
