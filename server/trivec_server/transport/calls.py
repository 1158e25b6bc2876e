"""
What every call has in common: a request id, a deadline, errors as statuses, one log line for a failure, metrics.

Messages are decoded in the call, not by gRPC, so that a message that does not decode is answered with the field at
fault; responses are bytes that the service has rendered.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import unquote

import grpc

from trivec_server.errors import Overloaded, PermissionDenied, ResponseTooLarge, TrivecError, Unauthenticated
from trivec_server.logs import get_logger
from trivec_server.metrics import Metrics
from trivec_server.settings import Limits
from trivec_server.transport.access import Caller
from trivec_server.transport.access_file import Scope
from trivec_server.transport.gate import Gate
from trivec_server.transport.load_report import LoadReport
from trivec_server.transport.parse import parse_request_id
from trivec_server.transport.reception import Reception
from trivec_server.transport.status import CallStatus, StatusOf, status_of
from trivec_server.transport.tracing import TRACE_PARENT_KEY, CallTrace, Tracing, named_trace_id

_log = get_logger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]
_REQUEST_ID_KEY = "x-request-id"
_UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED.name
_MOST_STRANGERS_LOGGED = 10
"""Lines a second at level info for calls without good credentials; the others are for level debug."""


@dataclass(slots=True)
class Call:
    """
    One call, or one message of a stream. `model` is set once it is known, for the metrics. `trace_parent` is the
    caller's `traceparent`; `trace` is None where calls are not traced, `caller` where nobody is asked who they are, and
    in messages, which have no `context` either, but know the name of their stream's `identity`.
    """

    method: str
    request_id: str
    deadline: float | None
    started_at: float
    model: str = ""
    trace_parent: str = ""
    trace: CallTrace | None = None
    caller: Caller | None = None
    identity: str = ""
    context: Context | None = None
    has_entered: bool = False

    def take_request_id(self, value: str) -> None:
        """
        Adopts the request id of the message, if it has one.

        Raises:
            InvalidRequest: it is too long or not printable ASCII.
        """
        self.request_id = parse_request_id(value, self.request_id)

    @property
    def trace_id(self) -> str:
        """The trace that the call belongs to; empty: none."""
        return (self.trace.trace_id if self.trace is not None else "") or named_trace_id(self.trace_parent)


UnaryMethod = Callable[[bytes, Call], Awaitable[bytes]]


class CallScope:
    """Opens, admits and closes calls: one per port."""

    def __init__(
        self,
        metrics: Metrics,
        limits: Limits,
        gate: Gate,
        tracing: Tracing | None = None,
        load_report: LoadReport | None = None,
    ) -> None:
        self._metrics = metrics
        self._load_report = load_report
        self._gate = gate
        self._tracing = tracing
        self._max_response_bytes = limits.max_response_bytes
        self.reception = Reception(limits, metrics)
        # Unique over servers and restarts, and cheap: a counter behind a random start.
        self._id_prefix = secrets.token_hex(6)
        self._id_count = 0
        self._strangers = 0
        self._strangers_since = float("-inf")

    def open(self, method: str, context: Context) -> Call:
        """A call that begins now."""
        now = time.monotonic()
        remaining_s = context.time_remaining()
        metadata = context.invocation_metadata() or ()
        given = trace_parent = ""
        for key, value in metadata:
            if key == _REQUEST_ID_KEY and isinstance(value, str):
                given = value
            elif key == TRACE_PARENT_KEY and isinstance(value, str):
                trace_parent = value
        deadline = None if remaining_s is None else now + remaining_s
        call = Call(method, self.next_id(), deadline, now, trace_parent=trace_parent, context=context)
        if self._tracing is not None:
            call.trace = self._tracing.begin(method, metadata)
        try:
            call.take_request_id(given)
        except TrivecError:
            # Metadata that proxies add must not fail a call; the id it then has is in the response.
            _log.warning("x-request-id ignored: not printable ASCII of at most 128 characters", call=call.request_id)
        return call

    def admit(self, call: Call, context: Context, needs: Scope | None = Scope.INFER) -> None:
        """
        Lets a call in, or does not. `needs` None: `require` is asked once that is known.

        Raises:
            Overloaded, Unauthenticated, PermissionDenied, LimitOfIdentity: why not.
        """
        self.reception.enter(context)
        call.has_entered = True
        if self._gate.asks or needs is not Scope.INFER:
            call.caller = self._gate.admit(context, call.method, needs)

    def require(self, call: Call, needs: Scope) -> None:
        """
        Checks what an admitted call needs.

        Raises:
            PermissionDenied: its caller lacks the scope.
        """
        self._gate.require(call.caller, call.method, needs)

    def refusal(self, stream: Call) -> TrivecError | None:
        """Why a stream may not go on, if so: its caller's credentials have been withdrawn."""
        if stream.caller is None:
            return None
        try:
            self._gate.recheck(stream.caller, stream.method)
        except TrivecError as error:
            return error
        return None

    def take_message(self, stream: Call) -> None:
        """
        Counts a message of a stream among the requests of its caller.

        Raises:
            LimitOfIdentity: there have been too many.
        """
        if stream.caller is not None:
            self._gate.take_message(stream.caller)

    def release(self, call: Call) -> None:
        """The call is under way no more; once is enough."""
        if call.has_entered:
            self.reception.leave()
            call.has_entered = False
        if call.caller is not None:
            self._gate.release(call.caller)
            call.caller = None

    def open_message(self, method: str, stream: Call) -> Call:
        """One message of a stream, which counts as a call of its own."""
        call = Call(method, self.next_id(), stream.deadline, time.monotonic(), trace_parent=stream.trace_parent)
        if stream.caller is not None:
            call.identity = stream.caller.identity.name
        if self._tracing is not None and stream.trace is not None:
            call.trace = self._tracing.begin_message(method, stream.trace)
        return call

    @property
    def calls_begun(self) -> int:
        """How many calls, and messages of streams, there have been."""
        return self._id_count

    def next_id(self) -> str:
        """A new request id."""
        self._id_count += 1
        return f"{self._id_prefix}{self._id_count:06x}"

    def check_size(self, response: bytes) -> None:
        """
        Checks a response that no estimate has ruled out.

        Raises:
            ResponseTooLarge: it is larger than a response may be.
        """
        if len(response) > self._max_response_bytes:
            raise ResponseTooLarge(
                f"the response has {len(response):,} bytes, more than the {self._max_response_bytes:,} allowed; send "
                "fewer or shorter texts"
            )

    def failed(self, call: Call, error: Exception, status_of: StatusOf = status_of) -> CallStatus:
        """Logs a failed call and gives its status. An error that is not the domain's own is logged with traceback."""
        status = status_of(error, call.request_id)
        log = _log.bind(request_id=call.request_id, method=call.method, model=call.model, code=status.code.name)
        if trace_id := call.trace_id:
            log = log.bind(trace_id=trace_id)
        if identity := call.identity if call.caller is None else call.caller.identity.name:
            log = log.bind(identity=identity)
        if isinstance(error, Unauthenticated | PermissionDenied) and call.context is not None:
            # gRPC writes the brackets of an IPv6 address as %5B and %5D.
            log = log.bind(peer=unquote(call.context.peer()))
        if call.trace is not None:
            call.trace.fail(status.rich.message)
        if not isinstance(error, TrivecError):
            log.error("call failed", exc_info=error)
        elif isinstance(error, Overloaded):
            log.debug("call refused", reason=str(error))
        elif isinstance(error, Unauthenticated) and self._is_flood():
            log.debug("call failed", reason=status.rich.message)
        else:
            log.info("call failed", reason=status.rich.message)
        return status

    def _is_flood(self) -> bool:
        """Whether strangers have been logged often enough in this second: the metrics count them all."""
        now = time.monotonic()
        if now - self._strangers_since >= 1:
            self._strangers_since, self._strangers = now, 0
        self._strangers += 1
        return self._strangers > _MOST_STRANGERS_LOGGED

    def close(self, call: Call, code: str) -> None:
        """Counts a finished call; how busy the server is goes with its answer, but not to strangers."""
        self.release(call)
        if self._load_report is not None:
            self._load_report.count(call.model, code)
            if call.context is not None and code != _UNAUTHENTICATED:
                call.context.set_trailing_metadata(self._load_report.trailing())
        self._metrics.request_finished(call.method, call.model, code, time.monotonic() - call.started_at)
        if call.trace is not None:
            call.trace.finish(code, call.model, call.request_id)


async def abort(context: Context, status: CallStatus, request_id: str) -> NoReturn:
    """Ends a call with an error."""
    try:
        trailing = (*status.trailing_metadata(request_id), *context.trailing_metadata())
        await context.abort(status.code, status.rich.message, trailing)
    except grpc.aio.InternalError as error:
        # The call has ended already, by its deadline or the client's will: for gRPC, a cancelled call.
        raise asyncio.CancelledError from error
    raise AssertionError("abort always raises")


async def admit_stream(scope: CallScope, call: Call, context: Context, status_of: StatusOf = status_of) -> None:
    """Lets a stream in, or ends it. To be released, or closed, at its end."""
    try:
        scope.admit(call, context)
    except TrivecError as error:
        status = scope.failed(call, error, status_of)
        scope.close(call, status.code.name)
        await abort(context, status, call.request_id)


def unary(
    scope: CallScope,
    method: str,
    run: UnaryMethod,
    status_of: StatusOf = status_of,
    needs: Scope | None = Scope.INFER,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """
    A handler of raw bytes around a unary method. `status_of`: from errors to statuses. `needs`: the scope that its
    callers need; None: `run` asks for it.
    """

    async def invoke(_: object, context: Context) -> bytes:
        call = scope.open(method, context)
        try:
            scope.admit(call, context, needs)
            response = await run(await scope.reception.read(context), call)
            scope.check_size(response)
        except asyncio.CancelledError:
            scope.close(call, grpc.StatusCode.CANCELLED.name)
            raise
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes a status here
            status = scope.failed(call, error, status_of)
        else:
            scope.close(call, grpc.StatusCode.OK.name)
            scope.reception.answer(context, len(response))
            return response
        scope.close(call, status.code.name)
        return await abort(context, status, call.request_id)

    return grpc.stream_unary_rpc_method_handler(invoke)
