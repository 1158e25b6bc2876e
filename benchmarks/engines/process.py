"""The other end of `worker.py`: a peer's process, started, asked and ended."""

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines.worker import Message

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 600.0
CALL_TIMEOUT_S = 900.0


class SystemFailed(Exception):
    """A system could not be started, or did not answer; the message is for the table."""


@dataclass(frozen=True)
class Greeting:
    """What a worker said once it was ready."""

    settings: str
    versions: Mapping[str, str]


class WorkerProcess:
    """A module that calls `run_worker`, in a Python of its own."""

    def __init__(self, python: Path, module: str, options: Message, log: Path) -> None:
        """
        Starts it and waits until its model is loaded.

        Raises:
            SystemFailed: it cannot.
        """
        self._log = log
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python, "-m", module, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )
        try:
            ready = self._read(START_TIMEOUT_S)
        except SystemFailed:
            self.close()
            raise
        self.greeting = Greeting(ready["settings"], ready["versions"])

    def ask(self, message: Message) -> Message:
        """
        One operation.

        Raises:
            SystemFailed: it failed, or took more than CALL_TIMEOUT_S.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SystemFailed(f"ended with {self._process.wait()}; see {self._log.name}") from None
        return self._read(CALL_TIMEOUT_S)

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(90)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._kill()
            self._process.wait()
        self._process.stdout.close()

    def _kill(self) -> None:
        """Also what the worker has started: its session is its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _read(self, timeout_s: float) -> Message:
        assert self._process.stdout is not None
        timer = threading.Timer(timeout_s, self._kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            code = self._process.wait()
            raise SystemFailed(f"ended with {code}, or was ended after {timeout_s:.0f} s; see {self._log.name}")
        message: Message = json.loads(line)
        if "error" in message:
            raise SystemFailed(message["error"])
        return message


def run_module(python: Path, module: str, *arguments: Path) -> None:
    """
    A module in another Python, to its end.

    Raises:
        SystemFailed: it failed; gives its last line.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [str(python), "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SystemFailed(f"{module.rpartition('.')[2]}: {lines[-1] if lines else done.returncode}"[:300])
