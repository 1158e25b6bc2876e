"""The arithmetic between what a benchmark measures and what it says."""

import json
from pathlib import Path

import pytest

from benchmarks.engines.figures import DIRECT_SUFFIX, cpu_figures, gpu_figures
from benchmarks.engines.flops import BGE_M3
from benchmarks.engines.report import BEGIN, END, cost_per_million, fill_document, make_section
from benchmarks.engines.results import Latency, Results, SystemResult, ratio, read_results

OURS = "trivec openvino-bfloat16"


def some_results() -> Results:
    """Two rounds; in the second the machine is half as fast."""
    return Results(
        kind="cpu",
        machine={
            "processor": "Some CPU",
            "instructions": ["amx_bf16"],
            "cores": 2,
            "memory_gib": 16.0,
            "system": "Linux 6",
            "versions": {"numpy": "2.4"},
            "date": "2026-01-01",
        },
        workload={"texts": 64, "tokens": 3400, "longest": 400, "seed": 17, "rounds": 2, "model": "random weights"},
        chosen=OURS,
        price_per_hour=0.36,
        systems=[
            SystemResult(OURS, "all three", "openvino; float32 vectors", "bfloat16", rates=[600.0, 300.0]),
            SystemResult(OURS + DIRECT_SUFFIX, "all three", rates=[640.0, 320.0]),
            SystemResult("FlagEmbedding", "all three", rates=[60.0, 30.0]),
            SystemResult("sentence-transformers", "dense", rates=[100.0, 50.0]),
            SystemResult("sentence-transformers, bfloat16", "dense", rates=[400.0, 200.0]),
            SystemResult("bge-m3-lite", "all three", rates=[200.0, 100.0]),
            SystemResult("m3serve", "all three", rates=[None, None], failure="ended with -9"),
        ],
        matmul={"bfloat16": [500e9, 250e9], "float32": [100e9, 50e9]},
        latencies=[
            Latency(OURS, "100 characters", 100, 0.1, 0.2),
            Latency(OURS, "short", 75, 0.06, 0.07),
            Latency(OURS + DIRECT_SUFFIX, "short", 75, 0.05, 0.06),
        ],
    )


def test_flops_per_token_are_those_of_the_model() -> None:
    assert BGE_M3.linear_flops_per_token == 603_979_776
    assert BGE_M3.attention_flops_per_token_pair == 98_304
    assert BGE_M3.flops([512]) / 512 == pytest.approx(654e6, rel=1e-3)
    assert BGE_M3.flops([8192]) / 8192 == pytest.approx(1.41e9, rel=1e-2)


def test_ratios_are_taken_within_a_round() -> None:
    assert ratio([600.0, 300.0], [60.0, 30.0]) == 10.0
    assert ratio([600.0, None], [60.0, 30.0]) == 10.0
    assert ratio([None], [60.0]) is None


def test_cpu_figures_are_those_of_the_chosen_engine() -> None:
    figures = cpu_figures(some_results(), BGE_M3, [512])
    assert figures["cpu_mixed_vs_flagembedding"] == 10.0
    assert figures["cpu_mixed_vs_sentence_transformers"] == 1.5
    assert figures["cpu_mixed_vs_sentence_transformers_float32"] == 6.0
    assert figures["cpu_mixed_vs_best_other"] == 3.0
    assert figures["cpu_grpc_vs_direct"] == pytest.approx(0.9375)
    assert figures["cpu_p99_100_chars_s"] == 0.2
    assert figures["cpu_short_p50_vs_bare"] == pytest.approx(1.2)
    assert figures["cpu_share_of_matmul"] == pytest.approx(600 * 654.3e6 / 500e9, rel=1e-3)
    assert "cpu_mixed_vs_triton" not in figures


def test_gpu_figures_hold_float8_against_float16() -> None:
    half, eight = (f"trivec pytorch-{precision}{DIRECT_SUFFIX}" for precision in ("float16", "float8"))
    results = some_results()
    results.systems = [SystemResult(half, "all three", rates=[5e5]), SystemResult(eight, "all three", rates=[6e5])]
    results.passages = {half: [7e5], eight: [10e5]}
    results.matmul = {"float16": [700e12]}
    figures = gpu_figures(results, BGE_M3, [512])
    assert figures["gpu_fp8_vs_fp16"] == pytest.approx(10 / 7)
    assert figures["gpu_512_share_of_matmul"] == pytest.approx(7e5 * 654.3e6 / 700e12, rel=1e-3)
    assert "gpu_mixed_vs_flagembedding" not in figures


def test_a_million_tokens_cost_what_the_machine_costs_meanwhile() -> None:
    assert cost_per_million(3.6, 1000.0) == pytest.approx(1.0)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = some_results()
    results.write(tmp_path / "cpu-some.json")
    assert read_results(tmp_path / "cpu-some.json") == results
    json.loads((tmp_path / "cpu-some.json").read_text())


def test_the_document_shows_every_system_also_one_that_failed() -> None:
    results = some_results()
    results.figures = cpu_figures(results, BGE_M3, [512])
    document = fill_document(f"before\n{BEGIN}\nold\n{END}\nafter\n", make_section([("some", results)]))
    assert document.startswith("before\n")
    assert document.endswith("after\n")
    assert "old" not in document
    for system in results.systems:
        assert system.name in document
    assert "m3serve was not measured: ended with -9" in document


def test_a_document_without_the_comments_is_left_alone() -> None:
    with pytest.raises(ValueError, match="must have the lines"):
        fill_document("nothing here", "section")
