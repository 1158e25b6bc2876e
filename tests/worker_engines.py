"""
Engines in plain sight for the tests of engine processes: importable by name, and told by a batch's ids what to do.

An engine's directory (the version's) holds what it shares with its test: the pipes `entered` and `gate`, and `events`,
a line for each thing that has happened.
"""

import ctypes
import enum
import os
import resource
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
from trivec_server.backends.interface import (
    Engine,
    EngineInfo,
    EngineLost,
    EngineOutput,
    EngineRequest,
    LexicalRows,
    RunningBatch,
    TokenBatch,
)
from trivec_server.backends.worker.engine import start_worker
from trivec_server.errors import ComputeError, LoadError
from trivec_server.logs import configure_logs, get_logger
from trivec_server.types import Mode

from tests.scripted_engine import Script, ScriptedEngine


class Command(enum.IntEnum):
    """What an engine does with a batch whose second token this is. Any other batch it computes."""

    RAISE_VALUE_ERROR = 900
    RAISE_MEMORY_ERROR = 901
    RAISE_COMPUTE_ERROR = 902
    LOSE_DEVICE = 903
    BE_KILLED = 904
    EXIT = 905
    CRASH = 906
    WAIT = 907
    LOG = 908
    GIVE_TOO_MUCH = 909


EXIT_CODE = 3
TOO_MUCH = 1 << 46
"""Numbers for which no process has addresses."""


def batch_of(*texts: tuple[int, ...]) -> TokenBatch:
    """A batch of these texts, each between <s> and </s>."""
    sequences = [(0, *text, 2) for text in texts]
    return TokenBatch(
        np.array([token for sequence in sequences for token in sequence], np.int64),
        np.array([len(sequence) for sequence in sequences], np.int64),
    )


def make_directory(directory: Path) -> EngineRequest:
    """A version's directory for the engines here."""
    directory.mkdir(parents=True)
    os.mkfifo(directory / "entered")
    os.mkfifo(directory / "gate")
    return EngineRequest(version_dir=directory)


class ObedientEngine:
    """The scripted engine's arrays, with float16 and every other part that an engine may give."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._engine = ScriptedEngine(Script())

    @property
    def info(self) -> EngineInfo:
        return replace(self._engine.info, notes=(f"process {os.getpid()}",))

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        self.obey(batch)
        output = self._engine.run(batch, modes)
        if batch.token_ids[1] == Command.GIVE_TOO_MUCH:
            return replace(output, dense=np.broadcast_to(np.float32(0), (len(batch.lengths), TOO_MUCH)))
        if half:
            vectors = output.multi_vector
            output = replace(
                output,
                dense=None if output.dense is None else output.dense.astype(np.float16),
                multi_vector=None if vectors is None else [rows.astype(np.float16) for rows in vectors],
            )
        if Mode.SPARSE in modes:
            bounds = np.arange(len(batch.lengths) + 1, dtype=np.int64)
            ids = batch.lengths.astype(np.uint32)
            output = replace(output, lexical=LexicalRows(ids, ids.astype(np.float32), bounds))
        rows = np.flatnonzero(batch.lengths % 3 == 0)
        return replace(output, non_finite_rows=rows, recomputed_rows=len(batch.lengths))

    def obey(self, batch: TokenBatch) -> None:
        """Does what the batch says."""
        match int(batch.token_ids[1]):
            case Command.RAISE_VALUE_ERROR:
                raise ValueError(f"{len(batch.lengths)} texts")
            case Command.RAISE_MEMORY_ERROR:
                raise MemoryError("too much")
            case Command.RAISE_COMPUTE_ERROR:
                raise ComputeError("texts[0]: no")
            case Command.LOSE_DEVICE:
                raise EngineLost("the device fell off the bus")
            case Command.BE_KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            case Command.EXIT:
                os._exit(EXIT_CODE)
            case Command.CRASH:
                # No core file.
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                ctypes.string_at(0)
            case Command.WAIT:
                (self._directory / "entered").write_bytes(b"")
                (self._directory / "gate").read_bytes()
            case Command.LOG:
                get_logger("engine").info("not so urgent")
                get_logger("engine").warning("urgent", number=1)

    def tell(self, event: str) -> None:
        """Notes what has happened."""
        with (self._directory / "events").open("a", encoding="utf-8") as events:
            events.write(f"{event}\n")

    def close(self) -> None:
        self.tell("closed")


class ObedientOverlappingEngine(ObedientEngine):
    """Computes when the result is asked for, and notes when what is asked of it."""

    def submit(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> RunningBatch:
        self.tell("submitted")
        return _Running(self, batch, modes, half)


class _Running:
    def __init__(self, engine: ObedientOverlappingEngine, batch: TokenBatch, modes: Mode, half: bool) -> None:
        self._engine = engine
        self._asked = (batch, modes, half)

    def result(self) -> EngineOutput:
        batch, modes, half = self._asked
        output = self._engine.run(batch, modes, half=half)
        self._engine.tell("collected")
        return output


class _EndlessEngine(ObedientEngine):
    def close(self) -> None:
        threading.Event().wait()


def obedient(request: EngineRequest) -> Engine:
    """Its factory; the others' too."""
    return ObedientEngine(request.version_dir)


def overlapping(request: EngineRequest) -> Engine:
    return ObedientOverlappingEngine(request.version_dir)


def endless(request: EngineRequest) -> Engine:
    """Never closes."""
    return _EndlessEngine(request.version_dir)


def refusing(request: EngineRequest) -> Engine:
    raise LoadError(f"no engine in {request.version_dir.name}")


def faulty(request: EngineRequest) -> Engine:
    raise KeyError("a fault of the engine's program")


def dying(request: EngineRequest) -> Engine:
    os.kill(os.getpid(), signal.SIGKILL)
    return obedient(request)


def hold(directory: str) -> None:
    """Has an engine process that is busy until this one is killed."""
    engine = start_worker(obedient, EngineRequest(version_dir=Path(directory)))
    engine.run(batch_of((Command.WAIT,)), Mode.HYBRID)


def log(directory: str, level: str, log_format: str) -> None:
    """An engine process that logs, of a process that logs so."""
    configure_logs(level, log_format)
    engine = start_worker(obedient, EngineRequest(version_dir=Path(directory)))
    engine.run(batch_of((Command.LOG,)), Mode.DENSE)
    engine.close()
