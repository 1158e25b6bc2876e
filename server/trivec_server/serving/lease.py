"""Who uses a version, so that it is closed when nobody does any more."""

import asyncio
from contextlib import AbstractContextManager
from types import TracebackType


class Lease(AbstractContextManager[None]):
    """Counts those who use a version. One object for all of them: entering it makes nothing new. For the event loop."""

    def __init__(self) -> None:
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self._users += 1
        self._idle.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._users -= 1
        if not self._users:
            self._idle.set()

    async def over(self) -> None:
        """Waits until nobody uses the version."""
        while self._users:
            await self._idle.wait()
