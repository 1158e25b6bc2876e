"""An engine in a process of its own."""

import contextlib
import pickle
from collections import deque

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import (
    EngineFactory,
    EngineInfo,
    EngineLost,
    EngineOutput,
    EngineRequest,
    TokenBatch,
)
from trivec_server.backends.worker.child import END_S, ChildProcess
from trivec_server.backends.worker.memory import read_output, write_batch
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
)
from trivec_server.errors import LoadError
from trivec_server.logs import get_logger, log_level_and_format
from trivec_server.types import Mode

_log = get_logger(__name__)

_CLOSE_TIMEOUT_S = 10.0
_HUNG_S = 600.0
"""Far more than any batch takes: a text of 8192 tokens on a small CPU takes over a minute."""


def start_worker(
    factory: EngineFactory,
    request: EngineRequest,
    *,
    close_timeout_s: float = _CLOSE_TIMEOUT_S,
    hung_s: float = _HUNG_S,
) -> "WorkerEngine":
    """
    Builds the engine in a new process; returns one that sends its batches there. The process is a fresh one, no fork:
    neither CUDA nor threads survive a fork.

    Args:
        factory: Importable by its name: a function of a module.
        request: What the factory is given.
        close_timeout_s: The engine may take so long to close before its process is killed.
        hung_s: A process that gives no answer to a batch for so long hangs, and is killed.

    Raises:
        LoadError: the engine cannot be built, or its process died over it.
    """
    level, log_format = log_level_and_format()
    # Before anything is started: a factory that cannot be sent is the programmer's mistake.
    build = pickle.dumps(Build(factory=factory, request=request, log_level=level, log_format=log_format))
    process = ChildProcess(_label(factory, request))
    try:
        return WorkerEngine(process, _build(process, build), close_timeout_s=close_timeout_s, hung_s=hung_s)
    except LoadError:
        process.end(END_S)
        raise
    except BaseException:
        process.end(0.0)
        raise


def _build(process: ChildProcess, message: bytes) -> Built:
    try:
        process.send_bytes(message)
        answer = process.receive()
    except EngineLost as loss:
        what = f"{loss} while it loaded the model"
        raise LoadError(f"{what}; the server's log may say why, or the kernel's, if memory ran out") from loss
    if isinstance(answer, Built):
        return answer
    error = _error_of(answer)
    if isinstance(error, LoadError):
        raise error
    _log.error("engine process could not build its engine", pid=process.pid, exc_info=error)
    raise LoadError("an unexpected error; the server's log has it") from error


def _error_of(answer: FromProcess) -> Exception:
    """What an answer says that is not the one hoped for."""
    return answer.error() if isinstance(answer, Failure) else TypeError(type(answer).__name__)


def _label(factory: EngineFactory, request: EngineRequest) -> str:
    """What `ps` shows: the engine, the model's version, the GPU."""
    gpu = "" if request.device_index is None else f" gpu {request.device_index}"
    name = getattr(factory, "__name__", type(factory).__name__)
    return f"{name} {request.version_dir.parent.name}/{request.version_dir.name}{gpu}"


class WorkerEngine:
    """
    An OverlappingEngine whose work is done by another process. Its arrays are its caller's own: no later batch changes
    them.
    """

    def __init__(self, process: ChildProcess, built: Built, *, close_timeout_s: float, hung_s: float) -> None:
        self._process = process
        self._close_timeout_s = close_timeout_s
        self._hung_s = hung_s
        self._info = built.info
        self._overlaps = built.overlaps
        self._pending: deque[_RemoteBatch] = deque()
        self._submitted = 0

    @property
    def info(self) -> EngineInfo:
        """What the engine is; constant."""
        return self._info

    @property
    def process_id(self) -> int:
        """Of the engine's process."""
        return self._process.pid

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        """
        One forward pass.

        Raises:
            MemoryError: the batch does not fit; a smaller one may.
            EngineLost: the process or its device is gone, or it hung and was killed; says how it ended.
            ComputeError: as the engine says.
            RuntimeError: whatever else the engine raised; its traceback is the cause.
        """
        return self.submit(batch, modes, half=half).result()

    def submit(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> "_RemoteBatch":
        """
        Begins a forward pass. Returns at once unless two batches are under way already.

        Raises:
            MemoryError: there is no room for the batch.
            EngineLost: as `run`; other errors come with the result.
        """
        if len(self._pending) == SLOTS:
            self.receive()
        self._process.check()
        number = self._submitted
        write_batch(self._process.batches[number % SLOTS], batch)
        self._process.send(Compute(number, len(batch.token_ids), len(batch.lengths), modes, half))
        self._submitted += 1
        running = _RemoteBatch(self, number, batch.lengths.copy())
        self._pending.append(running)
        return running

    def receive(self) -> None:
        """Waits for the oldest batch under way and gives it its outcome; EngineLost is the outcome of all."""
        self._receive(self._hung_s)

    def _receive(self, timeout_s: float) -> None:
        try:
            answer = self._next_answer(timeout_s)
        except EngineLost as loss:
            while self._pending:
                self._pending.popleft().outcome = EngineLost(str(loss))
            return
        # The batch is answered, whatever becomes of its answer: the next answer is for the next batch.
        batch = self._pending.popleft()
        batch.outcome = answer if isinstance(answer, Exception) else self._read(batch, answer)

    def _next_answer(self, timeout_s: float) -> Computed | Exception:
        if self._overlaps and len(self._pending) < SLOTS:
            self._process.send(Collect(self._pending[0].number))
        answer = self._process.receive(timeout_s)
        if isinstance(answer, Computed):
            return answer
        error = _error_of(answer)
        if isinstance(error, EngineLost):
            self._process.end(END_S)
            raise error
        return error

    def _read(self, batch: "_RemoteBatch", answer: Computed) -> EngineOutput | Exception:
        try:
            return read_output(self._process.results[batch.number % SLOTS], answer.layout, batch.lengths)
        except Exception as error:  # noqa: BLE001 - raised by the batch's `result`
            return error

    def close(self) -> None:
        """Waits for the batches under way, closes the engine and ends its process; kills it if that takes too long."""
        while self._pending:
            self._receive(self._close_timeout_s)
        with contextlib.suppress(EngineLost):
            self._process.send(Close())
        self._process.end(self._close_timeout_s)


class _RemoteBatch:
    """A batch that the process has been given."""

    def __init__(self, engine: WorkerEngine, number: int, lengths: NDArray[np.int64]) -> None:
        self._engine = engine
        self.number = number
        self.lengths = lengths
        self.outcome: EngineOutput | Exception | None = None

    def result(self) -> EngineOutput:
        """Waits for it. Raises as `WorkerEngine.run`."""
        while self.outcome is None:
            self._engine.receive()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome
