"""`pull` in processes of their own, from a hub on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.hub_server import Hub

MODEL = "org/Tiny-M3"
WEIGHTS = "model.safetensors"

PULLER = """
import json, sys
from pathlib import Path
from trivec_server.errors import CommandError
from trivec_server.repository.pull import pull

source, repository, wait_at, options = json.loads(sys.argv[1])

def report(line):
    print(line, flush=True)
    if wait_at is not None and wait_at in line:
        sys.stdin.readline()

try:
    pull(source, Path(repository), report=report, **options)
except CommandError as error:
    sys.exit(f"error: {error}")
"""
"""The command, less its flags. It stops at the first line with `wait_at` in it until it gets a line."""


class Pulls:
    """Starts pulls from one hub into one repository, with a cache of their own."""

    def __init__(self, hub: Hub, directory: Path) -> None:
        self.hub = hub
        self.repository = directory / "repository"
        self.cache = directory / "huggingface"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(self.cache),
        }

    def start(self, *, wait_at: str | None = None, source: str = MODEL, **options: object) -> "subprocess.Popen[str]":
        arguments = json.dumps((source, str(self.repository), wait_at, options))
        return subprocess.Popen(
            [sys.executable, "-c", PULLER, arguments],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **options: object) -> str:
        """A pull that succeeds; returns what it reports."""
        output, errors = (process := self.start(**options)).communicate()  # type: ignore[arg-type]
        assert process.returncode == 0, errors
        return output

    def fail(self, **options: object) -> str:
        """A pull that fails as it should: one line, exit code 1, nothing in the repository. Returns the line."""
        _, errors = (process := self.start(**options)).communicate()  # type: ignore[arg-type]
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert process.returncode == 1
        assert len(lines) == 1
        assert "Traceback" not in errors
        assert errors.endswith(lines[0] + "\n")
        assert not self.repository.exists()
        return lines[0]
