"""Runs jobs over a grpc.aio channel: tries, retries, and a bounded number in flight as tasks."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from functools import cached_property
from typing import Any, TypeVar

import grpc
import grpc.aio

from trivec_client.clock import AsyncClock
from trivec_client.connection import Connection
from trivec_client.errors import TrivecClientError, parse_attempt_error
from trivec_client.health import ServingStatus, parse_failure
from trivec_client.jobs import Job, Result, Rpc
from trivec_client.planning import ClientSettings
from trivec_client.retry import Attempts, HedgeBudget
from trivec_client.rpcs import Rpcs

Item = TypeVar("Item")
Deadline = Callable[[], float | None]
"""When a request that begins now must be done, on the client's clock; None: never."""


class AsyncRunner:
    """Runs jobs over one channel, all on one event loop."""

    def __init__(self, connection: Connection, settings: ClientSettings, clock: AsyncClock) -> None:
        self._connection = connection
        self._channel: grpc.aio.Channel | None = None
        self._settings = settings
        self._clock = clock
        self._closed = False
        self._budget = HedgeBudget(settings.retry.hedge_share)
        self._metadata = connection.metadata

    @cached_property
    def _rpcs(self) -> Rpcs:
        """Made on first use, because a channel belongs to the loop that runs when it is made."""
        self._channel = self._connection.open_asyncio()
        return Rpcs(self._channel)

    async def close(self) -> None:
        """Ends the connection and what is under way on it."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    def deadline_s(self, timeout_s: float | None) -> float | None:
        """The instant that is `timeout_s`, or else the client's own timeout, from now."""
        limit_s = self._settings.timeout_s if timeout_s is None else timeout_s
        return None if limit_s is None else self._clock.now_s() + limit_s

    async def run(self, job: Job[Any, Result], deadline_s: float | None) -> Result:
        """
        Sends a request until it is answered.

        Raises:
            TrivecClientError: it failed in a way that another try does not mend, or no more tries are allowed.
        """
        self._check_open()
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
                    return await self._try(job, attempts)
                except TrivecClientError as error:
                    delay_s = attempts.delay_s(error)
                await self._clock.sleep(delay_s)
        except TrivecClientError as error:
            raise error.in_context(
                request_id=job.request_id,
                first_index=job.first_index,
                target=str(self._connection.targets),
                health_service=self._connection.health_service,
            ) from None

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the client is closed")

    async def _try(self, job: Job[Any, Result], attempts: Attempts) -> Result:
        """One try, with its hedges."""
        timeout_s = attempts.timeout_s()
        if attempts.hedging_delay_s() is None:
            return await self._attempt(job, timeout_s)
        latest = asyncio.create_task(self._attempt(job, timeout_s))
        sends = {latest}
        try:
            while True:
                done, sends = await asyncio.wait(
                    sends, timeout=attempts.hedging_delay_s(), return_when=asyncio.FIRST_COMPLETED
                )
                if not done and attempts.hedge():
                    latest = asyncio.create_task(self._attempt(job, attempts.timeout_s()))
                    sends.add(latest)
                for send in sorted(done, key=_has_failed):
                    if attempts.is_decided_by(send.exception(), is_latest=send is latest, has_others=bool(sends)):
                        return send.result()
        finally:
            for send in sends:
                send.cancel()
            await asyncio.gather(*sends, return_exceptions=True)

    async def _attempt(self, job: Job[Any, Result], timeout_s: float | None) -> Result:
        assembly = job.assemble()
        how = {"timeout": timeout_s, "metadata": self._metadata}
        try:
            if job.rpc is Rpc.EMBED_STREAM:
                stream = self._rpcs.by_name[job.rpc](job.request, **how)
                try:
                    async for response in stream:
                        assembly.add(response)
                finally:
                    stream.cancel()  # does nothing to a call that is over
            else:
                assembly.add(await self._rpcs.by_name[job.rpc](job.request, **how))
        except grpc.aio.AioRpcError as error:
            raise parse_attempt_error(error, is_ended_here=self._closed) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise TrivecClientError(grpc.StatusCode.CANCELLED, "the client was closed") from None
            raise
        return assembly.finish()

    async def run_all(
        self, jobs: AsyncIterator[Job[Any, Result]], deadline: Deadline, *, ordered: bool = True
    ) -> AsyncGenerator[Result]:
        """
        Runs jobs with at most `max_in_flight` under way. A job is taken only when there is room for it, and there is
        room only as results are consumed. With `ordered`, results come in the order of the jobs.
        """
        pending: deque[asyncio.Task[Result]] = deque()
        try:
            async for job in jobs:
                pending.append(asyncio.create_task(self.run(job, deadline())))
                if len(pending) == self._settings.max_in_flight:
                    yield await _take(pending, ordered=ordered)
            while pending:
                yield await _take(pending, ordered=ordered)
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def health(self, service: str, timeout_s: float | None) -> ServingStatus:
        """
        Asks once, without retries.

        Raises:
            TrivecClientError: the server cannot be reached, or does not know the service.
        """
        self._check_open()
        limit_s = self._settings.timeout_s if timeout_s is None else timeout_s
        try:
            status: ServingStatus = await self._rpcs.check_health(service, timeout=limit_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise parse_failure(error, service, str(self._connection.targets)) from None
        return status


async def iterate(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    """The items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.exception() is not None


async def _take(pending: deque[asyncio.Task[Result]], *, ordered: bool) -> Result:
    """Waits for the oldest task, or for the first that is done, and then removes it."""
    if ordered:
        task = pending[0]
        await asyncio.wait([task])
    else:
        done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        task = next(each for each in pending if each in done)
    pending.remove(task)
    return task.result()
