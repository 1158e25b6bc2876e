"""Inference that succeeds, in the many forms that Triton's client has for it."""

import asyncio
import queue
from typing import Any

import numpy as np
from tritonclient import grpc as triton  # type: ignore[import-not-found, unused-ignore]
from tritonclient.grpc import aio as triton_aio  # type: ignore[import-not-found, unused-ignore]

from tests.triton.recording import Calls, Session, failure, outcome, response, result
from tests.triton.requests import (
    element,
    float_message,
    floats,
    message,
    raw_input,
    raw_output,
    simple_inputs,
    steps,
    tensor,
    text_message,
    texts,
)

calls = Calls()


def _infer(name: str, model: str, inputs: Any, **arguments: Any) -> None:
    calls.add(f"infer: {name}", lambda session: result(session.client.infer(model, inputs, **arguments)))


def _send(name: str, request: Any) -> None:
    calls.add(f"message: {name}", lambda session: response(session.stub.ModelInfer(request)))


_infer("simple", "simple", simple_inputs())
_infer("rows", "simple", simple_inputs(3))
_infer("as many rows as may be", "simple", simple_inputs(8))
_infer("request id", "simple", simple_inputs(), request_id="my request")
_infer("one output", "simple", simple_inputs(), outputs=[triton.InferRequestedOutput("OUTPUT1")])
_infer(
    "outputs in another order",
    "simple",
    simple_inputs(),
    outputs=[triton.InferRequestedOutput("OUTPUT1"), triton.InferRequestedOutput("OUTPUT0")],
)
_infer("inputs in another order", "simple", simple_inputs()[::-1])
_infer("classification", "simple", simple_inputs(), outputs=[triton.InferRequestedOutput("OUTPUT0", class_count=3)])
_infer(
    "classification of rows",
    "simple",
    simple_inputs(2),
    outputs=[triton.InferRequestedOutput("OUTPUT0", class_count=2), triton.InferRequestedOutput("OUTPUT1")],
)
_infer("more classes than values", "simple", simple_inputs(), outputs=[triton.InferRequestedOutput("OUTPUT0", 20)])
_infer(
    "classification of floats",
    "identity_fp32",
    floats(0.5, -1, 7.25),
    outputs=[triton.InferRequestedOutput("OUTPUT0", class_count=2)],
)
_infer(
    "classification without a batch dimension",
    "nobatch",
    [tensor("INPUT0", np.array([[1, 3], [4, 2]], np.float32))],
    outputs=[triton.InferRequestedOutput("OUTPUT0", class_count=2)],
)
_infer("priority", "simple", simple_inputs(), priority=2)
_infer("timeout", "simple", simple_inputs(), timeout=5_000_000)
_infer("parameters", "simple", simple_inputs(), parameters={"text": "a", "flag": True, "number": 5, "fraction": 0.5})
_infer("headers", "simple", simple_inputs(), headers={"my-header": "here"})
_infer("gzip", "simple", simple_inputs(), compression_algorithm="gzip")
_infer("deflate", "simple", simple_inputs(), compression_algorithm="deflate")
_infer("client timeout", "simple", simple_inputs(), client_timeout=60)
_infer("floats", "identity_fp32", floats(1.5, float("inf"), -0.0))
_infer("no values in a row", "identity_fp32", [tensor("INPUT0", np.zeros((1, 0), np.float32))])
_infer("many values", "identity_fp32", [tensor("INPUT0", np.arange(80_000, dtype=np.float32).reshape(8, -1))])
_infer("bytes", "identity_bytes", texts(["one", "two"], ["three", "four"]))
_infer("bytes: empty, unicode, binary", "identity_bytes", texts(["", "日本語 🙂 é", b"\xff\x00\xfe"]))
_infer("bytes: none in a row", "identity_bytes", [tensor("INPUT0", np.zeros((1, 0), np.object_))])
_infer(
    "all data types",
    "identity_types",
    [
        tensor(f"INPUT{index}", np.array([[0, 1, 1]], kind))
        for index, kind in enumerate(("bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"))
    ],
)
_infer("no batch dimension", "nobatch", [tensor("INPUT0", np.arange(6, dtype=np.float32).reshape(3, 2))])
_infer("newest version", "two_versions", [tensor("INPUT0", np.array([[1, 2, 3]], np.int32))])
_infer("older version", "two_versions", [tensor("INPUT0", np.array([[1, 2, 3]], np.int32))], model_version="1")
_infer("pick", "pick", [tensor("INPUT0", np.array([[3, 0]], np.int64))])

_send("raw contents", float_message())
_send("typed contents", message("identity_fp32", raw_input("FP32", [1, 2], fp32_contents=[1.5, 2.5])))
_send("typed contents: bytes", message("identity_bytes", raw_input("BYTES", [1, 2], bytes_contents=[b"a", b""])))
_send(
    "typed contents: all types",
    message(
        "identity_types",
        *(
            raw_input(datatype, [1, 2], f"INPUT{index}", given=None, **{contents: [1, 0]})
            for index, (datatype, contents) in enumerate(
                (
                    ("BOOL", "bool_contents"),
                    ("UINT8", "uint_contents"),
                    ("UINT16", "uint_contents"),
                    ("UINT32", "uint_contents"),
                    ("UINT64", "uint64_contents"),
                    ("INT8", "int_contents"),
                    ("INT16", "int_contents"),
                    ("INT32", "int_contents"),
                    ("INT64", "int64_contents"),
                )
            )
        ),
        raw_input("FP16", [1, 2], "INPUT9", fp32_contents=[1, 0]),
        raw_input("FP32", [1, 2], "INPUT10", fp32_contents=[1, 0]),
        raw_input("FP64", [1, 2], "INPUT11", fp64_contents=[1, 0]),
    ),
)
_send("no values, no contents", message("identity_fp32", raw_input("FP32", [1, 0])))
_send("more raw buffers than inputs", message("identity_fp32", raw_input("FP32", [1, 1]), raw=[bytes(4), bytes(4)]))
_send(
    "version with a leading zero",
    message("two_versions", raw_input("INT32", [1, 1]), raw=[b"\1\0\0\0"], model_version="01"),
)
_send("a parameter of an input", message("identity_fp32", raw_input("FP32", [1, 1], given={"mine": 5}), raw=[bytes(4)]))
_send("an output's parameter", float_message(outputs=[raw_output(mine="x")]))
_send("no classes", float_message(outputs=[raw_output(classification=0)]))
_send("a timeout of zero", float_message(given={"timeout": 0}))
_send("a long request id", float_message(id="r" * 300))
_send("bytes as raw elements", text_message([1, 2], element(b"a") + element(b"")))
_send("no batch: no rows", message("nobatch", raw_input("FP32", [0, 2]), raw=[b""]))


@calls("async: callback")
def _callback(session: Session) -> Any:
    answers: queue.Queue[Any] = queue.Queue()
    session.client.async_infer(
        "simple", simple_inputs(), lambda result, error: answers.put((result, error)), request_id="later"
    )
    answer, error = answers.get()
    return failure(error) if error else result(answer)


@calls("async: callback with an error")
def _callback_error(session: Session) -> Any:
    answers: queue.Queue[Any] = queue.Queue()
    session.client.async_infer("none_such", floats(1), lambda result, error: answers.put(error))
    return failure(answers.get())


@calls("async: cancelled by the client")
def _cancelled(session: Session) -> Any:
    answers: queue.Queue[Any] = queue.Queue()
    context = session.client.async_infer("slow", steps(200_000), lambda result, error: answers.put(error))
    context.cancel()
    return failure(answers.get())


@calls("deadline of the client")
def _deadline(session: Session) -> Any:
    """The code alone: whether the client or the server is the first to say so is chance."""
    return outcome(lambda: session.client.infer("slow", steps(400_000), client_timeout=0.1))["code"]


@calls("aio: infer")
def _asyncio(session: Session) -> Any:
    async def ask() -> Any:
        async with triton_aio.InferenceServerClient(session.target) as client:
            answers = await asyncio.gather(
                client.infer("simple", simple_inputs(2), request_id="a"),
                client.infer("identity_bytes", texts(["x"]), request_id="b"),
                client.infer(
                    "simple", simple_inputs(), outputs=[triton_aio.InferRequestedOutput("OUTPUT1")], request_id="c"
                ),
            )
            return [result(answer) for answer in answers]

    return asyncio.run(ask())


@calls("aio: infer refused")
def _asyncio_refused(session: Session) -> Any:
    async def ask() -> Any:
        async with triton_aio.InferenceServerClient(session.target) as client:
            return result(await client.infer("simple", floats(1)))

    return outcome(lambda: asyncio.run(ask()))
