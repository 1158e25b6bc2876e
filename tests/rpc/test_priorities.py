"""Priority levels: 1 is served first, and a request without one is of the default level."""

import asyncio
from pathlib import Path

import pytest
from trivec.v1 import embedding_pb2 as pb

from tests.rpc.running_server import busy_engine, embed, running_server
from tests.scripted_engine import Script
from tests.small_repository import make_repository

LEVELS = """
max_batch_size: 1
dynamic_batching { priority_levels: 3 default_priority_level: 2 }
"""


async def order_of(tmp_path: Path, *priorities: int, config: str = LEVELS) -> list[int]:
    """Queues one text for each priority while the engine is busy; the priorities in the order of their batches."""
    script = Script()
    async with running_server(make_repository(tmp_path, config=config), script) as server:
        calls = []
        async with busy_engine(server, script) as wait_for_tokens:
            for number, priority in enumerate(priorities):
                request = pb.EmbedRequest(texts=[f"w{100 + number}"], priority=priority)
                calls.append(asyncio.ensure_future(embed(server, request)))
                await wait_for_tokens(3 * len(calls))
        await asyncio.gather(*calls)
    return [priorities[int(batch.token_ids[1]) - 100] for batch in script.batches[1:]]


async def test_lower_levels_are_served_first(tmp_path: Path) -> None:
    assert await order_of(tmp_path, 3, 2, 1, 3, 1) == [1, 1, 2, 3, 3]


async def test_a_request_without_a_priority_is_of_the_default_level(tmp_path: Path) -> None:
    assert await order_of(tmp_path, 3, 0, 1) == [1, 0, 3]


async def test_within_a_level_equal_requests_are_served_as_they_came(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path, config=LEVELS), script) as server:
        calls = []
        async with busy_engine(server, script) as wait_for_tokens:
            for number in range(5):
                calls.append(asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=[f"w{100 + number}"]))))
                await wait_for_tokens(3 * len(calls))
        await asyncio.gather(*calls)
    assert [int(batch.token_ids[1]) for batch in script.batches[1:]] == [100, 101, 102, 103, 104]


@pytest.mark.parametrize("priority", [0, 1])
async def test_a_model_without_levels_has_level_one(tmp_path: Path, priority: int) -> None:
    assert await order_of(tmp_path, priority, config="max_batch_size: 1\n") == [priority]


async def test_score_takes_a_priority_too(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path, config=LEVELS), script) as server:
        async with busy_engine(server, script) as wait_for_tokens:
            low = asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=["w100"], priority=2)))
            await wait_for_tokens(3)

            async def score() -> None:
                await server.stub.Score(pb.ScoreRequest(query="w200", passages=["w201"], priority=1))

            high = asyncio.ensure_future(score())
            await wait_for_tokens(9)
        await asyncio.gather(low, high)
    assert {int(batch.token_ids[1]) for batch in script.batches[1:3]} == {200, 201}


async def test_the_stream_takes_priorities_too(tmp_path: Path) -> None:
    script = Script()
    async with running_server(make_repository(tmp_path, config=LEVELS), script) as server:
        call = server.stub.EmbedStream()
        async with busy_engine(server, script) as wait_for_tokens:
            for count, (name, priority) in enumerate((("low", 3), ("high", 1)), start=1):
                request = pb.EmbedRequest(texts=["w100"], priority=priority)
                await call.write(pb.EmbedStreamRequest(id=name, request=request))
                await wait_for_tokens(3 * count)
        await call.done_writing()
        assert [answer.id async for answer in call] == ["high", "low"]
