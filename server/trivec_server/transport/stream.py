"""
EmbedStream: many requests on one call.

A request is read only when there is room for it: a slot, and room for its result. Both are given back when the result
has been written, and writing waits for the client's flow control, so a client that reads slowly is read slowly. A
request with a large result is computed in portions, the next one while the last is being written.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

import grpc
from google.rpc import status_pb2
from trivec.v1 import embedding_pb2 as pb

from trivec_server.errors import InvalidRequest, TrivecError, Unavailable
from trivec_server.logs import get_logger, log_texts
from trivec_server.repository.registry import EmbeddingVersion, Registry
from trivec_server.serving.portions import Totals, estimated_held_bytes, portions
from trivec_server.serving.request import EmbedResult, EmbedTask
from trivec_server.settings import Limits
from trivec_server.transport import parse
from trivec_server.transport.calls import Call, CallScope, Context, abort, admit_stream
from trivec_server.transport.render import render_embeddings, render_response, render_stream_message, split_parts
from trivec_server.transport.room import Room
from trivec_server.transport.utf8 import read_string

_log = get_logger(__name__)

_MAX_ID_BYTES = 128
_PORTION_BYTES = 16 * 1024 * 1024


class EmbedStream:
    """The streaming method; one `serve` per call."""

    def __init__(self, registry: Registry, limits: Limits, scope: CallScope) -> None:
        self._registry = registry
        self._limits = limits
        self._scope = scope
        self._reading: set[asyncio.Task[TrivecError | None]] = set()

    async def serve(self, _: AsyncIterator[bytes], context: Context) -> None:
        """Serves one call until the client has sent its last request and every answer is written."""
        call = self._scope.open("EmbedStream", context)
        await admit_stream(self._scope, call, context)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read(call, context, tasks))
                self._reading.add(reading)
        except asyncio.CancelledError:
            self._scope.close(call, grpc.StatusCode.CANCELLED.name)
            raise
        finally:
            self._reading.discard(reading)
            self._scope.release(call)
        if reading.cancelled():
            refusal: TrivecError | None = Unavailable("the server is shutting down; send the rest on a new stream")
        else:
            refusal = reading.result()
        if refusal is None:
            self._scope.close(call, grpc.StatusCode.OK.name)
            return
        status = self._scope.failed(call, refusal)
        self._scope.close(call, status.code.name)
        await abort(context, status, call.request_id)

    def end_all(self) -> None:
        """Reads no more requests: every stream under way ends once those it has read are answered."""
        for reading in self._reading:
            reading.cancel()

    async def _read(self, call: Call, context: Context, answers: asyncio.TaskGroup) -> TrivecError | None:
        """
        Reads requests as there is room for them and begins to answer them, until the client has sent its last, or may
        not go on: then gives the reason.
        """
        room = Room(self._limits.max_stream_requests, self._limits.max_stream_result_bytes)
        writing = asyncio.Lock()
        while True:
            await room.wait_for_slot()
            # The stubs leave out that read() gives grpc.aio.EOF at the end.
            raw: object = await context.read()
            if not isinstance(raw, bytes):
                return None
            if (refusal := self._scope.refusal(call)) is not None:
                return refusal
            with contextlib.ExitStack() as on_failure:
                message = _StreamMessage(self, raw, call, context, writing)
                on_failure.callback(message.release)
                size = message.result_bytes
                await room.take(size)
                answering = answers.create_task(message.answer())
                # The task may be cancelled before it has begun: what it holds is given back outside of it.
                answering.add_done_callback(partial(_answered, message, room, size))
                on_failure.pop_all()

    def prepare(
        self, message: pb.EmbedStreamRequest, call: Call, size_bytes: int
    ) -> tuple[EmbeddingVersion, EmbedTask]:
        """The version and the task of one message."""
        request = message.request
        task = parse.parse_embed(
            request, request_id=call.request_id, deadline=call.deadline, size_bytes=size_bytes, limits=self._limits
        )
        log_texts(call.request_id, task.texts)
        ready = self._registry.resolve(request.model, request.version)
        call.model = ready.key.name
        parse.check_max_tokens(task.max_tokens, ready.loaded.max_tokens)
        return ready, task

    def open_message(self, stream: Call) -> Call:
        """One message counts as a call of its own."""
        return self._scope.open_message("EmbedStream.message", stream)

    @property
    def limits(self) -> Limits:
        """The server's limits."""
        return self._limits

    @property
    def scope(self) -> CallScope:
        """Where calls are opened and closed."""
        return self._scope


def _answered(message: "_StreamMessage", room: Room, size: int, _: object) -> None:
    message.release()
    room.give_back(size)


class _StreamMessage:
    """One request of a stream, from bytes to its last response message."""

    def __init__(self, stream: EmbedStream, raw: bytes, call: Call, context: Context, writing: asyncio.Lock) -> None:
        self._stream = stream
        self._call = stream.open_message(call)
        self._context = context
        self._writing = writing
        self._id = ""
        self._prepared: tuple[EmbeddingVersion, EmbedTask] | None = None
        self._error: Exception | None = None
        self._wire = pb.EmbedStreamRequest()
        self._chunk_bytes = 0
        self._lease = contextlib.ExitStack()
        try:
            self._parse(raw, call)
        except Exception as error:  # noqa: BLE001 - answered by `answer`, on the stream
            self._error = error

    @property
    def result_bytes(self) -> int:
        """The room that its result needs while it is under way."""
        if self._prepared is None:
            return 0
        ready, task = self._prepared
        return estimated_held_bytes(task, ready.pipeline, _PORTION_BYTES)

    def release(self) -> None:
        """Lets go of the version that it was for."""
        self._lease.close()

    async def answer(self) -> None:
        """Computes and writes; an error is written as this request's last message."""
        try:
            await self._embed(*self._checked())
        except asyncio.CancelledError:
            self._stream.scope.close(self._call, grpc.StatusCode.CANCELLED.name)
            raise
        except grpc.aio.BaseError:
            # The call has ended while this was being written: there is nobody to answer.
            _log.info("stream ended before its answer was written", request_id=self._call.request_id)
            self._stream.scope.close(self._call, grpc.StatusCode.CANCELLED.name)
        except Exception as error:  # noqa: BLE001 - everything becomes this request's status
            status = self._stream.scope.failed(self._call, error)
            self._stream.scope.close(self._call, status.code.name)
            # Where the call has ended too, as when its deadline has passed, there is nobody to answer.
            with contextlib.suppress(grpc.aio.BaseError):
                await self._write_error(status.rich)
        else:
            self._stream.scope.close(self._call, grpc.StatusCode.OK.name)

    def _checked(self) -> tuple[EmbeddingVersion, EmbedTask]:
        """What the message asks for; raises what was found wrong with it."""
        if self._prepared is None:
            raise self._error or InvalidRequest("request", "is missing")
        return self._prepared

    def _parse(self, raw: bytes, call: Call) -> None:
        try:
            self._wire = parse.parse_message(raw, pb.EmbedStreamRequest, within="request.")
        except InvalidRequest:
            # An answer goes to the id of its request, also where the rest of the message cannot be read.
            readable_id = read_string(raw, pb.EmbedStreamRequest, "id")
            self._id = readable_id if len(readable_id.encode()) <= _MAX_ID_BYTES else ""
            self._stream.scope.take_message(call)
            raise
        if len(self._wire.id.encode()) > _MAX_ID_BYTES:
            raise InvalidRequest("id", f"has {len(self._wire.id.encode())} bytes; at most {_MAX_ID_BYTES} are allowed")
        self._id = self._wire.id
        self._call.take_request_id(self._wire.request.request_id)
        self._stream.scope.take_message(call)
        if not self._wire.HasField("request"):
            raise InvalidRequest("request", "is missing")
        self._chunk_bytes = parse.parse_chunk_bytes(self._wire.chunk_bytes, self._stream.limits)
        self._prepared = self._stream.prepare(self._wire, self._call, len(raw))
        self._lease.enter_context(self._prepared[0].pipeline.in_use())

    async def _embed(self, ready: EmbeddingVersion, task: EmbedTask) -> None:
        """Portion by portion: one is computed ahead of the one that is being written."""
        total = Totals()
        divided = portions(task, ready.pipeline, _PORTION_BYTES)
        upcoming = next(divided)
        computing = asyncio.ensure_future(ready.pipeline.embed(upcoming[1]))
        try:
            while True:
                first_index = upcoming[0]
                result = await computing
                total.add(result)
                following = next(divided, None)
                if following is not None:
                    upcoming = following
                    computing = asyncio.ensure_future(ready.pipeline.embed(following[1], is_continuation=True))
                await self._write(ready, task, result, first_index, total if following is None else None)
                if following is None:
                    return
        finally:
            computing.cancel()
            await asyncio.gather(computing, return_exceptions=True)

    async def _write(
        self, ready: EmbeddingVersion, task: EmbedTask, result: EmbedResult, first_index: int, total: Totals | None
    ) -> None:
        """Writes one portion; with `total` it is the last one. Messages of one portion follow each other."""
        options = parse.parse_output_options(self._wire.request, task)
        messages = list(split_parts(result, options, self._chunk_bytes))
        for number, parts in enumerate(messages):
            is_last = total is not None and number == len(messages) - 1
            embeddings = render_embeddings(result, options, ready.loaded.tokenizer, parts, first_index=first_index)
            response = render_response(ready.key, self._call.request_id, total if is_last else None, embeddings)
            async with self._writing:
                await self._context.write(render_stream_message(self._id, response, final=is_last))

    async def _write_error(self, status: status_pb2.Status) -> None:
        response = pb.EmbedStreamResponse(id=self._id, error=status, final=True)
        async with self._writing:
            await self._context.write(response.SerializeToString())
