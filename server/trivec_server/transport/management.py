"""The port for management alone: what it answers to calls that belong on the other one."""

from collections.abc import AsyncIterator
from functools import partial

import grpc

from trivec_server.errors import Unsupported
from trivec_server.transport.calls import CallScope, Context, abort
from trivec_server.transport.embedding import SERVICE_NAME
from trivec_server.transport.kserve.service import SERVICE_NAME as INFERENCE_SERVICE_NAME


class ServedElsewhere(grpc.GenericRpcHandler):
    """Refuses every method of the services that a handler before it does not know."""

    def __init__(self, scope: CallScope) -> None:
        self._scope = scope

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """One handler for all kinds of methods: it reads nothing."""
        service, _, method = str(handler_call_details.method).removeprefix("/").partition("/")
        if service not in {SERVICE_NAME, INFERENCE_SERVICE_NAME}:
            return None
        return grpc.stream_stream_rpc_method_handler(partial(self._refuse, method))

    async def _refuse(self, method: str, _: AsyncIterator[bytes], context: Context) -> None:
        # The name may be anything: it does not become a label of a metric.
        call = self._scope.open("", context)
        status = self._scope.failed(
            call, Unsupported(f"{method} is not served on the port for management; send it to --grpc-port")
        )
        self._scope.close(call, status.code.name)
        await abort(context, status, call.request_id)
