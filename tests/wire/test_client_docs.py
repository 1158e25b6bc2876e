"""Every Python and shell example of docs/client.md runs, against m3-mini."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving_process import serve

GUIDE = Path(__file__).parents[2] / "docs" / "client.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def target(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(mini_repository, log_path=tmp_path_factory.mktemp("serve") / "log") as server:
        yield server.target


def test_the_python_examples_run(target: str, tmp_path: Path) -> None:
    program = "\n".join(blocks("python")).replace("127.0.0.1:8001", target)
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "INVALID_ARGUMENT ['texts[0]']\n"


def test_the_shell_examples_run(target: str, tmp_path: Path) -> None:
    commands = Path(sys.executable).parent
    environment = {**os.environ, "TRIVEC_TARGET": target, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    (script,) = blocks("sh")
    finished = subprocess.run(
        ["sh", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("SERVING\n")
    assert (tmp_path / "embeddings.parquet").exists()
