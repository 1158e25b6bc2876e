"""
An engine's own process: `python -m trivec_server.backends.worker.process FDS LABEL`, started by `child.py`.

`FDS`, joined by commas: the connection to the server, the areas of batches, those of results. `LABEL` is for whoever
lists the processes. It ends when the server says so or is gone, whatever it is doing then.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trivec_server.backends.interface import Engine, EngineLost, EngineOutput, OverlappingEngine, RunningBatch
from trivec_server.backends.worker.memory import SharedArea, read_batch, write_output
from trivec_server.backends.worker.messages import (
    SLOTS,
    Build,
    Built,
    Close,
    Collect,
    Compute,
    Computed,
    Failure,
    FromProcess,
    ToProcess,
)
from trivec_server.logs import configure_logs, get_logger

_log = get_logger(__name__)

_LOST_EXIT_CODE = 1
_PROCESS_NAME = "trivec-engine"


def main(arguments: list[str]) -> None:
    """The life of the process."""
    _leave_signals_to_the_server()
    # Standard output is the server's, for its greeting.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(_PROCESS_NAME, encoding="ascii")
    fds = [int(fd) for fd in arguments[0].split(",")]
    areas = [SharedArea(fd) for fd in fds[1:]]
    with Connection(fds[0]) as connection:
        threading.Thread(target=_end_with_the_server, args=(fds[0],), name="watch", daemon=True).start()
        try:
            engine = _build(connection)
        except Exception as error:  # noqa: BLE001 - told to the server, which raises it
            connection.send(Failure.of(error))
            return
        try:
            _Computing(engine, connection, areas[:SLOTS], areas[SLOTS:]).run()
        except EngineLost:
            # Its library may wait for the dead device if it is closed.
            os._exit(_LOST_EXIT_CODE)
        engine.close()


def _leave_signals_to_the_server() -> None:
    """The server drains first, and needs its engines for that. It started this process with the signals blocked."""
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _end_with_the_server(fd: int) -> None:
    """Ends this process at once if the server's end of the connection is closed."""
    poller = select.poll()
    # No event asked for: a hang-up is always told.
    poller.register(fd, 0)
    poller.poll()
    os._exit(0)


def _build(connection: "Connection[Any, Any]") -> Engine:
    message: Build = connection.recv()
    configure_logs(message.log_level, message.log_format)
    engine = message.factory(message.request)
    connection.send(Built(engine.info, isinstance(engine, OverlappingEngine)))
    return engine


@dataclass(frozen=True, slots=True)
class _Begun:
    """A batch under way, or how it failed at once; its answer has its turn."""

    number: int
    running: RunningBatch | Failure


class _Finished:
    """A batch of an engine that does not overlap."""

    def __init__(self, output: EngineOutput) -> None:
        self._output = output

    def result(self) -> EngineOutput:
        return self._output


class _Computing:
    """Does what the server says, in the order in which it says it."""

    def __init__(
        self,
        engine: Engine,
        connection: "Connection[ToProcess, ToProcess]",
        batches: list[SharedArea],
        results: list[SharedArea],
    ) -> None:
        self._engine = engine
        # Asked once: to look for the methods of a protocol takes longer than a message.
        self._overlapping = engine if isinstance(engine, OverlappingEngine) else None
        self._connection: Connection[Any, Any] = connection
        self._batches = batches
        self._results = results
        self._begun: deque[_Begun] = deque()

    def run(self) -> None:
        """
        Until the server says that this is all.

        Raises:
            EngineLost: the device is gone; the server has been told.
        """
        while True:
            message: ToProcess = self._connection.recv()
            match message:
                case Compute():
                    self._begin(message)
                case Collect(number):
                    # Its answer may have crossed this message.
                    if self._begun and self._begun[0].number <= number:
                        self._finish()
                case Close():
                    return
                case _:
                    raise TypeError(message)

    def _begin(self, message: Compute) -> None:
        self._begun.append(_Begun(message.number, self._submit(message)))
        # An engine that does not overlap is ready now; with two under way, the server waits for the older.
        if self._overlapping is None or len(self._begun) == SLOTS:
            self._finish()

    def _submit(self, message: Compute) -> RunningBatch | Failure:
        try:
            batch = read_batch(self._batches[message.number % SLOTS], message.tokens, message.texts)
            if self._overlapping is not None:
                return self._overlapping.submit(batch, message.modes, half=message.half)
            return _Finished(self._engine.run(batch, message.modes, half=message.half))
        except Exception as error:  # noqa: BLE001 - told to the server, which raises it
            return self._failure(error)

    def _finish(self) -> None:
        begun = self._begun.popleft()
        self._connection.send(self._answer(begun))

    def _answer(self, begun: _Begun) -> FromProcess:
        if isinstance(begun.running, Failure):
            return begun.running
        try:
            return Computed(write_output(self._results[begun.number % SLOTS], begun.running.result()))
        except Exception as error:  # noqa: BLE001 - told to the server, which raises it
            return self._failure(error)

    def _failure(self, error: Exception) -> Failure:
        if isinstance(error, EngineLost):
            self._connection.send(Failure.of(error))
            raise error
        return Failure.of(error)


if __name__ == "__main__":
    main(sys.argv[1:])
