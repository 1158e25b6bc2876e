"""perf_analyzer, Triton's own load generator, against the real server: it ends well, with figures from both sides."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving_process import ServingProcess, serve
from tests.triton.triton_server import ROOT

PERF_ANALYZER = ROOT / ".venv-tritonclient" / "perf_analyzer" / "perf_analyzer"
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def server(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with serve(mini_repository, log_path=tmp_path_factory.mktemp("perf-analyzer") / "server.log") as server:
        yield server


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for --input-data: texts that perf_analyzer sends in turn."""
    words = ["sunlight", "Lisboa", "人工智能"]
    file = tmp_path_factory.mktemp("texts") / "texts.json"
    data = [{"text": {"content": [" ".join(words[:count])], "shape": [1]}} for count in (1, 2, 3)]
    file.write_text(json.dumps({"data": data}), encoding="utf-8")
    return file


def analyze(server: ServingProcess, texts: Path, *flags: str) -> str:
    """What perf_analyzer printed: windows of a hundred requests until two are alike, or four."""
    done = subprocess.run(
        [
            *(str(PERF_ANALYZER), "-m", "m3-mini", "-i", "grpc", "-u", server.target, "--input-data", str(texts)),
            *("--measurement-mode", "count_windows", "--measurement-request-count", "100"),
            *("--stability-percentage", "1000", "--max-trials", "4"),
            *flags,
        ],
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def figures(printed: str, name: str) -> list[float]:
    return [float(figure) for figure in re.findall(rf"{name}: ([\d.]+)", printed)]


@pytest.mark.parametrize(
    "flags", [(), ("--async",), ("--streaming",), ("-b", "3")], ids=["sync", "async", "stream", "rows"]
)
def test_it_measures_a_throughput_and_reads_the_statistics(
    server: ServingProcess, texts: Path, flags: tuple[str, ...]
) -> None:
    printed = analyze(server, texts, "--concurrency-range", "2", *flags)
    (throughput,) = figures(printed, "Throughput")
    assert throughput > 0
    rows = 3 if "-b" in flags else 1
    (sent,) = figures(printed, "Request count")
    (inferred,) = figures(printed, "Inference count")
    (succeeded,) = figures(printed, "Successful request count")
    assert sent > 0
    # The server's counts are taken around the client's, so they may hold a few requests more.
    assert inferred == succeeded * rows
    assert succeeded >= sent
    assert re.search(r"queue \d+ usec \+ compute input \d+ usec \+ compute infer \d+ usec", printed)
