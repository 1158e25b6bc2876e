"""gRPC's reflection, for callers that are admitted."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeAlias

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from trivec_server.errors import TrivecError
from trivec_server.transport.calls import Call, CallScope, abort, admit_stream
from trivec_server.transport.status import CallStatus

_Request: TypeAlias = reflection_pb2.ServerReflectionRequest
_Response: TypeAlias = reflection_pb2.ServerReflectionResponse
_Context: TypeAlias = "grpc.aio.ServicerContext[_Request, _Response]"


class Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc] # the library is not typed
    """Who may not call the services is not told of them."""

    def __init__(self, names: Sequence[str], scope: CallScope) -> None:
        super().__init__(names)
        self._scope = scope
        self._reading: set[asyncio.Future[_Request | None]] = set()

    async def ServerReflectionInfo(  # noqa: N802
        self, request_iterator: AsyncIterator[_Request], context: _Context
    ) -> AsyncIterator[_Response]:
        """As in the library."""
        call = self._scope.open("ServerReflectionInfo", context)
        await admit_stream(self._scope, call, context)
        refusal: CallStatus | None = None
        code = grpc.StatusCode.CANCELLED
        try:
            async for answer in super().ServerReflectionInfo(self._requests(request_iterator, call), context):
                yield answer
            code = grpc.StatusCode.OK
        except TrivecError as error:
            refusal = self._scope.failed(call, error)
            code = refusal.code
        finally:
            self._scope.close(call, code.name)
        if refusal is not None:
            await abort(context, refusal, call.request_id)

    def end_all(self) -> None:
        """Ends the streams under way, with status OK: tools leave theirs open without asking anything."""
        for reading in tuple(self._reading):
            reading.cancel()

    async def _requests(self, given: AsyncIterator[_Request], call: Call) -> AsyncIterator[_Request]:
        """
        The requests until the client has sent its last, or its stream is ended.

        Raises:
            Unauthenticated, PermissionDenied: the caller may not go on.
        """
        iterator = aiter(given)
        while True:
            reading: asyncio.Future[_Request | None] = asyncio.ensure_future(anext(iterator, None))
            self._reading.add(reading)
            try:
                await asyncio.wait([reading])
            finally:
                self._reading.discard(reading)
                reading.cancel()
            request = None if reading.cancelled() else reading.result()
            if request is None:
                return
            if (refusal := self._scope.refusal(call)) is not None:
                raise refusal
            yield request


def add_reflection(server: grpc.aio.Server, names: Sequence[str], scope: CallScope) -> Reflection:
    """Describes services, and itself, on a server."""
    servicer = Reflection((*names, reflection.SERVICE_NAME), scope)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    return servicer
