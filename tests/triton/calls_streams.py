"""ModelStreamInfer: the threaded client's stream and the asyncio client's."""

import asyncio
import queue
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import aio as triton_aio  # type: ignore[import-not-found, unused-ignore]
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-not-found, unused-ignore]

from tests.triton.recording import Calls, Session, failure, outcome, parameters, response, result
from tests.triton.requests import float_message, floats, message, raw_input, raw_output, simple_inputs, tensor, texts

calls = Calls()
_FAILING = [tensor("INPUT0", np.array([[99]], np.int64))]


def _request(model: str, inputs: Any, request_id: str = "", **more: Any) -> dict[str, Any]:
    return {"model_name": model, "inputs": inputs, "request_id": request_id, **more}


def _stream(
    name: str, *requests: dict[str, Any], headers: dict[str, str] | None = None, one_by_one: bool = False
) -> None:
    """As many answers as requests, or until the stream ends with an error."""

    def run(session: Session) -> Any:
        answers: queue.Queue[Any] = queue.Queue()
        session.client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        told = []
        try:
            if not one_by_one:
                for request in requests:
                    session.client.async_stream_infer(**request)
            for request in requests:
                if one_by_one:
                    session.client.async_stream_infer(**request)
                answer, error = answers.get()
                told.append(_in_stream(error) if error else {"code": "OK", "answer": result(answer)})
                if told[-1]["code"] not in {"OK", "STREAM"}:
                    break
        finally:
            session.client.stop_stream()
        return told

    calls.add(f"stream: {name}", run)


def _in_stream(error: Exception) -> dict[str, Any]:
    told = failure(error)
    return {**told, "code": "STREAM"} if told["code"] == "LOCAL" else told


_stream("one", _request("simple", simple_inputs(), "1"))
_stream("in order", *(_request("identity_fp32", floats(number), str(number)) for number in range(5)))
_stream(
    "several models",
    _request("simple", simple_inputs(2), "a"),
    _request("identity_bytes", texts(["x", "y"]), "b"),
    _request("two_versions", [tensor("INPUT0", np.array([[5]], np.int32))], "c", model_version="1"),
)
_stream(
    "a refused request between two",
    _request("identity_fp32", floats(1), "1"),
    _request("identity_fp32", simple_inputs(), "2"),
    _request("identity_fp32", floats(3), "3"),
)
_stream("unknown model", _request("none_such", floats(1), "1"), _request("identity_fp32", floats(2), "2"))
_stream("unknown version", _request("identity_fp32", floats(1), "1", model_version="9"))
_stream("version that is no number", _request("identity_fp32", floats(1), "1", model_version="x"))
_stream("a model that fails", _request("pick", _FAILING, "1"), _request("identity_fp32", floats(2), "2"))
_stream(
    "empty final response asked for",
    _request("identity_fp32", floats(1), "1", enable_empty_final_response=True),
    _request("identity_fp32", floats(2), "2", enable_empty_final_response=False),
)
_stream("parameters", _request("identity_fp32", floats(1), "1", parameters={"mine": 1}, timeout=5_000_000, priority=1))
_GRPC_ERRORS = {"triton_grpc_error": "true"}
_stream("grpc errors: none", _request("identity_fp32", floats(1), "1"), headers=_GRPC_ERRORS)
_stream(
    "grpc errors: a model that fails",
    _request("identity_fp32", floats(1), "1"),
    _request("pick", _FAILING, "2"),
    headers=_GRPC_ERRORS,
    # An error may overtake the answers before it.
    one_by_one=True,
)
_stream("grpc errors: unknown model", _request("none_such", floats(1), "1"), headers=_GRPC_ERRORS)
_stream(
    "grpc errors: a refused request",
    _request("identity_fp32", simple_inputs(), "1"),
    headers=_GRPC_ERRORS,
)


def _send(name: str, *requests: pb.ModelInferRequest, metadata: Sequence[tuple[str, str]] = ()) -> None:
    """Everything that comes back, and how the stream ended."""

    def run(session: Session) -> Any:
        told: list[Any] = []

        def read() -> str:
            for answer in session.stub.ModelStreamInfer(iter(requests), metadata=metadata):
                told.append(_message(answer))  # noqa: PERF401 - what came before a failure is kept
            return "ended"

        return {"answers": told, "end": outcome(read)}

    calls.add(f"stream of messages: {name}", run)


def _message(answer: pb.ModelStreamInferResponse) -> Any:
    """A refusal has the request's id beside its words, and nothing else."""
    if not answer.error_message:
        return response(answer.infer_response)
    inner = answer.infer_response
    return {"error": answer.error_message, "id": inner.id, "parameters": parameters(inner.parameters)}


_send("none")
_send("one", float_message(id="1"))
_send("refused", float_message([1, 2, 3], id="1"), float_message(id="2"))
_send("refused without an id", float_message([1, 2, 3]))
_send("unknown model", message("none_such", raw_input("FP32", [1, 1]), raw=[bytes(4)], id="1"))
_send("a model that fails", message("pick", raw_input("INT64", [1, 1]), raw=[b"\x63" + bytes(7)], id="1"))
_send(
    "a model that fails, as a grpc error",
    message("pick", raw_input("INT64", [1, 1]), raw=[b"\x63" + bytes(7)], id="1"),
    metadata=[("triton_grpc_error", "true")],
)
_send("classification", float_message(id="1", outputs=[raw_output(classification=1)]))
_send("empty final response", float_message(id="1", given={"triton_enable_empty_final_response": True}))


@calls("stream: opened twice")
def _twice(session: Session) -> Any:
    session.client.start_stream(lambda result, error: None)
    try:
        return outcome(lambda: session.client.start_stream(lambda result, error: None))
    finally:
        session.client.stop_stream()


@calls("aio stream")
def _asyncio(session: Session) -> Any:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield _request("identity_fp32", floats(1), "1")
        yield _request("none_such", floats(1), "2")
        yield _request("identity_fp32", floats(3), "3", enable_empty_final_response=True)

    async def ask() -> Any:
        told = []
        async with triton_aio.InferenceServerClient(session.target) as client:
            async for answer, error in client.stream_infer(requests()):
                told.append(_in_stream(error) if error else {"code": "OK", "answer": result(answer)})
        return told

    return asyncio.run(ask())


@calls("aio stream: a grpc error")
def _asyncio_error(session: Session) -> Any:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield _request("pick", _FAILING, "1")

    async def ask() -> Any:
        async with triton_aio.InferenceServerClient(session.target) as client:
            return [str(answer) async for answer in client.stream_infer(requests(), headers=_GRPC_ERRORS)]

    return outcome(lambda: asyncio.run(ask()))
