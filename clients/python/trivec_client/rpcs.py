"""The server's methods over one channel, for both clients."""

from typing import Any

import grpc
import grpc.aio
from trivec.v1 import embedding_pb2, embedding_pb2_grpc

from trivec_client.balancing import SERVICE_NAME
from trivec_client.health import CHECK_METHOD, parse_check, serialize_check
from trivec_client.jobs import Rpc


class Rpcs:
    """The methods of EmbeddingService by name, and the health check."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None:
        stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        self.by_name: dict[Rpc, Any] = {rpc: getattr(stub, rpc.value) for rpc in Rpc}
        # One request goes on a stream, so it is sent together with the stream's opening and end. grpc.aio reports
        # INTERNAL, in the place of the server's status, where a server has ended a stream before a request is written.
        self.by_name[Rpc.EMBED_STREAM] = channel.unary_stream(
            f"/{SERVICE_NAME}/{Rpc.EMBED_STREAM.value}",
            embedding_pb2.EmbedStreamRequest.SerializeToString,
            embedding_pb2.EmbedStreamResponse.FromString,
        )
        self.check_health: Any = channel.unary_unary(CHECK_METHOD, serialize_check, parse_check)
