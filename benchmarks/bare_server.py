"""
The peer of `overhead`: a bare grpc.aio server on the same stubs, with no tokenizer, queue or model behind it.

Embed answers with generated message objects built from ready bytes, as a server written in the ordinary way would;
EmbedStream answers one request with ready messages of 1 MiB until the amount asked for is sent.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np
from trivec.v1 import embedding_pb2 as pb

DIMENSION = 1024
STREAM_MESSAGE_BYTES = 1024 * 1024

_VECTOR = (np.ones(DIMENSION, np.float32) / np.sqrt(np.float32(DIMENSION))).tobytes()


async def _embed(request: pb.EmbedRequest, _: object) -> pb.EmbedResponse:
    response = pb.EmbedResponse(model="bare", version=1, request_id="bare")
    for index in range(len(request.texts)):
        response.embeddings.add(
            index=index,
            token_count=12,
            dense=pb.DenseVector(dimension=DIMENSION, data=_VECTOR, encoding=pb.VECTOR_ENCODING_FLOAT32),
        )
    return response


async def _stream_ready_bytes(requests: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
    message = bytes(STREAM_MESSAGE_BYTES)
    async for raw in requests:
        for _sent in range(int(raw)):
            yield message


async def main() -> None:
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    embed = grpc.unary_unary_rpc_method_handler(_embed, pb.EmbedRequest.FromString, pb.EmbedResponse.SerializeToString)
    stream: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(_stream_ready_bytes)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("trivec.v1.EmbeddingService", {"Embed": embed}),
            grpc.method_handlers_generic_handler("bare.Bare", {"Stream": stream}),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"port {port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
