"""A server of KServe v2 in this process: embedding models of a repository, and scripted models that take tensors."""

import asyncio
import contextlib
import struct
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from inference import grpc_service_pb2 as pb
from numpy.typing import NDArray
from trivec_server.repository.registry import Registry
from trivec_server.repository.staging import StagedVersion
from trivec_server.repository.tensor_loading import LoadedTensors
from trivec_server.serving.device import Device
from trivec_server.serving.tensors.batch_run import TensorDevice
from trivec_server.settings import ControlMode, Limits, ServeSettings
from trivec_server.types import BatchingSettings, ModelSettings, ModelVersion, TensorSettings

from tests.rpc.failures import DETAILS_KEY
from tests.rpc.running_server import RunningServer, running_server
from tests.scripted_engine import Script
from tests.scripted_tensors import TensorScript

SERVICE = "inference.GRPCInferenceService"
Parameter = bool | int | float | str
AnswerT = TypeVar("AnswerT", bound=Message)


@dataclass(frozen=True)
class TensorModel:
    """One version of a model that takes tensors, with the settings of its queue."""

    script: TensorScript
    batching: BatchingSettings = field(default_factory=lambda: BatchingSettings(max_batch_size=8))
    version: int = 1


@dataclass
class InferenceServer:
    """`tensors` are the versions that were put beside the repository's."""

    running: RunningServer
    tensors: list[ModelVersion] = field(default_factory=list)

    @property
    def channel(self) -> grpc.aio.Channel:
        return self.running.channel

    @property
    def registry(self) -> Registry:
        return self.running.registry

    @property
    def embedding_stub(self) -> Any:
        """Our own service, to compare with."""
        return self.running.stub

    async def put_tensors(self, name: str, model: TensorModel) -> None:
        """Makes a version of a model that takes tensors READY."""
        key = ModelVersion(name, model.version)
        device: TensorDevice = Device("engine 0", model.script.build)
        await asyncio.to_thread(device.start)
        loaded = LoadedTensors(
            key=key,
            settings=ModelSettings(name=name, backend="scripted", batching=model.batching, tensors=TensorSettings()),
            info=model.script.info,
            inputs=model.script.model.inputs,
            outputs=model.script.model.outputs,
            devices=(device,),
            content_digest="0" * 64,
        )
        self.registry.switch([self.registry.start(StagedVersion(loaded=loaded, duration_s=0))], {})
        self.tensors.append(key)

    async def withdraw(self, key: ModelVersion) -> None:
        """Switches a version off and closes it, as an unload does."""
        self.tensors.remove(key)
        for served in self.registry.switch((), {key: "unloaded"}):
            await self.registry.release(served)

    async def call(
        self, method: str, request: Message, answer: type[AnswerT], metadata: Sequence[tuple[str, str]] = ()
    ) -> AnswerT:
        """One unary call."""
        return answer.FromString(await self.send(method, request.SerializeToString(), metadata))

    async def send(self, method: str, raw: bytes, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
        """One unary call with a message as it is."""
        send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(f"/{SERVICE}/{method}")
        return await send(raw, metadata=list(metadata))

    async def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        return await self.call("ModelInfer", request, pb.ModelInferResponse)

    def stream(self, metadata: Sequence[tuple[str, str]] = ()) -> "InferenceStream":
        return InferenceStream(self.channel, metadata)


class InferenceStream:
    """ModelStreamInfer, written and read step by step."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        self.call = method(metadata=list(metadata))

    async def write(self, *requests: pb.ModelInferRequest) -> None:
        for request in requests:
            await self.call.write(request.SerializeToString())

    async def read(self) -> pb.ModelStreamInferResponse:
        answer: object = await self.call.read()
        assert isinstance(answer, bytes), "the stream has ended"
        return pb.ModelStreamInferResponse.FromString(answer)

    async def finish(self) -> list[pb.ModelStreamInferResponse]:
        """Sends no more and reads what is left; the stream must end well."""
        await self.call.done_writing()
        answers = []
        while isinstance(answer := await self.call.read(), bytes):
            answers.append(pb.ModelStreamInferResponse.FromString(answer))
        assert await self.call.code() is grpc.StatusCode.OK
        return answers


@asynccontextmanager
async def inference_server(
    repository: Path | None = None,
    script: Script | Mapping[str, Script] | None = None,
    tensors: Mapping[str, TensorModel | TensorScript] | None = None,
    *,
    limits: Limits | None = None,
    settings: ServeSettings | None = None,
) -> AsyncIterator[InferenceServer]:
    """Serves until the block ends; then stops as the real server does. Without a repository there is an empty one."""
    models = {name: _model(model) for name, model in (tensors or {}).items()}
    settings = settings or ServeSettings()
    with tempfile.TemporaryDirectory() as empty:
        if repository is None:
            settings = replace(settings, model_control_mode=ControlMode.EXPLICIT)
        running = running_server(repository or Path(empty), script or Script(), limits=limits, settings=settings)
        async with running as started:
            server = InferenceServer(started)
            try:
                for name, model in models.items():
                    await server.put_tensors(name, model)
                yield server
            finally:
                for model in models.values():
                    model.script.gate.set()
                for key in list(server.tensors):
                    await server.withdraw(key)


def _model(given: TensorModel | TensorScript) -> TensorModel:
    return TensorModel(given) if isinstance(given, TensorScript) else given


def parameter(value: Parameter | pb.InferParameter) -> pb.InferParameter:
    if isinstance(value, pb.InferParameter):
        return value
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value)
    return pb.InferParameter(double_param=value) if isinstance(value, float) else pb.InferParameter(string_param=value)


def parameters(given: Mapping[str, Parameter | pb.InferParameter] | None) -> dict[str, pb.InferParameter]:
    return {key: parameter(value) for key, value in (given or {}).items()}


def given(
    name: str,
    datatype: str,
    shape: Sequence[int],
    contents: pb.InferTensorContents | None = None,
    **about: Parameter | pb.InferParameter,
) -> pb.ModelInferRequest.InferInputTensor:
    """An input."""
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=shape, contents=contents, parameters=parameters(about)
    )


def wanted(name: str, **about: Parameter | pb.InferParameter) -> pb.ModelInferRequest.InferRequestedOutputTensor:
    """An output asked for."""
    return pb.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=parameters(about))


def request(
    model: str,
    *inputs: pb.ModelInferRequest.InferInputTensor,
    raw: Sequence[bytes] = (),
    outputs: Sequence[str | pb.ModelInferRequest.InferRequestedOutputTensor] = (),
    about: Mapping[str, Parameter | pb.InferParameter] | None = None,
    request_id: str = "",
    version: str = "",
) -> pb.ModelInferRequest:
    """A request."""
    return pb.ModelInferRequest(
        model_name=model,
        model_version=version,
        id=request_id,
        inputs=inputs,
        outputs=[wanted(output) if isinstance(output, str) else output for output in outputs],
        raw_input_contents=raw,
        parameters=parameters(about),
    )


def elements(*texts: str | bytes) -> bytes:
    """Raw BYTES."""
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def embed(
    *texts: str,
    model: str = "small",
    outputs: Sequence[str | pb.ModelInferRequest.InferRequestedOutputTensor] = (),
    request_id: str = "",
    **about: Parameter | pb.InferParameter,
) -> pb.ModelInferRequest:
    """A request to an embedding model."""
    text = given("text", "BYTES", (len(texts), 1))
    return request(model, text, raw=[elements(*texts)], outputs=outputs, about=about, request_id=request_id)


def floats(*rows: Sequence[float], model: str = "floats", request_id: str = "", **about: Any) -> pb.ModelInferRequest:
    """A request to a model with the input `x` of FP32 [-1]."""
    array = np.array(rows, np.float32)
    return request(model, given("x", "FP32", array.shape), raw=[array.tobytes()], request_id=request_id, **about)


_DTYPES = {"FP32": np.float32, "FP16": np.float16, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}


def output(response: pb.ModelInferResponse, name: str) -> NDArray[Any]:
    """An output's numbers."""
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.name == name:
            return np.frombuffer(raw, _DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))
    raise AssertionError(f"no output {name}: {[tensor.name for tensor in response.outputs]}")


@dataclass(frozen=True)
class Refusal:
    """How a call failed: the status, and what its trailing metadata say of the reason, twice."""

    code: grpc.StatusCode
    message: str
    reason: str
    retry_delay_s: float | None


async def refusal_of(call: Any) -> Refusal:
    """Awaits a call that must fail, with details that agree with its status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal_from(caught.value)


def refusal_from(error: grpc.aio.AioRpcError) -> Refusal:
    metadata = dict(error.trailing_metadata())
    rich = status_pb2.Status.FromString(metadata[DETAILS_KEY])
    assert (rich.code, rich.message) == (error.code().value[0], error.details())
    reason = str(metadata.get("trivec-reason", ""))
    reasons, delays = [""], [None]
    for detail in rich.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reasons.append(info.reason)
        elif detail.Unpack(retry):
            delays.append(retry.retry_delay.ToTimedelta().total_seconds())
    assert reasons[-1] == reason
    return Refusal(error.code(), str(error.details()), reason, delays[-1])


@contextlib.contextmanager
def closed_gate(script: Script | TensorScript) -> Any:
    """Holds every batch while the block runs."""
    script.gate.clear()
    try:
        yield
    finally:
        script.gate.set()
