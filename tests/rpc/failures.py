"""How a call failed, as a client sees it: the code, the message and the google.rpc details that travel beside them."""

from collections.abc import Awaitable
from dataclasses import dataclass

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Failure:
    """`violations` are field to description; `request_id` is that of RequestInfo."""

    code: grpc.StatusCode
    message: str
    violations: dict[str, str]
    retry_delay_s: float | None
    request_id: str


async def failure_of(call: Awaitable[object]) -> Failure:
    """Awaits a call that must fail, with details that agree with its status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    metadata = dict(error.trailing_metadata())
    assert DETAILS_KEY in metadata, f"no details: {error.code()}: {error.details()}"
    rich = status_pb2.Status.FromString(metadata[DETAILS_KEY])
    failure = read_status(rich)
    assert (failure.code, failure.message) == (error.code(), error.details())
    assert metadata["x-request-id"] == failure.request_id
    return failure


def read_status(rich: status_pb2.Status) -> Failure:
    """A google.rpc.Status with its details."""
    violations: dict[str, str] = {}
    retry_delay_s: float | None = None
    request_ids: list[str] = []
    for detail in rich.details:
        bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        request = error_details_pb2.RequestInfo()
        if detail.Unpack(bad_request):
            violations |= {each.field: each.description for each in bad_request.field_violations}
        elif detail.Unpack(retry):
            retry_delay_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(request):
            request_ids.append(request.request_id)
        else:
            raise AssertionError(f"unexpected detail {detail.type_url}")
    (request_id,) = request_ids
    return Failure(_CODES[rich.code], rich.message, violations, retry_delay_s, request_id)
