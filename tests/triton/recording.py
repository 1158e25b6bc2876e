"""
What a call through Triton's client came to, as a JSON value to compare between servers. Runs in `.venv-tritonclient`.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
from tritonclient import grpc as triton  # type: ignore[import-not-found, unused-ignore]
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-not-found, unused-ignore]
from tritonclient.grpc import service_pb2_grpc  # type: ignore[import-not-found, unused-ignore]
from tritonclient.utils import (  # type: ignore[import-not-found, unused-ignore]
    InferenceServerException,
    deserialize_bytes_tensor,
    triton_to_np_dtype,
)

SHOWN_VALUES = 32
"""A tensor with more values is told by its digest."""

_ADDRESS = re.compile(r"(ipv4:)?127\.0\.0\.1:\d+")
_FOLDER = re.compile(r"(?<![\w.'])/[\w./-]+/(?=[\w.-])")


class Session:
    """A server to call, and how a model's file is named there and what is in it."""

    def __init__(self, target: str, model_file: str, files: dict[str, bytes]) -> None:
        self.target = target
        self.model_file = model_file
        self.files = files
        self.client = triton.InferenceServerClient(target)
        self.channel = grpc.insecure_channel(target)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def close(self) -> None:
        self.client.close()
        self.channel.close()


Call = Callable[[Session], Any]


class Calls:
    """Calls by name, in order; each is a function of a session that returns what is to be recorded."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}

    def __call__(self, name: str) -> Callable[[Call], Call]:
        def add(call: Call) -> Call:
            assert name not in self._calls, name
            self._calls[name] = call
            return call

        return add

    def add(self, name: str, call: Call) -> None:
        self(name)(call)

    def record(self, session: Session) -> Iterator[dict[str, Any]]:
        for name, call in self._calls.items():
            yield {"name": name, **outcome(lambda call=call: call(session))}  # type: ignore[misc]


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """`code` and either the call's `answer` or its `message`."""
    try:
        answer = call()
    except (InferenceServerException, grpc.RpcError) as error:
        return failure(error)
    return {"code": "OK", "answer": answer}


def failure(error: Exception) -> dict[str, Any]:
    """`code` is a gRPC status, LOCAL for what the client itself found, STREAM for an error in a stream's message."""
    if isinstance(error, grpc.RpcError):
        return {"code": error.code().name, "message": normalised(error.details() or "")}
    assert isinstance(error, InferenceServerException), error
    status = error.status()
    code = status.removeprefix("StatusCode.") if status else "LOCAL"
    return {"code": code, "message": normalised(error.message())}


def normalised(message: str) -> str:
    """Without what differs from run to run: addresses and folders."""
    return _FOLDER.sub("FOLDER/", _ADDRESS.sub("ADDRESS", message))


def response(message: pb.ModelInferResponse) -> dict[str, Any]:
    """A ModelInferResponse: what it says of itself, and each output with its values."""
    raw = list(message.raw_output_contents)
    outputs = []
    for index, output in enumerate(message.outputs):
        told: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if output.parameters:
            told["parameters"] = parameters(output.parameters)
        told["values"] = values(output.datatype, raw[index]) if index < len(raw) else "no raw contents"
        outputs.append(told)
    return {
        "model": message.model_name,
        "version": message.model_version,
        "id": message.id,
        "parameters": parameters(message.parameters),
        "outputs": outputs,
    }


def result(answer: triton.InferResult) -> dict[str, Any]:
    return response(answer.get_response())


def parameters(given: Any) -> dict[str, Any]:
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in sorted(given.items())}


def values(datatype: str, raw: bytes) -> Any:
    if datatype == "BYTES":
        array = deserialize_bytes_tensor(raw)
        return [element.decode("utf-8", "backslashreplace") for element in array]
    kind = triton_to_np_dtype(datatype)
    numbers = np.frombuffer(raw, kind)
    if len(numbers) > SHOWN_VALUES:
        return hashlib.sha256(raw).hexdigest()
    return numbers.tolist()
