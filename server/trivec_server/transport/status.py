"""The one place where the domain's errors become gRPC statuses, and the rich error that goes with each."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from trivec_server import errors

_Codes: TypeAlias = tuple[tuple[type[errors.TrivecError], grpc.StatusCode], ...]

# The first that an error is an instance of counts.
_CODES: _Codes = (
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.InvalidTensor, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.ResponseTooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.ComputeError, grpc.StatusCode.INTERNAL),
    (errors.Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (errors.ModelNotInRepository, grpc.StatusCode.INTERNAL),
    (errors.LoadFailed, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.SharedMemoryExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.SharedMemoryUnusable, grpc.StatusCode.INTERNAL),
)

# Triton knows neither RESOURCE_EXHAUSTED nor, but for the client's own, DEADLINE_EXCEEDED.
_KSERVE_CODES: _Codes = (
    (errors.LimitOfIdentity, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Overloaded, grpc.StatusCode.UNAVAILABLE),
    (errors.QueueTimeout, grpc.StatusCode.UNAVAILABLE),
    (errors.ResponseTooLarge, grpc.StatusCode.INVALID_ARGUMENT),
    *_CODES,
)
_KSERVE_REASONS: tuple[tuple[type[errors.TrivecError], str], ...] = (
    (errors.LimitOfIdentity, ""),
    (errors.Overloaded, "QUEUE_FULL"),
    (errors.QueueTimeout, "QUEUE_TIMEOUT"),
    (errors.ShuttingDown, "SHUTTING_DOWN"),
    (errors.ControlDisabled, ""),
    (errors.Unavailable, "MODEL_NOT_READY"),
)
"""What tells errors apart that Triton gives one code."""

REASON_KEY = "trivec-reason"
_ERROR_DOMAIN = "trivec"
_MAX_MESSAGE_BYTES = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class CallStatus:
    """A status code with google.rpc.Status beside it, and how both travel. `reason` is empty where the code says it."""

    code: grpc.StatusCode
    rich: status_pb2.Status
    reason: str = ""

    def trailing_metadata(self, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
        """The metadata in which gRPC clients look for the rich error, the request id, and the reason."""
        rich = self.rich.SerializeToString()
        metadata = (("x-request-id", request_id), ("grpc-status-details-bin", rich))
        return (*metadata, (REASON_KEY, self.reason)) if self.reason else metadata


StatusOf = Callable[[Exception, str], CallStatus]
"""From an error and the call's request id to its status."""


def status_of(error: Exception, request_id: str) -> CallStatus:
    """The status of an error. One that is not the domain's own is INTERNAL, and its text stays on the server."""
    return _build(error, request_id, _CODES)


def kserve_status_of(error: Exception, request_id: str) -> CallStatus:
    """As `status_of`, with the codes that Triton gives, and the reason where it gives one code for several."""
    reason = next((reason for kind, reason in _KSERVE_REASONS if isinstance(error, kind)), "")
    return _build(error, request_id, _KSERVE_CODES, reason)


def _build(error: Exception, request_id: str, codes: _Codes, reason: str = "") -> CallStatus:
    code = next((code for kind, code in codes if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    is_known = isinstance(error, errors.TrivecError)
    message = str(error) if is_known else f"internal error; the server's log has it under request id {request_id}"
    rich = status_pb2.Status(code=code.value[0], message=_cut(message))
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
    if reason:
        _attach(rich, error_details_pb2.ErrorInfo(reason=reason, domain=_ERROR_DOMAIN))
    return CallStatus(code, rich, reason)


def _cut(message: str) -> str:
    """Names from the request may be long, and trailing metadata may not; they may hold lines, and a message is one."""
    line = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), message)
    return line.encode()[:_MAX_MESSAGE_BYTES].decode(errors="ignore")


def _attach(rich: status_pb2.Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    rich.details.append(packed)
