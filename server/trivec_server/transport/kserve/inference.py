"""One ModelInfer request, from the message to the response's bytes, whatever the model takes."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from inference import grpc_service_pb2 as pb

from trivec_server.errors import InvalidTensor, Overloaded, QueueTimeout, ResponseTooLarge, ShuttingDown
from trivec_server.repository.registry import EmbeddingVersion, ServedVersion
from trivec_server.settings import Limits
from trivec_server.transport.calls import Call
from trivec_server.transport.kserve.contents import InputTensor, read_inputs
from trivec_server.transport.kserve.embed import EmbedInference
from trivec_server.transport.kserve.embed_inputs import check_inputs, read_plain
from trivec_server.transport.kserve.embed_outputs import output_names
from trivec_server.transport.kserve.lookup import Lookup
from trivec_server.transport.kserve.outputs import WantedOutput, hand_over, read_outputs
from trivec_server.transport.kserve.parameters import parse_parameters
from trivec_server.transport.kserve.response import (
    OutputTensor,
    check_size,
    render_response,
    render_stream_response,
)
from trivec_server.transport.kserve.shared_memory import Regions, SharedData
from trivec_server.transport.kserve.subject import Subject
from trivec_server.transport.kserve.tensors import TensorInference

STOPPING = "GRPC server is shutting down and has stopped accepting new requests."
FINAL_RESPONSE = "triton_final_response"
_RENDER_ON_THREAD_BYTES = 2 * 1024 * 1024
_STREAM_WRAPPER_BYTES = 8


class Answer(Protocol):
    """What comes of a request."""

    @property
    def size_bytes(self) -> int:
        """About what its outputs take in the response."""

    @property
    def parameters(self) -> Mapping[str, int | bool]:
        """The response's parameters."""

    def outputs(self) -> Sequence[OutputTensor]:
        """The outputs asked for, in the model's order."""


ResultT = TypeVar("ResultT")


class Inference(Protocol[ResultT]):
    """A request that has been checked."""

    @property
    def held_bytes(self) -> int:
        """About what it takes in memory until it is answered."""

    def compute(self) -> Coroutine[None, None, ResultT]:
        """Lets the model's pipeline work."""

    def answer(self, result: ResultT) -> Answer:
        """What is answered."""


class InferenceRequests:
    """Makes requests of messages: one per server."""

    def __init__(self, lookup: Lookup, limits: Limits, regions: Regions) -> None:
        self._lookup = lookup
        self._limits = limits
        self._regions = regions
        self._is_stopping = False

    def stop(self) -> None:
        """Refuses requests from now on."""
        self._is_stopping = True

    def prepare(self, message: pb.ModelInferRequest, call: Call, size_bytes: int) -> "InferenceRequest":
        """
        Checks a message, in Triton's order. No await may come between this and `InferenceRequest.in_use`.

        Raises:
            InvalidTensor, InvalidRequest, NotFound, Unavailable: what is wrong with it.
        """
        if self._is_stopping:
            raise ShuttingDown(STOPPING)
        served = self._lookup.ready(message.model_name, message.model_version)
        call.model = served.key.name
        parameters = parse_parameters(message.parameters)
        subject = Subject(served.key.name, message.id)
        limits = self._limits
        if isinstance(served, EmbeddingVersion):
            available = output_names(served.loaded.info.modes)
            plain = read_plain(message, available, limits.max_texts_per_request)
            if plain is not None:
                embed = EmbedInference(served, call, plain, parameters, limits, size_bytes)
                return InferenceRequest(served, embed, {}, subject, limits.max_response_bytes)
        inputs = read_inputs(message, subject, self._regions)
        wanted = read_outputs(message, self._regions)
        _check_shared_bytes(inputs, size_bytes, limits)
        size_bytes = max(size_bytes, sum(tensor.size_bytes for tensor in inputs.values()))
        inference: Inference[Any]
        if isinstance(served, EmbeddingVersion):
            given = check_inputs(inputs, wanted, available, limits.max_texts_per_request, subject)
            inference = EmbedInference(served, call, given, parameters, limits, size_bytes)
        else:
            inference = TensorInference(served, call, inputs, wanted, parameters, subject, size_bytes)
        return InferenceRequest(served, inference, wanted, subject, limits.max_response_bytes)


class InferenceRequest:
    """One request that is right as far as can be said before it is computed."""

    __slots__ = ("_inference", "_max_response_bytes", "_served", "_subject", "_wanted")

    def __init__(
        self,
        served: ServedVersion,
        inference: Inference[Any],
        wanted: Mapping[str, WantedOutput],
        subject: Subject,
        max_response_bytes: int,
    ) -> None:
        self._served = served
        self._inference = inference
        self._wanted = wanted
        self._subject = subject
        self._max_response_bytes = max_response_bytes

    @property
    def held_bytes(self) -> int:
        """About what it takes in memory until it is answered."""
        return self._inference.held_bytes

    def in_use(self) -> AbstractContextManager[None]:
        """While it lasts, the version that the request is for is not closed."""
        return self._served.pipeline.in_use()

    async def respond(self, *, streamed: bool = False) -> bytes:
        """
        Computes the response: a ModelInferResponse, or with `streamed` a ModelStreamInferResponse.

        Raises:
            TrivecError: as the pipelines do, in Triton's words.
        """
        try:
            answer = self._inference.answer(await self._inference.compute())
        except Overloaded as error:
            why = str(error).removeprefix("overloaded: ")
            message = self._subject.prefixed(f"Exceeds maximum queue size: {why}")
            raise Overloaded(message, retry_after_s=error.retry_after_s) from error
        except QueueTimeout as error:
            raise QueueTimeout("Request timeout expired") from error
        except ResponseTooLarge as error:
            raise ResponseTooLarge(f"Response exceeds gRPC's byte size limit: {error}") from error
        if answer.size_bytes < _RENDER_ON_THREAD_BYTES:
            return self._render(answer, streamed=streamed)
        return await asyncio.to_thread(self._render, answer, streamed=streamed)

    def _render(self, answer: Answer, *, streamed: bool) -> bytes:
        outputs = hand_over(answer.outputs(), self._wanted)
        parameters = {**answer.parameters, FINAL_RESPONSE: True} if streamed else answer.parameters
        response = render_response(self._served.key, self._subject.request_id, parameters, outputs)
        check_size(response, self._max_response_bytes - (_STREAM_WRAPPER_BYTES if streamed else 0))
        return render_stream_response(response) if streamed else b"".join(response)


def _check_shared_bytes(inputs: Mapping[str, InputTensor], size_bytes: int, limits: Limits) -> None:
    """What lies in shared memory is held as a message is, and counts as a part of it."""
    shared = sum(tensor.size_bytes for tensor in inputs.values() if isinstance(tensor.data, SharedData))
    if shared and size_bytes + shared > limits.max_request_bytes:
        raise InvalidTensor(
            f"the request has {size_bytes + shared} bytes, {shared} of them in shared memory; the limit is "
            f"{limits.max_request_bytes}: send fewer rows, or start the server with a larger --max-request-bytes"
        )
