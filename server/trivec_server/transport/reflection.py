"""gRPC's reflection, for callers that are admitted."""

from collections.abc import AsyncIterator, Sequence
from typing import TypeAlias

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from trivec_server.transport.calls import CallScope, admit_stream

_Context: TypeAlias = (
    "grpc.aio.ServicerContext[reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse]"
)


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc] # the library is not typed
    """Who may not call the services is not told of them."""

    def __init__(self, names: Sequence[str], scope: CallScope) -> None:
        super().__init__(names)
        self._scope = scope

    async def ServerReflectionInfo(  # noqa: N802
        self, request_iterator: AsyncIterator[reflection_pb2.ServerReflectionRequest], context: _Context
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        """As in the library."""
        call = self._scope.open("ServerReflectionInfo", context)
        await admit_stream(self._scope, call, context)
        code = grpc.StatusCode.CANCELLED
        try:
            async for answer in super().ServerReflectionInfo(request_iterator, context):
                yield answer
            code = grpc.StatusCode.OK
        finally:
            self._scope.close(call, code.name)


def add_reflection(server: grpc.aio.Server, names: Sequence[str], scope: CallScope) -> None:
    """Describes services, and itself, on a server."""
    servicer = _Reflection((*names, reflection.SERVICE_NAME), scope)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
