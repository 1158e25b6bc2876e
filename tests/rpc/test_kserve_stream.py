"""ModelStreamInfer: answers in the requests' order, errors in messages, and never more held than the client reads."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from trivec_server.settings import Limits

from tests.rpc.inference_server import (
    InferenceServer,
    embed,
    floats,
    given,
    inference_server,
    output,
    refusal_from,
    request,
)
from tests.rpc.running_server import until
from tests.scripted_engine import Script, expected_dense
from tests.scripted_tensors import TensorScript, row_functions
from tests.small_repository import ids_of, make_repository

BAD = request("floats", given("x", "FP32", (1, 2)))
"""A request without data."""
GRPC_ERRORS = [("triton_grpc_error", "true")]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def tensors() -> TensorScript:
    return TensorScript(model=row_functions())


@pytest.fixture
async def server(tmp_path: Path, script: Script, tensors: TensorScript) -> AsyncIterator[InferenceServer]:
    async with inference_server(make_repository(tmp_path), script, {"floats": tensors}) as server:
        yield server


async def ask(server: InferenceServer, *requests: pb.ModelInferRequest) -> list[pb.ModelStreamInferResponse]:
    stream = server.stream()
    await stream.write(*requests)
    return await stream.finish()


def bad(request_id: str) -> pb.ModelInferRequest:
    copied = pb.ModelInferRequest()
    copied.CopyFrom(BAD)
    copied.id = request_id
    return copied


async def test_every_request_is_answered_once_in_order(server: InferenceServer) -> None:
    requests = [
        embed(f"w{number}", request_id=str(number)) if number % 2 else floats([number], request_id=str(number))
        for number in range(10, 60)
    ]
    answers = await ask(server, *requests)
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(10, 60)]
    for number, answer in zip(range(10, 60), answers, strict=True):
        assert answer.error_message == ""
        response = answer.infer_response
        assert response.parameters["triton_final_response"].bool_param
        if number % 2:
            np.testing.assert_array_equal(output(response, "dense")[0], expected_dense(ids_of(f"w{number}")))
        else:
            assert output(response, "total").tolist() == [[float(number)]]


async def test_an_answer_that_is_ready_waits_for_those_before_it(
    server: InferenceServer, script: Script, tensors: TensorScript
) -> None:
    stream = server.stream()
    script.gate.clear()
    await stream.write(embed("w10", request_id="slow"), floats([1], request_id="fast"))
    await asyncio.to_thread(tensors.entered.acquire)
    script.gate.set()
    answers = await stream.finish()
    assert [answer.infer_response.id for answer in answers] == ["slow", "fast"]


async def test_an_empty_stream_ends_well(server: InferenceServer) -> None:
    assert await ask(server) == []


async def test_a_bad_request_is_answered_with_its_id_and_the_stream_goes_on(server: InferenceServer) -> None:
    unknown = floats([1], model="none", request_id="b")
    answers = await ask(server, bad("a"), unknown, bad(""), floats([2], request_id="d"))
    assert [answer.error_message for answer in answers] == [
        "unable to find data for input tensor 'x' for model 'floats' in request.",
        "Request for unknown model: 'none' is not found",
        "unable to find data for input tensor 'x' for model 'floats' in request.",
        "",
    ]
    for answer, request_id in zip(answers[:3], ("a", "b", ""), strict=True):
        assert answer.HasField("infer_response")
        assert answer.infer_response == pb.ModelInferResponse(id=request_id)


async def test_a_message_that_does_not_decode_is_answered_under_its_id(server: InferenceServer) -> None:
    stream = server.stream()
    await stream.call.write(pb.ModelInferRequest(id="mine").SerializeToString() + b"\x0a\x02\xff\xfe")
    await stream.write(floats([2], request_id="next"))
    answers = await stream.finish()
    assert answers[0].error_message.startswith("model_name: is not valid UTF-8")
    assert [answer.infer_response.id for answer in answers] == ["mine", "next"]


def fail(_: Any) -> None:
    raise RuntimeError("no")


async def test_a_request_that_fails_is_answered_with_a_little_more(
    server: InferenceServer, tensors: TensorScript
) -> None:
    stream = server.stream()
    tensors.before_run = fail
    await stream.write(floats([1], request_id="a"))
    failed = await stream.read()
    tensors.before_run = lambda _: None
    await stream.write(floats([2], request_id="b"))
    (answered,) = await stream.finish()
    assert failed.error_message
    expected = pb.ModelInferResponse(model_name="floats", id="a")
    expected.parameters["triton_final_response"].bool_param = True
    assert failed.infer_response == expected
    assert (answered.error_message, answered.infer_response.id) == ("", "b")


async def test_asked_for_a_failure_ends_the_stream_with_its_own_code(
    server: InferenceServer, tensors: TensorScript
) -> None:
    stream = server.stream(GRPC_ERRORS)
    await stream.write(floats([1], request_id="a"), bad("b"))
    assert [(await stream.read()).infer_response.id for _ in range(2)] == ["a", "b"]
    tensors.before_run = fail
    await stream.write(floats([2], request_id="c"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.call.read()
    assert refusal_from(caught.value).code is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("value", ["True", "1", "false"])
async def test_other_values_of_the_metadata_ask_for_nothing(
    server: InferenceServer, tensors: TensorScript, value: str
) -> None:
    tensors.before_run = fail
    stream = server.stream([("triton_grpc_error", value)])
    await stream.write(floats([1], request_id="a"))
    (answer,) = await stream.finish()
    assert answer.error_message


@pytest.mark.parametrize("asked", [True, False])
async def test_an_empty_final_response_asked_for_adds_no_message(server: InferenceServer, asked: bool) -> None:
    answers = await ask(server, floats([1], about={"triton_enable_empty_final_response": asked}), floats([2]))
    assert len(answers) == 2
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)


async def test_a_full_queue_concerns_its_own_request(tmp_path: Path) -> None:
    script = Script()
    repository = make_repository(tmp_path)
    async with inference_server(repository, script, limits=Limits(max_queued_texts=1)) as server:
        script.gate.clear()
        stream = server.stream(GRPC_ERRORS)
        await stream.write(embed("w10", request_id="a"))
        await asyncio.to_thread(script.entered.acquire)
        await stream.write(embed("w11", request_id="b"))
        metric = "trivec_rejected_requests_total"
        await until(lambda: server.running.metric(metric) == 1)
        script.gate.set()
        answers = await stream.finish()
    assert [answer.error_message[:40] for answer in answers] == ["", "[request id: b] Exceeds maximum queue si"]
    assert answers[1].infer_response == pb.ModelInferResponse(id="b")


async def test_no_more_is_read_than_there_is_room_for(tmp_path: Path) -> None:
    script = Script()
    repository = make_repository(tmp_path)
    async with inference_server(repository, script, limits=Limits(max_stream_requests=3)) as server:
        script.gate.clear()
        stream = server.stream()
        await stream.write(*(embed(f"w{number}", request_id=str(number)) for number in range(10, 30)))
        pipeline = server.registry.resolve("small", 0).pipeline
        await until(lambda: pipeline.pending_requests == 3)
        # The others are with gRPC: nothing more comes in while nothing is answered.
        await asyncio.to_thread(script.entered.acquire)
        assert pipeline.pending_requests == 3
        script.gate.set()
        answers = await stream.finish()
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(10, 30)]


async def test_an_answer_larger_than_all_room_is_given_alone(tmp_path: Path) -> None:
    script = Script()
    repository = make_repository(tmp_path)
    async with inference_server(repository, script, limits=Limits(max_stream_result_bytes=1)) as server:
        answers = await ask(server, *(embed("w10 w11", request_id=str(number)) for number in range(5)))
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2", "3", "4"]
    assert [len(batch.lengths) for batch in script.batches] == [1] * 5


async def test_a_cancelled_stream_leaves_nothing_behind(server: InferenceServer, script: Script) -> None:
    script.gate.clear()
    stream = server.stream()
    await stream.write(*(embed(f"w{number}") for number in range(10, 14)))
    pipeline = server.registry.resolve("small", 0).pipeline
    await until(lambda: pipeline.pending_requests == 4)
    stream.call.cancel()
    await until(lambda: pipeline.pending_requests == 0)
    script.gate.set()
    assert output(await server.infer(embed("w10")), "dense").shape[0] == 1


async def test_a_server_that_stops_answers_what_it_has_read_and_says_why_it_ends(tmp_path: Path) -> None:
    script = Script()
    async with inference_server(make_repository(tmp_path), script) as server:
        stream = server.stream()
        script.gate.clear()
        await stream.write(embed("w10", request_id="a"))
        await asyncio.to_thread(script.entered.acquire)
        stopping = asyncio.ensure_future(server.running.listener.stop(30))
        await asyncio.sleep(0)
        script.gate.set()
        assert (await stream.read()).infer_response.id == "a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.call.read()
        await stopping
    refusal = refusal_from(caught.value)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert refusal.message == "GRPC server is shutting down and has stopped accepting new requests."


async def test_messages_of_a_stream_are_counted_as_requests(server: InferenceServer) -> None:
    await ask(server, floats([1]), bad("a"))
    labels = {"method": "ModelStreamInfer.message", "model": "floats"}
    assert server.running.metric("trivec_requests_total", **labels, code="OK") == 1
    assert server.running.metric("trivec_requests_total", **labels, code="INVALID_ARGUMENT") == 1
