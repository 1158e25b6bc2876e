"""A clock for clients under test, so that nothing waits."""

import asyncio
import threading
from dataclasses import dataclass, field


@dataclass
class JumpingClock:
    """A clock that moves by the waits alone, and writes them down."""

    waits_s: list[float] = field(default_factory=list)
    now: float = 100.0
    chance: float = 0.0

    def now_s(self) -> float:
        return self.now

    def random(self) -> float:
        return self.chance

    def sleep(self, delay_s: float, interrupted: threading.Event) -> None:
        self.waits_s.append(delay_s)
        self.now += delay_s


class AsyncJumpingClock(JumpingClock):
    async def sleep(self, delay_s: float) -> None:  # type: ignore[override]
        super().sleep(delay_s, threading.Event())
        await asyncio.sleep(0)
