"""`trivec` in a process of its own, as a user runs it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command did."""

    code: int
    out: str
    err: str


def trivec(*arguments: str | Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> Finished:
    """Runs a command to its end with these variables set, too, and no standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "trivec_server", *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)
