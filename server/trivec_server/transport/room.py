"""How much one stream may hold: a client that reads slowly is read slowly."""

import asyncio


class Room:
    """A number of requests, and bytes of results. Owned by the coroutines of one stream."""

    def __init__(self, slots: int, result_bytes: int) -> None:
        self._slots = slots
        self._max_bytes = result_bytes
        self._held_requests = 0
        self._held_bytes = 0
        self._freed = asyncio.Event()

    async def wait_for_slot(self) -> None:
        """Waits until another request may be read."""
        while self._held_requests >= self._slots:
            self._freed.clear()
            await self._freed.wait()

    async def take(self, size: int) -> None:
        """Takes a slot and room for a result; a result larger than all room waits until the stream holds nothing."""
        while self._held_requests and self._held_bytes + size > self._max_bytes:
            self._freed.clear()
            await self._freed.wait()
        self._held_requests += 1
        self._held_bytes += size

    def grow(self, size: int) -> None:
        """Takes more room for a result that has turned out larger."""
        self._held_bytes += size

    def give_back(self, size: int) -> None:
        """Gives back a slot and its room."""
        self._held_requests -= 1
        self._held_bytes -= size
        self._freed.set()
