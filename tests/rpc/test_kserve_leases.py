"""A version that is switched off serves the requests that have found it, and is closed then, not before."""

import asyncio
from pathlib import Path

import pytest
from trivec_server.settings import Limits
from trivec_server.types import ModelVersion

from tests.rpc.inference_server import TensorModel, embed, floats, inference_server, output
from tests.rpc.running_server import until
from tests.scripted_engine import Script
from tests.scripted_tensors import TensorScript
from tests.small_repository import make_repository


async def test_a_request_to_a_version_that_is_switched_off_is_answered_by_it() -> None:
    script = TensorScript()
    async with inference_server(tensors={"floats": script}) as server:
        script.gate.clear()
        running = asyncio.ensure_future(server.infer(floats([1, 2])))
        await asyncio.to_thread(script.entered.acquire)
        withdrawing = asyncio.ensure_future(server.withdraw(ModelVersion("floats", 1)))
        await until(lambda: not server.registry.any_ready)
        closed_early = script.closed
        script.gate.set()
        assert output(await running, "total").tolist() == [[3.0]]
        await withdrawing
    assert (closed_early, script.closed) == (0, 1)


async def test_requests_of_a_stream_go_to_the_version_that_serves_when_they_are_read() -> None:
    old, new = TensorScript(), TensorScript()
    async with inference_server(tensors={"floats": old}) as server:
        stream = server.stream()
        old.gate.clear()
        await stream.write(floats([1], request_id="old"))
        await asyncio.to_thread(old.entered.acquire)
        await server.put_tensors("floats", TensorModel(new, version=2))
        await stream.write(floats([2], request_id="new"))
        await asyncio.to_thread(new.entered.acquire)
        withdrawing = asyncio.ensure_future(server.withdraw(ModelVersion("floats", 1)))
        old.gate.set()
        answers = await stream.finish()
        await withdrawing
    told = [(answer.infer_response.id, answer.infer_response.model_version) for answer in answers]
    assert told == [("old", "1"), ("new", "2")]


@pytest.mark.parametrize("limits", [Limits(), Limits(max_stream_result_bytes=1), Limits(max_stream_requests=1)])
async def test_what_a_cancelled_stream_had_found_is_let_go(tmp_path: Path, limits: Limits) -> None:
    script = Script()
    # Closing the server waits for whoever uses a version: it would never end.
    async with inference_server(make_repository(tmp_path), script, limits=limits) as server:
        script.gate.clear()
        stream = server.stream()
        await stream.write(*(embed(f"w{number}") for number in range(10, 40)))
        await asyncio.to_thread(script.entered.acquire)
        stream.call.cancel()
        pipeline = server.registry.resolve("small", 0).pipeline
        await until(lambda: pipeline.pending_requests == 0)
        script.gate.set()
