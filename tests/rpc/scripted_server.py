"""
A real grpc.aio server with a fake behind it: embeddings that follow from the text by rule, and failures by script.

It fakes the server for tests of clients: what a client must do when the server is overloaded, goes away or answers
nonsense cannot be had from a healthy server.
"""

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
import numpy as np
import trustme
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_status import rpc_status
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb
from trivec.v1 import embedding_pb2_grpc

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

DIMENSION = 12
"""Of dense vectors and of rows; not a multiple of 8, so that packed bits have padding."""
CHUNK_ROWS = 3
"""Rows of a multi-vector in one message of EmbedStream."""
SERVICE = "trivec.v1.EmbeddingService"
TLS_NAME = "trivec-test"


@cache
def _issued() -> tuple[bytes, bytes, bytes]:
    """A certificate authority of this run, and a server's key and certificate of it, in PEM."""
    authority = trustme.CA()
    server = authority.issue_cert(TLS_NAME)
    chain = b"".join(part.bytes() for part in server.cert_chain_pems)
    return authority.cert_pem.bytes(), server.private_key_pem.bytes(), chain


def write_authority(directory: Path) -> Path:
    """The PEM file of the authority that a client of the scripted server has to trust."""
    path = directory / "authority.pem"
    path.write_bytes(_issued()[0])
    return path


@dataclass(frozen=True)
class Failure:
    """What one call ends with: before any answer, or on EmbedStream after `after_messages` of it."""

    code: grpc.StatusCode
    message: str = "scripted"
    retry_after_s: float | None = None
    field: str = ""
    after_messages: int = 0
    in_stream: bool = False
    """As an `error` message of EmbedStream, the stream itself ending well."""

    def status(self, request_id: str = "") -> status_pb2.Status:
        details: list[Message] = []
        if self.retry_after_s is not None:
            delay = Duration()
            delay.FromMilliseconds(round(self.retry_after_s * 1000))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        if self.field:
            violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.message)
            details.append(error_details_pb2.BadRequest(field_violations=[violation]))
        if request_id:
            details.append(error_details_pb2.RequestInfo(request_id=request_id))
        packed = [AnyMessage() for _ in details]
        for target, detail in zip(packed, details, strict=True):
            target.Pack(detail)
        message = f"{self.field}: {self.message}" if self.field else self.message
        return status_pb2.Status(code=self.code.value[0], message=message, details=packed)


@dataclass(frozen=True)
class Ending:
    """EmbedStream ends well after `after_messages` messages, without the final one."""

    after_messages: int = 0


@dataclass(frozen=True)
class Load:
    """What a server reports of itself: the share of its capacity in use, and answers per second."""

    utilization: float
    rate: float

    def serialize(self) -> bytes:
        """An xds.data.orca.v3.OrcaLoadReport: double rps_fractional = 6, double application_utilization = 9."""
        return struct.pack("<BdBd", 6 << 3 | 1, self.rate, 9 << 3 | 1, self.utilization)


def overloaded(retry_after_s: float) -> Failure:
    return Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", retry_after_s=retry_after_s)


def unavailable(**more: int) -> Failure:
    return Failure(grpc.StatusCode.UNAVAILABLE, "going away", **more)  # type: ignore[arg-type]


def token_count(text: str) -> int:
    """Tokens are characters, between two special ones."""
    return len(text) + 2


def vectors(text: str, rows: int) -> NDArray[np.float32]:
    """Unit rows that follow from the text, float32 [rows, DIMENSION]."""
    drawn = np.random.default_rng(zlib.crc32(text.encode())).standard_normal((rows, DIMENSION))
    unit: NDArray[np.float32] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


def dense_of(text: str) -> NDArray[np.float32]:
    first: NDArray[np.float32] = vectors(text, 1)[0]
    return first


def rows_of(text: str) -> NDArray[np.float32]:
    return vectors(text, token_count(text) - 1)


def weights_of(text: str) -> dict[int, float]:
    """Each character weighs its share of the text; ascending ids."""
    return {ord(char): text.count(char) / len(text) for char in sorted(set(text))}


def pack(rows: NDArray[np.float32], encoding: pb.VectorEncoding.ValueType) -> tuple[bytes, list[float]]:
    """Rows as the contract packs them, and the scales of INT8."""
    match encoding:
        case pb.VECTOR_ENCODING_FLOAT32:
            return rows.astype("<f4").tobytes(), []
        case pb.VECTOR_ENCODING_FLOAT16:
            return rows.astype("<f2").tobytes(), []
        case pb.VECTOR_ENCODING_BFLOAT16:
            return (rows.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes(), []
        case pb.VECTOR_ENCODING_INT8:
            scales = np.abs(rows).max(axis=1) / 127
            return np.round(rows / scales[:, None]).astype(np.int8).tobytes(), scales.tolist()
        case pb.VECTOR_ENCODING_BINARY:
            return np.packbits(rows > 0, axis=1).tobytes(), []
        case _:
            raise AssertionError(f"encoding {encoding} is not scripted")


def chunks(request: pb.EmbedRequest, index: int, max_rows: int | None) -> Iterable[pb.Embedding]:
    """The embedding of one text, its multi-vector in ranges of `max_rows`; whole where None."""
    text = request.texts[index]
    modes = set(request.modes)
    encoding = request.encoding
    whole = pb.Embedding(index=index, token_count=token_count(text))
    if pb.MODE_DENSE in modes:
        data, scales = pack(dense_of(text)[None], encoding)
        whole.dense.CopyFrom(
            pb.DenseVector(dimension=DIMENSION, data=data, encoding=encoding, scale=scales[0] if scales else 0)
        )
    if pb.MODE_SPARSE in modes:
        weights = weights_of(text)
        tokens = [chr(token) for token in weights] if request.return_tokens else []
        whole.sparse.CopyFrom(pb.SparseVector(ids=weights.keys(), weights=weights.values(), tokens=tokens))
    if pb.MODE_MULTI_VECTOR not in modes:
        yield whole
        return
    rows = rows_of(text)
    step = max_rows or len(rows)
    for first in range(0, len(rows), step):
        part = rows[first : first + step]
        embedding = whole if first == 0 else pb.Embedding(index=index, token_count=token_count(text))
        data, scales = pack(part, encoding)
        embedding.multi_vector.CopyFrom(
            pb.MultiVector(
                rows=len(part),
                dimension=DIMENSION,
                first_row=first,
                total_rows=len(rows),
                data=data,
                encoding=encoding,
                scales=scales,
            )
        )
        yield embedding


@dataclass
class Script(embedding_pb2_grpc.EmbeddingServiceServicer):
    """
    The service. `failures` are met in order by calls to Embed, EmbedStream and Score, one each; None is a success.
    `requests` are those calls. `gate`, while cleared, holds them before they answer. `versions`, where not empty,
    are the versions that they answer with, in turn. `health` says SERVING until told otherwise. `load`, where there is
    one, goes with every answer of Embed.
    """

    failures: deque[Failure | Ending | None] = field(default_factory=deque)
    versions: deque[int] = field(default_factory=deque)
    requests: list[Message] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    limits: pb.ModelLimits = field(
        default_factory=lambda: pb.ModelLimits(
            max_tokens=8192,
            max_texts_per_request=100,
            max_request_bytes=1 << 20,
            max_response_bytes=4 << 20,
            max_chunk_bytes=4 << 20,
            max_queued_tokens=1_000_000,
            max_stream_requests=8,
            batch_token_budget=8192,
        )
    )
    running: int = 0
    most_running: int = 0
    cancelled: int = 0
    load: "Load | None" = None
    health: health_aio.HealthServicer = field(default_factory=health_aio.HealthServicer)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.gate.set()

    async def until_running(self, count: int) -> None:
        """Waits until so many calls are under way; a test that would wait forever fails instead."""
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(lambda: self.running == count)

    @asynccontextmanager
    async def call(self, request: Message, context: Context) -> AsyncIterator[Failure | Ending | None]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        failure = self.failures.popleft() if self.failures else None
        await self.count(1)
        try:
            await self.gate.wait()
            yield failure
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            await self.count(-1)

    async def count(self, change: int) -> None:
        self.running += change
        self.most_running = max(self.most_running, self.running)
        async with self.changed:
            self.changed.notify_all()

    def version(self) -> int:
        return self.versions.popleft() if self.versions else 1

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:  # noqa: N802 - the contract's name
        async with self.call(request, context) as failure:
            if isinstance(failure, Failure):
                await context.abort_with_status(rpc_status.to_status(failure.status(request.request_id)))
            if self.load is not None:
                context.set_trailing_metadata((("endpoint-load-metrics-bin", self.load.serialize()),))
            embeddings = [each for index in range(len(request.texts)) for each in chunks(request, index, None)]
            return pb.EmbedResponse(model="scripted", version=self.version(), embeddings=embeddings)

    async def EmbedStream(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: Context
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        async for wrapped in request_iterator:
            async with self.call(wrapped.request, context) as failure:
                count = len(wrapped.request.texts)
                parts = [each for i in range(count) for each in chunks(wrapped.request, i, CHUNK_ROWS)]
                version = self.version()
                for sent, embedding in enumerate(parts):
                    if failure is not None and failure.after_messages == sent:
                        if isinstance(failure, Ending):
                            return
                        if not failure.in_stream:
                            await context.abort_with_status(rpc_status.to_status(failure.status()))
                        yield pb.EmbedStreamResponse(id=wrapped.id, error=failure.status(), final=True)
                        return
                    response = pb.EmbedResponse(model="scripted", version=version, embeddings=[embedding])
                    yield pb.EmbedStreamResponse(id=wrapped.id, response=response, final=sent == len(parts) - 1)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:  # noqa: N802 - the contract's name
        async with self.call(request, context) as failure:
            if isinstance(failure, Failure):
                await context.abort_with_status(rpc_status.to_status(failure.status(request.request_id)))
            weights = request.weights if request.HasField("weights") else pb.ScoreWeights(dense=1, sparse=1)
            scores = [
                score_of(request.query, passage, weights, index) for index, passage in enumerate(request.passages)
            ]
            return pb.ScoreResponse(model="scripted", version=self.version(), scores=scores, weights=weights)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:  # noqa: N802 - the contract's name
        texts = [
            pb.TokenizedText(
                index=index,
                ids=[0, *map(ord, text), 2],
                tokens=["<s>", *text, "</s>"],
                offsets=[
                    pb.TokenOffset(start=max(0, i), end=max(0, i) + (0 <= i < len(text)))
                    for i in range(-1, len(text) + 1)
                ],
                count=token_count(text),
            )
            for index, text in enumerate(request.texts)
        ]
        return pb.TokenizeResponse(model="scripted", version=1, texts=texts)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: N802 - the contract's name
        if request.model not in {"", "scripted"}:
            failure = Failure(grpc.StatusCode.NOT_FOUND, f"model {request.model!r} is not known")
            await context.abort_with_status(rpc_status.to_status(failure.status()))
        return pb.GetModelResponse(model=self.model())

    async def ListModels(  # noqa: N802 - the contract's name
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        broken = pb.Model(
            name="broken", version=3, state=pb.MODEL_STATE_UNAVAILABLE, state_reason="sparse_linear is missing"
        )
        return pb.ListModelsResponse(models=[self.model()] if request.ready_only else [broken, self.model()])

    def model(self) -> pb.Model:
        return pb.Model(
            name="scripted",
            version=1,
            state=pb.MODEL_STATE_READY,
            modes=[pb.MODE_DENSE, pb.MODE_SPARSE, pb.MODE_MULTI_VECTOR],
            dense_dimension=DIMENSION,
            multi_vector_dimension=DIMENSION,
            vocabulary_size=0x110000,
            engine="script",
            device="cpu",
            precision="float32",
            limits=self.limits,
            score_weights=pb.ScoreWeights(dense=1, sparse=1, multi_vector=1),
        )


def score_of(query: str, passage: str, weights: pb.ScoreWeights, index: int) -> pb.PassageScore:
    """The scores of a passage by the contract's formulas."""
    dense = float(dense_of(query) @ dense_of(passage))
    one, two = weights_of(query), weights_of(passage)
    sparse = sum(weight * two.get(token, 0) for token, weight in one.items())
    multi_vector = float((rows_of(query) @ rows_of(passage).T).max(axis=1).mean())
    pair = dense * weights.dense + sparse * weights.sparse
    return pb.PassageScore(
        index=index,
        dense=dense,
        sparse=sparse,
        multi_vector=multi_vector,
        sparse_dense=pair / (weights.dense + weights.sparse),
        hybrid=(pair + multi_vector * weights.multi_vector) / (weights.dense + weights.sparse + weights.multi_vector),
        token_count=token_count(passage),
    )


@asynccontextmanager
async def serve(script: Script, *, port: int = 0, host: str = "127.0.0.1", tls: bool = False) -> AsyncIterator[str]:
    """Serves on a free port, or on `port`; gives the target."""
    server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 500)])
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(script, server)
    health_pb2_grpc.add_HealthServicer_to_server(script.health, server)
    for name in ("", SERVICE, "scripted"):
        await script.health.set(name, health_pb2.HealthCheckResponse.SERVING)
    await script.health.set("broken", health_pb2.HealthCheckResponse.NOT_SERVING)
    address = f"{host}:{port}"
    if tls:
        pair = _issued()[1:]
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"{host}:{port}"
    finally:
        await server.stop(None)
