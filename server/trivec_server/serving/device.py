"""The thread that owns one engine instance: builds it, feeds it batches, builds it anew if it dies, closes it."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from trivec_server.backends.interface import EngineLost
from trivec_server.errors import ComputeError, LoadError, Unavailable
from trivec_server.logs import get_logger
from trivec_server.serving.batch_run import BatchRunner, Begun
from trivec_server.serving.batcher import Batch, Batcher
from trivec_server.serving.ticket import TicketT

_log = get_logger(__name__)

_FRUITLESS_RESTARTS = 3
"""An engine that dies so often in a row without finishing a batch is given up."""


class _Identified(Protocol):
    """The info of an engine of any kind."""

    @property
    def identity(self) -> tuple[str, ...]:
        """What must stay the same when an engine takes the place of another: its name, device, precision."""


class OwnedEngine(Protocol):
    """What a device asks of an engine of any kind."""

    @property
    def info(self) -> _Identified:
        """What this engine is; constant."""

    def close(self) -> None:
        """Releases the device's memory."""


EngineT = TypeVar("EngineT", bound=OwnedEngine)
_OwnedT_contra = TypeVar("_OwnedT_contra", bound=OwnedEngine, contravariant=True)
_ResultT = TypeVar("_ResultT")


class DeviceOwner(Protocol[TicketT, _OwnedT_contra]):
    """What a device tells of, on the event loop: results, and how its engine is."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where results are delivered."""

    def make_runner(self, engine: _OwnedT_contra) -> BatchRunner[TicketT]:
        """What runs batches on an engine. Called on the device's thread."""

    def device_lost(self, name: str) -> None:
        """The engine has died and is being built anew."""

    def device_restored(self, name: str) -> None:
        """It is at work again."""

    def device_failed(self, name: str, reason: str) -> None:
        """The device's thread has ended by an error: this engine will not come back."""

    def take_over(self, batches: Iterable[Batch[TicketT]]) -> bool:
        """Called on the device's thread as it gives up: whether another device computes these batches."""


class Device(Generic[TicketT, EngineT]):
    """
    One engine instance on its own thread. `start` builds the engine there and waits for it; `serve` lets it pull
    batches until the batcher is closed; `join` waits for its end.
    """

    def __init__(self, name: str, build: Callable[[], EngineT]) -> None:
        self.name = name
        self._build = build
        self._built: Future[None] = Future()
        self._work: Future[tuple[Batcher[TicketT], DeviceOwner[TicketT, EngineT]]] = Future()
        self._checks: list[tuple[Callable[[EngineT], Any], Future[Any]]] = []
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """
        Builds the engine on its thread. Blocks.

        Raises:
            LoadError: the engine cannot be built.
        """
        self._thread.start()
        self._built.result()

    def run_once(self, call: Callable[[EngineT], _ResultT]) -> _ResultT:
        """Calls a function with the engine on its thread, before `serve`: for self-check and warm-up. Blocks."""
        result: Future[_ResultT] = Future()
        with self._wake:
            self._checks.append((call, result))
            self._wake.notify()
        return result.result()

    def serve(self, batcher: Batcher[TicketT], owner: DeviceOwner[TicketT, EngineT]) -> None:
        """Begins to pull batches; results are delivered on the owner's event loop."""
        with self._wake:
            self._work.set_result((batcher, owner))
            self._wake.notify()

    def close(self) -> None:
        """Ends a device that never served. Blocks until the engine is closed."""
        with self._wake:
            self._work.cancel()
            self._wake.notify()
        self._thread.join()

    def join(self) -> None:
        """Waits until the batcher is closed and drained and the engine is closed."""
        self._thread.join()

    def _run(self) -> None:
        try:
            engine = self._build()
        except BaseException as error:  # noqa: BLE001 - `start` raises it where it is awaited
            self._built.set_exception(error)
            return
        self._built.set_result(None)
        self._run_checks(engine)
        if self._work.cancelled():
            engine.close()
        else:
            _Serving(self.name, self._build, engine, *self._work.result()).run()

    def _run_checks(self, engine: EngineT) -> None:
        """Makes the calls asked for until `serve` or `close` is called."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._checks or self._work.done())
                if not self._checks:
                    return
                call, result = self._checks.pop(0)
            try:
                result.set_result(call(engine))
            except EngineLost as loss:
                result.set_exception(LoadError(f"the engine died while it was checked: {loss}"))
            except BaseException as error:  # noqa: BLE001 - `run_once` raises it where it is awaited
                result.set_exception(error)


class _Serving(Generic[TicketT, EngineT]):
    """A device at work: the loop over batches, and a new engine for one that died."""

    def __init__(
        self,
        name: str,
        build: Callable[[], EngineT],
        engine: EngineT,
        batcher: Batcher[TicketT],
        owner: DeviceOwner[TicketT, EngineT],
    ) -> None:
        """`_again` are batches to run before any from the queue: halves, and what a dead engine had begun."""
        self._name = name
        self._build = build
        self._engine: EngineT | None = engine
        self._identity = engine.info.identity
        self._batcher = batcher
        self._owner = owner
        self._runner = owner.make_runner(engine)
        self._begun: deque[Begun[TicketT]] = deque()
        self._again: deque[Batch[TicketT]] = deque()
        self._fruitless_restarts = 0

    def run(self) -> None:
        """Until the batcher is closed and empty, or the engine is lost for good."""
        try:
            while self._step():
                pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody would serve with this engine any more
            _log.error("engine thread failed", engine=self._name, exc_info=error)
            self._part_with_batches()
            reason = str(error) if isinstance(error, LoadError) else "an unexpected error; the server's log has it"
            self._tell(lambda name: self._owner.device_failed(name, reason))
        finally:
            self._close_engine()

    def _step(self) -> bool:
        """Begins a batch if there is one and room for it, else finishes the oldest. False: there will be no more."""
        batch = self._next_batch()
        if batch is None and not self._begun:
            return False
        try:
            if batch is not None:
                self._begun.append(self._runner.begin(batch))
            if batch is None or len(self._begun) >= self._runner.depth:
                self._again.extend(self._runner.finish(self._begun[0]))
                # Held references would keep the last results alive while this thread waits.
                self._begun.popleft()
                self._fruitless_restarts = 0
        except EngineLost as loss:
            lost = [begun.batch for begun in self._begun]
            if batch is not None and all(batch is not each for each in lost):
                lost.append(batch)
            self._begun.clear()
            self._recover(loss, lost)
        return True

    def _next_batch(self) -> Batch[TicketT] | None:
        if self._again:
            # One after the other: a batch that kills engines shall not do so in the company of others.
            return None if self._begun else self._again.popleft()
        return self._batcher.take_now() if self._begun else self._batcher.take()

    def _recover(self, loss: EngineLost, lost: list[Batch[TicketT]]) -> None:
        """A new engine. What the old one had begun is computed once more, and fails if an engine dies of it again."""
        _log.error("engine lost; building it anew", engine=self._name, reason=str(loss), batches=len(lost))
        for batch in lost:
            if batch.is_retry:
                self._runner.fail(batch, ComputeError(f"the engine died twice on this batch ({loss})"))
            else:
                self._again.append(replace(batch, is_retry=True))
        self._tell(self._owner.device_lost)
        self._close_engine()
        self._engine = engine = self._build_again(loss)
        self._runner = self._owner.make_runner(engine)
        _log.info("engine at work again", engine=self._name)
        self._tell(self._owner.device_restored)

    def _part_with_batches(self) -> None:
        """What waits is for others; what the thread ended with is not, since theirs might end with it too."""
        failure = Unavailable("the engine of this model has failed; send the request again later")
        for begun in self._begun:
            self._runner.fail(begun.batch, failure)
        if not self._owner.take_over(self._again):
            for batch in self._again:
                self._runner.fail(batch, failure)

    def _close_engine(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _build_again(self, loss: EngineLost) -> EngineT:
        """Another engine of the same kind: KIND_AUTO may find another device, but numbers do not change on the way."""
        engine = None
        while engine is None:
            self._fruitless_restarts += 1
            if self._fruitless_restarts > _FRUITLESS_RESTARTS:
                raise LoadError(f"the engine died {_FRUITLESS_RESTARTS} times in a row, the last time: {loss}")
            try:
                engine = self._build()
            except LoadError as error:
                if not isinstance(error.__cause__, EngineLost):
                    raise
                _log.error("engine died while it was built", engine=self._name, reason=str(error))
        if engine.info.identity != self._identity:
            engine.close()
            before, now = ", ".join(self._identity), ", ".join(engine.info.identity)
            raise LoadError(f"the engine came back as {now}, was {before}")
        return engine

    def _tell(self, what: Callable[[str], None]) -> None:
        try:
            self._owner.loop.call_soon_threadsafe(what, self._name)
        except RuntimeError:
            # The loop is closed: a forced stop. Nobody is left to tell.
            _log.warning("the server has stopped", engine=self._name)
