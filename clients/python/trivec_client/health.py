"""
The health check of gRPC (grpc.health.v1), without its package: its two messages have one field each, numbered 1, and
so are on the wire what protobuf's own wrappers are.
"""

import enum

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from trivec_client.errors import TrivecClientError, parse_rpc_error

CHECK_METHOD = "/grpc.health.v1.Health/Check"


class ServingStatus(enum.Enum):
    """grpc.health.v1.HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def serialize_check(service: str) -> bytes:
    """A HealthCheckRequest: string service = 1."""
    return StringValue(value=service).SerializeToString()


def parse_failure(error: grpc.RpcError, service: str, target: str) -> TrivecClientError:
    """What a failed check ended with; the health service itself has no words for a service that it does not know."""
    parsed = parse_rpc_error(error)
    if parsed.code is grpc.StatusCode.NOT_FOUND:
        parsed.message = f"the server's health service does not know {service!r}"
    return parsed.in_context(request_id="", first_index=0, target=target)


def parse_check(data: bytes) -> ServingStatus:
    """A HealthCheckResponse: enum status = 1."""
    return ServingStatus(Int32Value.FromString(data).value)
