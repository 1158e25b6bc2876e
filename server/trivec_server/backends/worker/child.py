"""The server's side of an engine's process: started, spoken to, and seen to its end."""

import contextlib
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from trivec_server.backends.interface import EngineLost
from trivec_server.backends.worker.memory import SharedArea
from trivec_server.backends.worker.messages import SLOTS, FromProcess, ToProcess
from trivec_server.errors import LoadError
from trivec_server.logs import get_logger

_log = get_logger(__name__)

END_S = 5.0
"""A process that has nothing more to do may take so long to end."""
_LOOK_MS = 1000
_MODULE = "trivec_server.backends.worker.process"


class ChildProcess:
    """The process with all that is shared with it. Whatever is done with it after its end raises EngineLost."""

    def __init__(self, label: str) -> None:
        """
        Raises:
            LoadError: the system does not let another process start.
        """
        self.batches = [SharedArea.create("trivec-batch") for _ in range(SLOTS)]
        self.results = [SharedArea.create("trivec-result") for _ in range(SLOTS)]
        self._connection: Connection[Any, Any]
        self._connection, theirs = Pipe()
        try:
            self._process = _start((theirs.fileno(), *(area.fd for area in self._areas)), label)
        except OSError as error:
            self._release()
            raise LoadError(f"no process can be started for the engine: {error.strerror}") from error
        finally:
            theirs.close()
        self._poller = select.poll()
        self._poller.register(self._connection.fileno(), select.POLLIN)
        self._ended: str | None = None
        _log.info("engine process started", pid=self.pid, engine=label)

    @property
    def pid(self) -> int:
        """The system's number of it."""
        return self._process.pid

    @property
    def _areas(self) -> list[SharedArea]:
        return self.batches + self.results

    def check(self) -> None:
        """Raises EngineLost if the process has ended."""
        if self._ended is not None or self._process.poll() is not None:
            raise self._lost()

    def send(self, message: ToProcess) -> None:
        """Messages are small, and few are under way: this never waits for the process to read."""
        self.send_bytes(pickle.dumps(message))

    def send_bytes(self, message: bytes) -> None:
        """As `send`."""
        try:
            self._connection.send_bytes(message)
        except OSError:
            raise self._lost() from None

    def receive(self, timeout_s: float | None = None) -> FromProcess:
        """Waits for a message or for the end of the process; kills a process that sends none for `timeout_s`."""
        if self._ended is not None:
            raise self._lost()
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        try:
            # The end of the connection tells of the end of the process, unless a process that it has started lives on
            # and holds the connection: so look at the process itself, too.
            while not self._poller.poll(_wait_ms(deadline)):
                if self._process.poll() is not None and not self._poller.poll(0):
                    raise self._lost()
                if time.monotonic() >= deadline:
                    raise self._hung(f"gave no answer for {timeout_s:g} s")
            message: FromProcess = self._connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        return message

    def end(self, patience_s: float) -> None:
        """Waits for the process to end, so long at most; then kills it."""
        if self._ended is not None:
            return
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            if patience_s:
                _log.warning("engine process killed: it did not end by itself", pid=self.pid, patience_s=patience_s)
            self._process.kill()
        self._ended = self._reap()
        self._release()

    def _release(self) -> None:
        self._connection.close()
        for area in self._areas:
            area.close()

    def _reap(self) -> str:
        """How the process ended."""
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            # It is stuck in the kernel, in a driver.
            _log.error("engine process does not end although it was killed", pid=self.pid)
            return "hangs and could not be killed"
        if code >= 0:
            return f"ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"was killed by signal {-code}"

    def _hung(self, what: str) -> EngineLost:
        _log.error("engine process killed: it hangs", pid=self.pid, reason=what)
        self.end(0.0)
        self._ended = f"{what} and {self._ended}"
        return self._lost()

    def _lost(self) -> EngineLost:
        self.end(END_S)
        return EngineLost(f"the engine's process {self._ended}")


def _wait_ms(deadline: float) -> float:
    """How long to wait before the next look at the process, in ms; to the deadline at most."""
    return max(0.0, min(_LOOK_MS, 1000 * (deadline - time.monotonic())))


def _start(fds: tuple[int, ...], label: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", "-m", _MODULE, ",".join(map(str, fds)), label]
    paths = os.pathsep.join(path or str(os.curdir) for path in sys.path)
    # A signal to all processes of the server must not end this one before it knows that it is to ignore it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        return subprocess.Popen(  # noqa: S603 - the command is this program's own
            command, stdin=subprocess.DEVNULL, pass_fds=fds, env={**os.environ, "PYTHONPATH": paths}
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
