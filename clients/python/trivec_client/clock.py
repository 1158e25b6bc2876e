"""Time and chance, passed in so that tests of retries need neither."""

import asyncio
import random
import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the blocking client reads time and chance from."""

    def now_s(self) -> float:
        """Seconds on a clock that only goes forward."""

    def random(self) -> float:
        """A number in [0, 1), evenly distributed."""

    def sleep(self, delay_s: float, interrupted: threading.Event) -> None:
        """Waits for `delay_s`, or until `interrupted` is set."""


class AsyncClock(Protocol):
    """What the asyncio client reads time and chance from."""

    def now_s(self) -> float:
        """Seconds on a clock that only goes forward."""

    def random(self) -> float:
        """A number in [0, 1), evenly distributed."""

    async def sleep(self, delay_s: float) -> None:
        """Waits for `delay_s`."""


class SystemClock:
    """The machine's clock, for threads."""

    def now_s(self) -> float:
        """Seconds since some fixed instant."""
        return time.monotonic()

    def random(self) -> float:
        """A number in [0, 1), evenly distributed."""
        return random.random()  # noqa: S311 - spreads retries, guards nothing

    def sleep(self, delay_s: float, interrupted: threading.Event) -> None:
        """Waits for `delay_s`, or until `interrupted` is set."""
        interrupted.wait(delay_s)


class AsyncSystemClock:
    """The machine's clock, for an event loop."""

    def now_s(self) -> float:
        """Seconds since some fixed instant."""
        return time.monotonic()

    def random(self) -> float:
        """A number in [0, 1), evenly distributed."""
        return random.random()  # noqa: S311 - spreads retries, guards nothing

    async def sleep(self, delay_s: float) -> None:
        """Waits for `delay_s`."""
        await asyncio.sleep(delay_s)
