"""perf_analyzer as one of the clients."""

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines.process import ROOT
from benchmarks.triton.servers import on_cores

_PROGRAM = ROOT / ".venv-tritonclient" / "perf_analyzer" / "perf_analyzer"
_WINDOWS = 3
_LEAST_REQUESTS = 50
"""In a window."""


@dataclass(frozen=True)
class Analyzed:
    """Texts per second, and the time that 99 % of the requests stay below."""

    rate: float
    p99_s: float


def write_texts(path: Path, texts: Sequence[str]) -> None:
    """A file for --input-data, whose entries are sent in turn."""
    data = [{"text": {"content": [text], "shape": [1]}} for text in texts]
    path.write_text(json.dumps({"data": data}), encoding="utf-8")


def analyze(target: str, model: str, data: Path, *, concurrency: int, cores: Sequence[int]) -> Analyzed:
    """
    The average of three windows, each of a second or longer: perf_analyzer wants no fewer. It holds all answers in
    memory.

    Raises:
        SystemExit: perf_analyzer failed; gives what it printed.
    """
    command = [
        *(str(_PROGRAM), "-m", model, "-i", "grpc", "-u", target, "--async"),
        *("--input-data", str(data), "--concurrency-range", str(concurrency), "--percentile", "99"),
        *(
            "--measurement-mode",
            "count_windows",
            "--measurement-request-count",
            str(max(_LEAST_REQUESTS, 2 * concurrency)),
        ),
        # However much the windows differ: other rounds tell about chance.
        *("--stability-percentage", "1000", "--max-trials", str(_WINDOWS)),
    ]
    with on_cores(cores):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    rate = re.search(r"Throughput: ([\d.]+) infer/sec", done.stdout)
    p99 = re.search(r"p99 latency: (\d+) usec", done.stdout)
    if done.returncode or rate is None or p99 is None:
        raise SystemExit(f"perf_analyzer ended with {done.returncode}: {done.stdout}{done.stderr}")
    return Analyzed(float(rate[1]), int(p99[1]) / 1e6)
