"""The one table from the domain's errors to gRPC status codes, and the rich error that goes with each."""

from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from trivec_server import errors

_CODES: tuple[tuple[type[errors.TrivecError], grpc.StatusCode], ...] = (
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.ResponseTooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.ComputeError, grpc.StatusCode.INTERNAL),
)

_MAX_MESSAGE_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class CallStatus:
    """A status code with google.rpc.Status beside it, and how both travel."""

    code: grpc.StatusCode
    rich: status_pb2.Status

    def trailing_metadata(self, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
        """The metadata in which gRPC clients look for the rich error, and the request id."""
        return (("x-request-id", request_id), ("grpc-status-details-bin", self.rich.SerializeToString()))


def status_of(error: Exception, request_id: str) -> CallStatus:
    """The status of an error. One that is not the domain's own is INTERNAL, and its text stays on the server."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    is_known = isinstance(error, errors.TrivecError)
    message = str(error) if is_known else f"internal error; the server's log has it under request id {request_id}"
    rich = status_pb2.Status(code=code.value[0], message=message[:_MAX_MESSAGE_CHARACTERS])
    _attach(rich, error_details_pb2.RequestInfo(request_id=request_id))
    if isinstance(error, errors.InvalidRequest):
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad_request.field_violations.add(field=violation.field, description=violation.description)
        _attach(rich, bad_request)
    if isinstance(error, errors.Overloaded):
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        _attach(rich, error_details_pb2.RetryInfo(retry_delay=delay))
    return CallStatus(code, rich)


def _attach(rich: status_pb2.Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    rich.details.append(packed)
