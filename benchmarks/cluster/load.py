"""The generator's process, as the one that makes things happen meanwhile sees it."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cluster.calls import Calls, read_calls

_STOP_TIMEOUT_S = 20


class Load:
    """Commands to one generator."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._count = 0

    def capacity(self, *, seconds: float, in_flight: int) -> float:
        """Answered calls a second, with so many under way at a time."""
        self._send({"closed": {"seconds": seconds, "in_flight": in_flight}})
        return float(self._receive()["rate"])

    def begin(self, *phases: tuple[float, float]) -> float:
        """Starts an open load of phases (seconds, calls a second); returns the instant of its beginning."""
        self._count += 1
        self._send({"open": {"phases": phases, "seed": self._count}})
        return float(self._receive()["starts_at"])

    def finish(self, *, now: bool) -> Calls:
        """Ends the load that `begin` has started, now or when all its phases are over, and waits for its last call."""
        path = self._folder / f"calls-{self._process.pid}-{self._count}.npz"
        self._send({"finish": {"now": now, "path": str(path)}})
        self._receive()
        return read_calls(path)

    def _send(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the load generator ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running_load(corpus: Path, targets: Sequence[str], folder: Path, *options: str) -> Iterator[Load]:
    """A generator that calls `targets`, until the block ends."""
    command = [sys.executable, "-m", "benchmarks.cluster.generator", str(corpus), *targets, *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Load(process, folder)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
