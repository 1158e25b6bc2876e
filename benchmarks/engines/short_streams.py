"""Many short texts through gRPC: streams of requests with many texts each, messages built and read as bytes."""

import asyncio
import time

import grpc
from trivec.v1 import embedding_pb2 as pb

from benchmarks.engines.lengths import TextSet

_METHOD = "/trivec.v1.EmbeddingService/EmbedStream"
_OPTIONS = [("grpc.max_receive_message_length", -1)]
_UNDER_WAY = 4


def stream_rate(target: str, texts: TextSet, *, texts_per_request: int, streams: int, duration_s: float) -> float:
    """
    Texts per second: dense vectors in float16, for about so many seconds. The messages are made beforehand and their
    answers counted, not decoded: it is the server that is measured.

    Args:
        target: `host:port`.
        texts: Are sent again and again.
        texts_per_request: In each message.
        streams: So many at once, each with 4 messages under way.
        duration_s: How long.
    """
    requests = [
        pb.EmbedStreamRequest(
            id=str(start),
            request=pb.EmbedRequest(
                texts=texts.texts[start : start + texts_per_request],
                modes=[pb.MODE_DENSE],
                encoding=pb.VECTOR_ENCODING_FLOAT16,
            ),
        ).SerializeToString()
        for start in range(0, len(texts.texts) - texts_per_request + 1, texts_per_request)
    ]
    answered = asyncio.run(_run_streams(target, requests, streams, duration_s))
    return answered * texts_per_request / duration_s


async def _run_streams(target: str, requests: list[bytes], streams: int, duration_s: float) -> int:
    """The requests answered before the time was over."""
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(_METHOD)
        ends_at = time.perf_counter() + duration_s
        counts = await asyncio.gather(*(_run_stream(method, requests, first, ends_at) for first in range(streams)))
    return sum(counts)


async def _run_stream(
    method: "grpc.aio.StreamStreamMultiCallable[bytes, bytes]", requests: list[bytes], first: int, ends_at: float
) -> int:
    stream = method()
    number = first
    for _ in range(_UNDER_WAY):
        await stream.write(requests[number % len(requests)])
        number += 1
    count = 0
    async for message in stream:
        answer = pb.EmbedStreamResponse.FromString(message)
        if answer.HasField("error"):
            raise RuntimeError(answer.error.message)
        if not answer.final:
            continue
        if time.perf_counter() >= ends_at:
            break
        count += 1
        await stream.write(requests[number % len(requests)])
        number += 1
    stream.cancel()
    return count
