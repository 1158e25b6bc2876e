"""The calls of the soak: every kind, of many sizes, some wrong, some cancelled, some with too little time."""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import TypeAlias

import grpc
from inference import grpc_service_pb2 as kserve
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.tiny_model import MAX_TOKENS

MODEL = "tiny"
MESSAGES_PER_STREAM = 8
Method: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
_WORDS = ("hello", "world", "the", *"abcdelor")
_SIZES = (1, 1, 1, 2, 4, 8, 32, 64)
_MODES = (pb.MODE_DENSE, pb.MODE_DENSE, pb.MODE_SPARSE, pb.MODE_MULTI_VECTOR, pb.MODE_HYBRID)
_ENCODINGS = (
    pb.VECTOR_ENCODING_UNSPECIFIED,
    pb.VECTOR_ENCODING_FLOAT32,
    pb.VECTOR_ENCODING_FLOAT16,
    pb.VECTOR_ENCODING_INT8,
)
_OUTPUTS = ("dense", "sparse_indptr", "sparse_indices", "sparse_values", "multi_vector_offsets", "multi_vector")
_EXPECTED = {
    grpc.StatusCode.INVALID_ARGUMENT: "refused as wrong",
    grpc.StatusCode.NOT_FOUND: "refused as wrong",
    grpc.StatusCode.DEADLINE_EXCEEDED: "past their deadline",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "refused under load",
    grpc.StatusCode.CANCELLED: "cancelled",
}


class Caller:
    """Draws calls at random, sends them on one connection, and counts in `outcomes` how they end."""

    def __init__(self, channel: grpc.aio.Channel, random: Random, outcomes: "Counter[str]") -> None:
        self._embedding = EmbeddingServiceStub(channel)
        self._raw_embed: Method = channel.unary_unary("/trivec.v1.EmbeddingService/Embed")
        self._raw_infer: Method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        self._random = random
        self._outcomes = outcomes

    async def one(self) -> int:
        """One call, or one stream; how many requests that were."""
        kinds: dict[Callable[[], Awaitable[int]], int] = {
            self._embed: 50,
            self._infer: 15,
            self._score: 10,
            self._cancelled: 8,
            self._late: 6,
            self._wrong: 6,
            self._malformed: 2,
            self._stream: 3,
        }
        (kind,) = self._random.choices(list(kinds), list(kinds.values()))
        try:
            return await kind()
        except grpc.aio.AioRpcError as error:
            self._outcomes[_EXPECTED.get(error.code(), f"failed: {error.code().name}: {error.details()}")] += 1
        return 1

    async def _embed(self) -> int:
        request = self._request()
        response = await self._embedding.Embed(request)
        self._check(len(response.embeddings) == len(request.texts))
        return 1

    async def _infer(self) -> int:
        texts = self._texts()
        encoded = b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts)
        names = self._random.sample(_OUTPUTS, self._random.randint(1, len(_OUTPUTS)))
        request = kserve.ModelInferRequest(
            model_name=MODEL,
            inputs=[kserve.ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[len(texts), 1])],
            outputs=[kserve.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names],
            raw_input_contents=[encoded],
        )
        response = kserve.ModelInferResponse.FromString(await self._raw_infer(request.SerializeToString()))
        self._check(len(response.outputs) == len(names))
        return 1

    async def _score(self) -> int:
        passages = self._texts()
        response = await self._embedding.Score(pb.ScoreRequest(query=self._text(), passages=passages))
        self._check(len(response.scores) == len(passages))
        return 1

    async def _cancelled(self) -> int:
        call = self._embedding.Embed(self._request())
        asyncio.get_running_loop().call_later(self._random.uniform(0, 0.02), call.cancel)
        try:
            await call
            self._outcomes["answered"] += 1
        except asyncio.CancelledError:
            self._outcomes["cancelled"] += 1
        return 1

    async def _late(self) -> int:
        await self._embedding.Embed(self._request(), timeout=self._random.uniform(0.0005, 0.01))
        self._outcomes["answered"] += 1
        return 1

    async def _wrong(self) -> int:
        wrong = self._random.choice(
            (
                pb.EmbedRequest(texts=[]),
                pb.EmbedRequest(texts=["a"], model="nobody"),
                pb.EmbedRequest(texts=[" ".join("abcde" * MAX_TOKENS)], truncation=pb.TRUNCATION_ERROR),
            )
        )
        await self._embedding.Embed(wrong)
        self._outcomes["failed: what is wrong was answered"] += 1
        return 1

    async def _malformed(self) -> int:
        await self._raw_embed(self._random.randbytes(self._random.randint(1, 2000)))
        self._outcomes["failed: what is no message was answered"] += 1
        return 1

    async def _stream(self) -> int:
        async def messages() -> AsyncIterator[pb.EmbedStreamRequest]:
            for number in range(MESSAGES_PER_STREAM):
                yield pb.EmbedStreamRequest(id=str(number), request=self._request())

        call = self._embedding.EmbedStream(messages())
        if self._random.random() < 0.2:
            asyncio.get_running_loop().call_later(self._random.uniform(0, 0.05), call.cancel)
        answered = 0
        try:
            async for message in call:
                answered += message.final
        except asyncio.CancelledError:
            self._outcomes["cancelled"] += MESSAGES_PER_STREAM - answered
        self._outcomes["answered"] += answered
        return MESSAGES_PER_STREAM

    def _check(self, right: bool) -> None:
        self._outcomes["answered" if right else "failed: the answer is not whole"] += 1

    def _request(self) -> pb.EmbedRequest:
        return pb.EmbedRequest(
            texts=self._texts(), modes=[self._random.choice(_MODES)], encoding=self._random.choice(_ENCODINGS)
        )

    def _texts(self) -> list[str]:
        return [self._text() for _ in range(self._random.choice(_SIZES))]

    def _text(self) -> str:
        """Of up to MAX_TOKENS tokens: a word is at most two."""
        return " ".join(self._random.choices(_WORDS, k=self._random.randint(0, MAX_TOKENS // 2 - 1)))
