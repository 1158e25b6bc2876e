"""The Python example of docs/triton.md runs with Triton's own client, against m3-mini."""

import re
import subprocess
from pathlib import Path

from tests.serving_process import serve

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "triton.md"
CLIENT = ROOT / ".venv-tritonclient" / "bin" / "python"


def test_the_python_example_runs(mini_repository: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    with serve(mini_repository, log_path=tmp_path / "log") as server:
        finished = subprocess.run(
            [str(CLIENT), "-c", program.replace("127.0.0.1:8001", server.target)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == ["(384,)", "(384,)"]
    assert all(": 0." in line for line in lines)
