"""A short run of `make chaos-small`: what is cancelled or late disturbs nothing, and leaves nothing behind."""

from benchmarks import chaos


async def test_requests_left_alone_are_answered_right_among_cancelled_and_late_ones() -> None:
    assert await chaos.run(requests=400, seed=3)
