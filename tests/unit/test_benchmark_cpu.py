"""The whole benchmark with a tiny model and no peers, as its user runs it."""

import subprocess
import sys
from pathlib import Path

from benchmarks.engines.results import read_results


def test_a_small_run_measures_an_engine_and_prints_its_figures_last(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.engines.cpu", "--small", "--rounds", "1", "--no-install", "--peers"]
    command += ["--engines", "onnxruntime", "--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("cpu-*-small.json")
    results = read_results(path)
    assert results.chosen == "trivec onnxruntime"
    assert [(each.name, each.failure) for each in results.systems] == [
        ("trivec onnxruntime", None),
        ("trivec onnxruntime, called directly", None),
    ]
    assert {"cpu_mixed_tokens_per_s", "cpu_grpc_vs_direct", "cpu_p99_100_chars_s"} <= set(results.figures)
    last = done.stdout.splitlines()[-len(results.figures) :]
    assert [line.split()[0] for line in last] == list(results.figures)


def test_without_a_gpu_the_gpu_benchmark_says_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.engines.gpu", "--work", str(tmp_path), "--results", str(tmp_path)]
    environment = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False, env=environment
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (2, 1)
    assert done.stdout.startswith("no GPU")
