"""The figures that a benchmark prints last, out of its results."""

import statistics
from collections.abc import Sequence

from benchmarks.engines.flops import EncoderShape
from benchmarks.engines.results import Latency, Results, SystemResult, best_of, ratio

DIRECT_SUFFIX = ", called directly"
_FLAGEMBEDDING = "FlagEmbedding"
_SENTENCE_TRANSFORMERS = "sentence-transformers"
_TRITON = "Triton"


def cpu_figures(results: Results, shape: EncoderShape, mixed_lengths: list[int]) -> dict[str, float]:
    """What `make bench-cpu` reports of the engine that `auto` chooses; what was not measured is left out."""
    chosen = results.system(results.chosen)
    figures: dict[str, float | None] = {}
    if chosen is not None and chosen.tokens_per_s is not None:
        figures["cpu_mixed_tokens_per_s"] = chosen.tokens_per_s
        figures["cpu_mixed_vs_flagembedding"] = _versus(results, chosen, _FLAGEMBEDDING)
        figures["cpu_mixed_vs_sentence_transformers"] = _versus_best(chosen, _sentence_transformers(results))
        figures["cpu_mixed_vs_sentence_transformers_float32"] = _versus(results, chosen, _SENTENCE_TRANSFORMERS)
        figures["cpu_mixed_vs_best_other"] = _versus_best(chosen, _others(results))
        figures["cpu_mixed_vs_triton"] = _versus(results, chosen, _TRITON)
        figures["cpu_share_of_matmul"] = _share_of_matmul(results, chosen, shape, mixed_lengths)
        figures["cpu_grpc_vs_direct"] = _versus(results, chosen, chosen.name + DIRECT_SUFFIX)
    characters = latency_of(results, results.chosen, "100 characters")
    if characters is not None:
        figures["cpu_p99_100_chars_s"] = characters.p99_s
    short = latency_of(results, results.chosen, "short")
    bare = latency_of(results, results.chosen + DIRECT_SUFFIX, "short")
    if short is not None and bare is not None:
        figures["cpu_short_p50_vs_bare"] = short.p50_s / bare.p50_s
    return {name: value for name, value in figures.items() if value is not None}


def gpu_figures(results: Results, shape: EncoderShape, mixed_lengths: list[int]) -> dict[str, float]:
    """What `make bench-gpu` reports; what was not measured is left out."""
    half, eight = (f"trivec pytorch-{precision}{DIRECT_SUFFIX}" for precision in ("float16", "float8"))
    passages = results.passages.get(half, [])
    rates = results.matmul.get("float16", [])
    engine = results.system(half)
    served = results.system(half.removesuffix(DIRECT_SUFFIX))
    figures: dict[str, float | None] = {}
    if passages:
        figures["gpu_512_tokens_per_s"] = statistics.median(passages)
        figures["gpu_512_share_of_matmul"] = _share(passages, rates, shape, [512])
    if engine is not None and engine.rates:
        figures["gpu_mixed_tokens_per_s"] = engine.tokens_per_s
        figures["gpu_mixed_share_of_matmul"] = _share(engine.rates, rates, shape, mixed_lengths)
    if served is not None and served.rates:
        figures["gpu_mixed_grpc_tokens_per_s"] = served.tokens_per_s
        figures["gpu_mixed_vs_flagembedding"] = _versus(results, served, _FLAGEMBEDDING)
    figures["gpu_fp8_vs_fp16"] = ratio(results.passages.get(eight, []), passages)
    figures["gpu_short_texts_per_s"] = results.short_texts_per_s
    figures["gpu_8192_peak_gb"] = results.peak_8192_gb
    return {name: value for name, value in figures.items() if value is not None}


def latency_of(results: Results, system: str, what: str) -> Latency | None:
    """One system's latencies with one kind of text."""
    return next((each for each in results.latencies if (each.system, each.what) == (system, what)), None)


def share_of_rate(tokens_per_s: float, shape: EncoderShape, lengths: list[int], flops_per_s: float) -> float:
    """The arithmetic that texts of these lengths need, at this speed, over a rate."""
    return tokens_per_s * shape.flops(lengths) / sum(lengths) / flops_per_s


def _versus(results: Results, chosen: SystemResult, other: str) -> float | None:
    found = results.system(other)
    return None if found is None else ratio(chosen.rates, found.rates)


def _versus_best(chosen: SystemResult, others: Sequence[SystemResult]) -> float | None:
    best = best_of(others)
    return None if best is None else ratio(chosen.rates, best.rates)


def _sentence_transformers(results: Results) -> list[SystemResult]:
    """In each of its precisions and backends."""
    return [each for each in results.systems if each.name.startswith(_SENTENCE_TRANSFORMERS)]


def _others(results: Results) -> list[SystemResult]:
    """The peers that have no figure of their own, and Triton."""
    apart = ("trivec", _FLAGEMBEDDING, _SENTENCE_TRANSFORMERS)
    return [each for each in results.systems if not each.name.startswith(apart)]


def _share_of_matmul(results: Results, chosen: SystemResult, shape: EncoderShape, lengths: list[int]) -> float | None:
    """In the precision of the engine's matrix products."""
    return _share(chosen.rates, results.matmul.get(chosen.precision, []), shape, lengths)


def _share(
    rates: Sequence[float | None], products: Sequence[float], shape: EncoderShape, lengths: list[int]
) -> float | None:
    """The median over rounds of the arithmetic done, over what a plain product did in the same round."""
    pairs = [(mine, plain) for mine, plain in zip(rates, products, strict=False) if mine is not None]
    shares = [share_of_rate(mine, shape, lengths, plain) for mine, plain in pairs]
    return statistics.median(shares) if shares else None
