"""
A stand-in for a server that answers any method with what a test says, and keeps what it was sent: for what proxies do
with messages, metadata and statuses. Its health is that of a server that is ready.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

EMBED = "/trivec.v1.EmbeddingService/Embed"

Context = grpc.ServicerContext
Answer = Callable[[bytes, Context], bytes]

_ANY_SIZE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_PINGS_OF_PROXIES = [("grpc.http2.min_ping_interval_without_data_ms", 500), ("grpc.keepalive_permit_without_calls", 1)]


@dataclass
class BareNode(grpc.GenericRpcHandler):
    """`remaining_s`: of each call, in order, what was left of its deadline; None: it had none."""

    answer: Answer
    port: int = 0
    remaining_s: list[float | None] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return len(self.remaining_s)

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        if details.method.startswith("/grpc.health"):
            return None

        def respond(request: bytes, context: Context) -> bytes:
            self.remaining_s.append(context.time_remaining())
            self.metadata.append(dict(context.invocation_metadata()))
            return self.answer(request, context)

        return grpc.unary_unary_rpc_method_handler(respond)


@contextmanager
def bare_node(
    answer: Answer = lambda request, _: request,
    *,
    address: str = "127.0.0.1:0",
    credentials: tuple[bytes, bytes] | None = None,
) -> Iterator[BareNode]:
    """A node until the block ends; it echoes, unless told otherwise. `credentials`: a key and a certificate, in PEM."""
    server = grpc.server(
        futures.ThreadPoolExecutor(8), options=[*_ANY_SIZE, *_PINGS_OF_PROXIES, ("grpc.so_reuseport", 0)]
    )
    servicer = health.HealthServicer()
    servicer.set("trivec.v1.EmbeddingService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    node = BareNode(answer)
    server.add_generic_rpc_handlers((node,))
    if credentials:
        node.port = server.add_secure_port(address, grpc.ssl_server_credentials([credentials]))
    else:
        node.port = server.add_insecure_port(address)
    server.start()
    try:
        yield node
    finally:
        server.stop(None).wait()


@contextmanager
def calling(target: str) -> Iterator["grpc.UnaryUnaryMultiCallable[bytes, bytes]"]:
    """The method Embed with messages of any bytes and any size; gRPC itself sends nothing again."""
    with grpc.insecure_channel(target, options=[*_ANY_SIZE, ("grpc.enable_retries", 0)]) as channel:
        yield channel.unary_unary(EMBED)
