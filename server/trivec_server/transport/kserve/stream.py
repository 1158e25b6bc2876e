"""
ModelStreamInfer: many requests on one call, answered in their order.

As in EmbedStream, a request is read only when there is room for it; it is computed at once, beside those before it, and
its answer waits for theirs. A request that is at fault is answered with an error message and the stream goes on, unless
the client's metadata asks for errors of execution as the stream's own status.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import TypeAlias

import grpc
from inference import grpc_service_pb2 as pb

from trivec_server.errors import InvalidRequest, InvalidTensor, Overloaded, ShuttingDown, TrivecError
from trivec_server.logs import get_logger
from trivec_server.settings import Limits
from trivec_server.transport.calls import Call, CallScope, Context, abort, admit_stream
from trivec_server.transport.kserve.inference import FINAL_RESPONSE, STOPPING, InferenceRequest, InferenceRequests
from trivec_server.transport.parse import parse_message
from trivec_server.transport.room import Room
from trivec_server.transport.status import CallStatus, kserve_status_of
from trivec_server.transport.utf8 import read_string

_log = get_logger(__name__)

METHOD = "ModelStreamInfer"
_ERRORS_KEY = "triton_grpc_error"

_Answering: TypeAlias = "tuple[_Message, asyncio.Task[None]]"
_Answers: TypeAlias = "asyncio.Queue[_Answering | None]"


class InferStream:
    """The streaming method; one `serve` per call."""

    def __init__(self, requests: InferenceRequests, limits: Limits, scope: CallScope) -> None:
        self._requests = requests
        self._limits = limits
        self._scope = scope
        self._reading: set[asyncio.Task[TrivecError | None]] = set()

    async def serve(self, _: AsyncIterator[bytes], context: Context) -> None:
        """Serves one call until the client has sent its last request and every answer is written."""
        call = self._scope.open(METHOD, context)
        await admit_stream(self._scope, call, context, kserve_status_of)
        ends_on_error = (_ERRORS_KEY, "true") in tuple(context.invocation_metadata() or ())
        answers: _Answers = asyncio.Queue()
        room = Room(self._limits.max_stream_requests, self._limits.max_stream_result_bytes)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(call, context, room, tasks, answers))
                self._reading.add(reading)
                reading.add_done_callback(self._reading.discard)
                failed = await self._write(context, room, answers, ends_on_error=ends_on_error)
                was_stopped = reading.cancelled()
                reading.cancel()
        except asyncio.CancelledError:
            self._scope.close(call, grpc.StatusCode.CANCELLED.name)
            raise
        finally:
            self._scope.release(call)
        refusal: TrivecError | None = ShuttingDown(STOPPING) if was_stopped else None
        if not reading.cancelled():
            refusal = reading.result()
        if failed is None and refusal is not None:
            failed = self._scope.failed(call, refusal, kserve_status_of)
        if failed is None:
            self._scope.close(call, grpc.StatusCode.OK.name)
            return
        self._scope.close(call, failed.code.name)
        await abort(context, failed, call.request_id)

    def end_all(self) -> None:
        """Reads no more requests: every stream under way ends once those it has read are answered."""
        for reading in tuple(self._reading):
            reading.cancel()

    async def _read(
        self, call: Call, context: Context, room: Room, tasks: asyncio.TaskGroup, answers: _Answers
    ) -> TrivecError | None:
        """
        Reads requests as there is room for them and begins to compute them, until the client has sent its last, or may
        not go on: then gives the reason.
        """
        try:
            while True:
                await room.wait_for_slot()
                # The stubs leave out that read() gives grpc.aio.EOF at the end.
                raw: object = await context.read()
                if not isinstance(raw, bytes):
                    return None
                if (refusal := self._scope.refusal(call)) is not None:
                    return refusal
                with contextlib.ExitStack() as on_failure:
                    opened = self._scope.open_message(f"{METHOD}.message", call)
                    message = _Message(raw, opened, call, self._requests, self._scope)
                    on_failure.callback(message.release)
                    await room.take(message.held_bytes)
                    computing = tasks.create_task(message.compute())
                    # The task may be cancelled before it has begun: what it holds is given back outside of it.
                    computing.add_done_callback(partial(_computed, message))
                    on_failure.pop_all()
                answers.put_nowait((message, computing))
        finally:
            answers.put_nowait(None)

    async def _write(
        self, context: Context, room: Room, answers: _Answers, *, ends_on_error: bool
    ) -> CallStatus | None:
        """Writes answers in the requests' order; gives the status that ends the stream, None at its good end."""
        while (entry := await answers.get()) is not None:
            message, computing = entry
            await asyncio.wait([computing])
            room.grow(len(message.answer) - message.held_bytes)
            if ends_on_error and message.failed is not None and message.failed_in_execution:
                message.close()
                _drop(answers)
                return message.failed
            try:
                await context.write(message.answer)
            except grpc.aio.BaseError:
                # The call has ended while this was being written: there is nobody to answer.
                _log.info("stream ended before its answer was written", request_id=message.call.request_id)
                _drop(answers)
                return None
            room.give_back(len(message.answer))
            message.close()
        return None


class _Message:
    """One request of a stream, from bytes to the bytes of its answer."""

    def __init__(self, raw: bytes, call: Call, stream: Call, requests: InferenceRequests, scope: CallScope) -> None:
        self.call = call
        self.answer = b""
        self.failed: CallStatus | None = None
        self.failed_in_execution = False
        self.held_bytes = len(raw)
        self._scope = scope
        self._id = ""
        self._model = ""
        self._request: InferenceRequest | None = None
        self._error: Exception | None = None
        self._lease = contextlib.ExitStack()
        try:
            self._prepare(raw, stream, requests)
        except Exception as error:  # noqa: BLE001 - answered by `compute`, on the stream
            self._error = error

    def release(self) -> None:
        """Lets go of the version that it was for."""
        self._lease.close()

    def close(self) -> None:
        """Counts it as answered."""
        self._scope.close(self.call, grpc.StatusCode.OK.name if self.failed is None else self.failed.code.name)

    async def compute(self) -> None:
        """Makes the answer."""
        try:
            self.answer = await self._checked().respond(streamed=True)
        except asyncio.CancelledError:
            self._scope.close(self.call, grpc.StatusCode.CANCELLED.name)
            raise
        except Exception as error:  # noqa: BLE001 - everything becomes this request's answer
            self.failed = self._scope.failed(self.call, error, kserve_status_of)
            is_refusal = isinstance(error, InvalidRequest | InvalidTensor | Overloaded)
            self.failed_in_execution = self._request is not None and not is_refusal
            self.answer = self._error_message(self.failed.rich.message)

    def _checked(self) -> InferenceRequest:
        """What the message asks for; raises what was found wrong with it."""
        if self._request is None:
            raise self._error or InvalidRequest("request", "is missing")
        return self._request

    def _prepare(self, raw: bytes, stream: Call, requests: InferenceRequests) -> None:
        try:
            message = parse_message(raw, pb.ModelInferRequest)
        except InvalidRequest:
            # An answer goes to the id of its request, also where the rest of the message cannot be read.
            self._id = read_string(raw, pb.ModelInferRequest, "id")
            self._scope.take_message(stream)
            raise
        self._id, self._model = message.id, message.model_name
        self._scope.take_message(stream)
        self._request = requests.prepare(message, self.call, len(raw))
        self._lease.enter_context(self._request.in_use())
        self.held_bytes = max(self.held_bytes, self._request.held_bytes)

    def _error_message(self, text: str) -> bytes:
        """As Triton: of a request that was refused only the id comes back, of one that failed a little more."""
        response = pb.ModelInferResponse(id=self._id)
        if self.failed_in_execution:
            response.model_name = self._model
            response.parameters[FINAL_RESPONSE].bool_param = True
        return pb.ModelStreamInferResponse(error_message=text, infer_response=response).SerializeToString()


def _computed(message: _Message, _: object) -> None:
    message.release()


def _drop(answers: _Answers) -> None:
    """Ends the requests whose answers nobody waits for."""
    while not answers.empty():
        entry = answers.get_nowait()
        if entry is not None:
            entry[1].cancel()
