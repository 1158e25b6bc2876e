"""
What can go wrong, for callers. Every failure of a call is a `TrivecClientError`; a fault in the arguments that needs
no server to see is a `TypeError` or `ValueError`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""The trailing metadata that carries a serialized google.rpc.Status."""

_TEXT_INDEX = re.compile(r"\b(texts|passages)\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One faulty field of a request: its path with index, such as `texts[3]`, and what is wrong with it."""

    field: str
    description: str


class TrivecClientError(Exception):
    """
    A call failed. `str(error)` is one line.

    Attributes:
        code: the gRPC status code.
        message: what was wrong, in the server's words where it has spoken.
        violations: the faulty fields, for INVALID_ARGUMENT. An index counts in the caller's list, not in the request
            that happened to carry the text.
        request_id: the id of the request, also in the server's log; empty where none was sent.
        retry_after_s: how long the server asks to wait before another try; None where it does not ask.
        rpc_error: what gRPC raised, where it did. It is not the `__cause__`: a traceback ends with this error's line.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        request_id: str = "",
        retry_after_s: float | None = None,
        rpc_error: Exception | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.violations = tuple(violations)
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.rpc_error = rpc_error

    def __str__(self) -> str:
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.code.name}: {self.message}{request}"

    def in_context(self, *, request_id: str, first_index: int, target: str, health_service: str = "") -> Self:
        """
        The same error as the caller sees it: indices shifted by the index of the request's first text, the target
        named where the server was not reached or did not answer, with what to look at there, the request id filled in.
        `health_service` is what the servers of a cluster must say SERVING of.
        """

        def shift(text: str) -> str:
            return _TEXT_INDEX.sub(lambda match: f"{match[1]}[{int(match[2]) + first_index}]", text)

        spoken = shift(self.message)
        unanswered = self.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        return type(self)(
            self.code,
            f"{target}: {spoken}{_hint(spoken, health_service)}" if unanswered else spoken,
            violations=[FieldViolation(shift(each.field), shift(each.description)) for each in self.violations],
            request_id=self.request_id or request_id,
            retry_after_s=self.retry_after_s,
            rpc_error=self.rpc_error,
        )


def _hint(message: str, health_service: str) -> str:
    """What to look at where gRPC says that it could not connect."""
    message = message.lower()
    if "backend unhealthy" in message:
        return f"; no server says SERVING of {health_service!r}: `trivec health` and `trivec models` tell more of each"
    if "failed to connect" not in message:
        return ""
    if "handshake failed" in message:
        plaintext = "wrong_version_number" in message
        return "; the server may speak plaintext: then connect without TLS" if plaintext else ""
    if "socket closed" in message:
        return "; the server may expect TLS"
    return "; is `trivec serve` running there?"


class InvalidRequestError(TrivecClientError):
    """The request itself is wrong; sending it again unchanged fails again."""


class NotFoundError(TrivecClientError):
    """The server does not know the model, the version or the health service."""


class UnavailableError(TrivecClientError):
    """The server cannot be reached, is shutting down, or the model is not ready; every try failed."""


class OverloadedError(TrivecClientError):
    """The server refused work under load, and went on refusing for as long as the client may wait."""


class DeadlineExceededError(TrivecClientError):
    """The call's `timeout_s` passed before the answer was there."""


class MalformedResponseError(TrivecClientError):
    """The answer contradicts the contract: wrong sizes, missing parts, rows out of order."""

    @classmethod
    def because(cls, message: str) -> Self:
        """An error of code INTERNAL that says what is wrong with the answer."""
        return cls(grpc.StatusCode.INTERNAL, f"the server's answer is malformed: {message}")


class MissingExtraError(ImportError):
    """An optional package is not installed; the message names the extra of this distribution that brings it."""

    @classmethod
    def of(cls, feature: str, package: str, extra: str) -> Self:
        """The error for `feature`, which needs `package`, which `extra` brings."""
        return cls(f"{feature} needs {package}: pip install 'trivec[{extra}]'")


_CLASSES: dict[grpc.StatusCode, type[TrivecClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def parse_status(status: status_pb2.Status) -> TrivecClientError:
    """A google.rpc.Status, from the trailing metadata or out of a stream, as an error."""
    violations: list[FieldViolation] = []
    retry_after_s: float | None = None
    request_id = ""
    for detail in status.details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest.FromString(detail.value)
            violations += [FieldViolation(each.field, each.description) for each in bad_request.field_violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
            retry_after_s = delay.seconds + delay.nanos / 1e9
        elif detail.Is(error_details_pb2.RequestInfo.DESCRIPTOR):
            request_id = error_details_pb2.RequestInfo.FromString(detail.value).request_id
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    overloaded = code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after_s is not None
    error_class = OverloadedError if overloaded else _CLASSES.get(code, TrivecClientError)
    return error_class(code, status.message, violations=violations, request_id=request_id, retry_after_s=retry_after_s)


def parse_rpc_error(error: grpc.RpcError) -> TrivecClientError:
    """What a failed RPC ended with, as an error that keeps it as `rpc_error`."""
    parsed = _parse_end(error.code(), error.details(), error.trailing_metadata())
    parsed.rpc_error = error
    return parsed


def parse_attempt_error(error: grpc.RpcError, *, is_ended_here: bool) -> TrivecClientError:
    """
    As `parse_rpc_error`, of a call to be sent again if that helps: CANCELLED is UNAVAILABLE if nobody here has ended
    the call. gRPC's servers answer so to calls that reach them while they stop, before any of the program sees them.
    """
    parsed = parse_rpc_error(error)
    if parsed.code is not grpc.StatusCode.CANCELLED or is_ended_here:
        return parsed
    stopped = UnavailableError(grpc.StatusCode.UNAVAILABLE, f"the server has ended the call: {parsed.message}")
    stopped.rpc_error = error
    return stopped


def _parse_end(
    code: grpc.StatusCode, details: str | None, trailing_metadata: Iterable[Any] | None
) -> TrivecClientError:
    """
    The end of an RPC as an error; the metadata are pairs of key and value. Without a readable google.rpc.Status in
    them (a proxy or gRPC itself has answered) the plain code and message remain.
    """
    plain = status_pb2.Status(code=code.value[0], message=details or "no further details")
    for key, value in trailing_metadata or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except DecodeError:
                break
            if status.code == plain.code:
                return parse_status(status)
    return parse_status(plain)
