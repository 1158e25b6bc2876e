"""The real server in a process of its own, started as a user starts it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.ending import end

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60


@dataclass
class ServingProcess:
    """A running `trivec serve`. `greeting` is what it printed once its models were loaded."""

    process: subprocess.Popen[str]
    target: str
    metrics_port: int
    greeting: str
    log_path: Path
    started: bool = field(default=True)

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)


@contextmanager
def serve(repository: Path, *flags: str, log_path: Path | None = None) -> Iterator[ServingProcess]:
    """
    `trivec serve` on free ports until the block ends; yields once it has printed its greeting.

    `log_path` defaults to a file beside the repository.
    """
    log_path = log_path or repository.parent / f"{repository.name}.log"
    command = [
        *(sys.executable, "-m", "trivec_server", "serve", "--model-repository", str(repository)),
        *("--grpc-port", "0", "--metrics-port", "0", "--drain-pause-s", "0"),
        *flags,
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRIVEC_")}
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8", env=environment
        )
    try:
        server = _read_greeting(process, log_path)
        yield server
    finally:
        end(process, STOP_TIMEOUT_S)
        if process.stdout is not None:
            process.stdout.close()


def _read_greeting(process: subprocess.Popen[str], log_path: Path) -> ServingProcess:
    assert process.stdout is not None
    lines: list[str] = []
    # The greeting is written at once; its first line tells the ports, its last is known.
    for line in process.stdout:
        lines.append(line)
        if "client.encode(" in line or ("serves gRPC" not in line and "READY" not in line and not _more(line)):
            break
    greeting = "".join(lines)
    found = re.search(r"serves gRPC on (\S+:\d+), metrics on port (\d+)", greeting)
    if found is None:
        code = process.wait(START_TIMEOUT_S)
        raise AssertionError(f"trivec serve ended with {code}: {greeting}{log_path.read_text(encoding='utf-8')}")
    return ServingProcess(process, found[1], int(found[2]), greeting, log_path)


def _more(line: str) -> bool:
    """Whether the greeting goes on after this line."""
    return line.startswith(("  ", "Try it", "or in"))
