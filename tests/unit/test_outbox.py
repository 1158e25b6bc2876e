"""Requests on their way to the batcher: handed over together, and none waits for others that will not come."""

import asyncio
from collections.abc import Sequence
from itertools import count

from trivec_server.serving.outbox import Outbox

from tests.tensor_serving import until

CLOSE_S = 0.0001
FAR_S = 0.1


class Handed:
    """An outbox and what it has handed over."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.outbox: Outbox[int] = Outbox(asyncio.get_running_loop(), self._take)
        self._numbers = count()
        self._now = 1000.0

    def _take(self, items: Sequence[int]) -> None:
        self.batches.append(list(items))

    def put(self, gap_s: float, under_way: int) -> None:
        self._now += gap_s
        self.outbox.put(next(self._numbers), self._now, under_way)

    def warm_up(self, company: int) -> None:
        """As many requests one after the other as it takes for the next ones to be expected soon."""
        for _ in range(200):
            self.put(CLOSE_S, company)
        self.outbox.flush()
        self.batches.clear()


async def test_a_caller_that_is_alone_never_waits() -> None:
    handed = Handed()
    for _ in range(200):
        handed.put(CLOSE_S, 1)
    assert handed.batches == [[number] for number in range(200)]


async def test_requests_are_handed_over_together_as_soon_as_all_that_are_expected_have_come() -> None:
    handed = Handed()
    handed.warm_up(company=3)
    handed.put(CLOSE_S, 1)
    handed.put(CLOSE_S, 2)
    assert not handed.batches
    handed.put(CLOSE_S, 3)
    assert [len(batch) for batch in handed.batches] == [3]


async def test_what_is_expected_but_does_not_come_is_not_waited_for_long() -> None:
    handed = Handed()
    handed.warm_up(company=3)
    handed.put(CLOSE_S, 1)
    await asyncio.sleep(0)
    assert not handed.batches
    await until(lambda: bool(handed.batches))


async def test_company_of_long_ago_is_not_expected_any_more() -> None:
    handed = Handed()
    handed.warm_up(company=3)
    for _ in range(10):
        handed.put(FAR_S, 1)
    handed.outbox.flush()
    handed.batches.clear()
    handed.put(CLOSE_S, 1)
    assert len(handed.batches) == 1


async def test_requests_that_come_seldom_are_handed_over_in_the_same_turn_of_the_loop() -> None:
    handed = Handed()
    handed.put(FAR_S, 3)
    handed.put(0.0, 3)
    assert not handed.batches
    await asyncio.sleep(0)
    assert handed.batches == [[0, 1]]


async def test_nothing_is_handed_over_twice() -> None:
    handed = Handed()
    handed.put(FAR_S, 3)
    handed.outbox.flush()
    handed.outbox.flush()
    await asyncio.sleep(0)
    assert handed.batches == [[0]]
