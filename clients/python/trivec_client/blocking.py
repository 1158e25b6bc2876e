"""Runs jobs over a blocking channel: tries, retries, and a bounded number in flight on threads."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import grpc

from trivec_client.clock import Clock
from trivec_client.connection import Connection
from trivec_client.errors import TrivecClientError, parse_attempt_error
from trivec_client.health import ServingStatus, parse_failure
from trivec_client.jobs import Job, Result, Rpc
from trivec_client.planning import ClientSettings
from trivec_client.retry import Attempts, HedgeBudget
from trivec_client.rpcs import Rpcs

Deadline = Callable[[], float | None]
"""When a request that begins now must be done, on the client's clock; None: never."""

_WAIT_TURN_S = 0.2


class _Cancellable(Protocol):
    def cancel(self) -> object: ...


_Call = TypeVar("_Call", bound=_Cancellable)


class RunningCalls:
    """The RPCs of one operation, or of a part of one, and a way to end them all from another thread."""

    def __init__(self) -> None:
        self.interrupted = threading.Event()
        self._lock = threading.Lock()
        self._calls: set[_Cancellable] = set()

    @contextmanager
    def track(self, begin: Callable[[], _Call]) -> Iterator[_Call]:
        """Begins an RPC and ends it with the block, however that is left."""
        with self._lock:
            if self.interrupted.is_set():
                raise TrivecClientError(grpc.StatusCode.CANCELLED, "the operation was abandoned")
            call = begin()
            self._calls.add(call)
        try:
            yield call
        finally:
            with self._lock:
                self._calls.discard(call)
            call.cancel()  # does nothing to a call that is over

    def cancel(self) -> None:
        """Ends every RPC and every wait; none begins after this."""
        with self._lock:
            self.interrupted.set()
            calls = list(self._calls)
        for call in calls:
            call.cancel()


class BlockingRunner:
    """Runs jobs over one channel. Safe to use from several threads."""

    def __init__(self, connection: Connection, settings: ClientSettings, clock: Clock) -> None:
        self._connection = connection
        self._channel = channel = connection.open()
        self._settings = settings
        self._clock = clock
        self._rpcs = Rpcs(channel)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="trivec-client-main")
        self._closed = False
        self._budget = HedgeBudget(settings.retry.hedge_share)
        self._metadata = connection.metadata

    def close(self) -> None:
        """Ends the connection and what is under way on it."""
        self._closed = True
        self._channel.close()
        self._worker.shutdown()

    def deadline_s(self, timeout_s: float | None) -> float | None:
        """The instant that is `timeout_s`, or else the client's own timeout, from now."""
        limit_s = self._settings.timeout_s if timeout_s is None else timeout_s
        return None if limit_s is None else self._clock.now_s() + limit_s

    def run(self, job: Job[Any, Result], deadline_s: float | None) -> Result:
        """
        Sends a request until it is answered.

        Raises:
            TrivecClientError: it failed in a way that another try does not mend, or no more tries are allowed.
        """
        return self._off_main_thread(lambda running: self._run(job, deadline_s, running))

    def _off_main_thread(self, work: Callable[[RunningCalls], Result]) -> Result:
        """
        Does the work, not on the main thread: there a Ctrl-C may strike inside gRPC between the begin of a call and
        the thread that is to attend to it, and then closing the channel waits for ever (grpc 1.85).
        """
        if self._closed:
            raise ValueError("the client is closed")
        running = RunningCalls()
        if threading.current_thread() is not threading.main_thread():
            return work(running)
        try:
            return _wait_for({self._worker.submit(work, running)}).pop().result()
        finally:
            running.cancel()

    def _run(self, job: Job[Any, Result], deadline_s: float | None, running: RunningCalls) -> Result:
        attempts = Attempts(
            self._settings.retry,
            self._budget,
            deadline_s=deadline_s,
            now_s=self._clock.now_s,
            random=self._clock.random,
            sends_per_try=self._connection.sends_per_try(job.rpc, self._settings.retry),
            has_other_servers=self._connection.balancing is not None,
        )
        try:
            while True:
                try:
                    return self._try(job, attempts, running)
                except TrivecClientError as error:
                    delay_s = attempts.delay_s(error)
                self._clock.sleep(delay_s, running.interrupted)
        except TrivecClientError as error:
            raise error.in_context(
                request_id=job.request_id,
                first_index=job.first_index,
                target=str(self._connection.targets),
                health_service=self._connection.health_service,
            ) from None

    def _try(self, job: Job[Any, Result], attempts: Attempts, running: RunningCalls) -> Result:
        """One try, with its hedges."""
        timeout_s = attempts.timeout_s()
        if attempts.hedging_delay_s() is None:
            return self._attempt(job, timeout_s, running)
        with (
            ThreadPoolExecutor(self._settings.retry.max_attempts, thread_name_prefix="trivec-client-send") as threads,
            running.track(RunningCalls) as ours,
        ):
            latest = threads.submit(self._attempt, job, timeout_s, ours)
            sends = {latest}
            while True:
                done, sends = wait(sends, timeout=attempts.hedging_delay_s(), return_when=FIRST_COMPLETED)
                if not done and attempts.hedge():
                    latest = threads.submit(self._attempt, job, attempts.timeout_s(), ours)
                    sends.add(latest)
                for send in sorted(done, key=_has_failed):
                    if attempts.is_decided_by(send.exception(), is_latest=send is latest, has_others=bool(sends)):
                        return send.result()

    def _attempt(self, job: Job[Any, Result], timeout_s: float | None, running: RunningCalls) -> Result:
        assembly = job.assemble()
        how = {"timeout": timeout_s, "metadata": self._metadata}
        try:
            if job.rpc is Rpc.EMBED_STREAM:
                with running.track(lambda: self._rpcs.by_name[job.rpc](job.request, **how)) as stream:
                    for response in stream:
                        assembly.add(response)
            else:
                with running.track(lambda: self._rpcs.by_name[job.rpc].future(job.request, **how)) as call:
                    assembly.add(call.result())
        except grpc.RpcError as error:
            is_ended_here = self._closed or running.interrupted.is_set()
            raise parse_attempt_error(error, is_ended_here=is_ended_here) from None
        except grpc.FutureCancelledError:
            raise TrivecClientError(grpc.StatusCode.CANCELLED, "the operation was abandoned") from None
        return assembly.finish()

    def run_all(
        self, jobs: Iterator[Job[Any, Result]], deadline: Deadline, *, ordered: bool = True
    ) -> Iterator[Result]:
        """
        Runs jobs with at most `max_in_flight` under way. A job is taken only when there is room for it, and there is
        room only as results are consumed. With `ordered`, results come in the order of the jobs.
        """
        first_two = list(itertools.islice(jobs, 2))
        if len(first_two) < 2:
            for job in first_two:
                yield self.run(job, deadline())
            return
        yield from self._run_in_threads(itertools.chain(first_two, jobs), deadline, ordered=ordered)

    def _run_in_threads(
        self, jobs: Iterator[Job[Any, Result]], deadline: Deadline, *, ordered: bool
    ) -> Iterator[Result]:
        running = RunningCalls()
        pending: deque[Future[Result]] = deque()
        limit = self._settings.max_in_flight
        with ThreadPoolExecutor(limit, thread_name_prefix="trivec-client") as threads:
            try:
                for job in jobs:
                    pending.append(threads.submit(self._run, job, deadline(), running))
                    if len(pending) == limit:
                        yield _take(pending, ordered=ordered).result()
                while pending:
                    yield _take(pending, ordered=ordered).result()
            finally:
                running.cancel()
                for future in pending:
                    future.cancel()

    def health(self, service: str, timeout_s: float | None) -> ServingStatus:
        """
        Asks once, without retries.

        Raises:
            TrivecClientError: the server cannot be reached, or does not know the service.
        """
        limit_s = self._settings.timeout_s if timeout_s is None else timeout_s

        def check(running: RunningCalls) -> ServingStatus:
            with running.track(
                lambda: self._rpcs.check_health.future(service, timeout=limit_s, metadata=self._metadata)
            ) as call:
                status: ServingStatus = call.result()
                return status

        try:
            return self._off_main_thread(check)
        except grpc.RpcError as error:
            raise parse_failure(error, service, str(self._connection.targets)) from None


def _has_failed(future: Future[Any]) -> bool:
    return future.exception() is not None


def _take(pending: deque[Future[Result]], *, ordered: bool) -> Future[Result]:
    """Removes the next future that is done: the oldest, once it is, or the first of all."""
    done = _wait_for({pending[0]} if ordered else set(pending))
    future = next(each for each in pending if each in done)
    pending.remove(future)
    return future


def _wait_for(futures: set[Future[Result]]) -> set[Future[Result]]:
    """
    Those that are done, one at least. Waits in short turns: a signal that comes just before an endless wait begins
    does not end it, and Ctrl-C would have to be given twice.
    """
    while True:
        done, _ = wait(futures, timeout=_WAIT_TURN_S, return_when=FIRST_COMPLETED)
        if done:
            return done
