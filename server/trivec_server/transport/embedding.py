"""trivec.v1.EmbeddingService: its unary calls, and its registration. EmbedStream is in `stream.py`."""

import asyncio

import grpc
from google.protobuf.message import Message
from trivec.v1 import embedding_pb2 as pb

from trivec_server.logs import log_texts
from trivec_server.repository.registry import EmbeddingVersion, Registry, State, VersionRecord
from trivec_server.serving.portions import Totals
from trivec_server.serving.score import score_task
from trivec_server.settings import Limits
from trivec_server.transport import parse
from trivec_server.transport.calls import Call, CallScope, unary
from trivec_server.transport.describe import describe_version
from trivec_server.transport.render import render_embeddings, render_response
from trivec_server.transport.stream import EmbedStream

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["EmbeddingService"].full_name

_RENDER_ON_THREAD_BYTES = 2 * 1024 * 1024


class EmbeddingService:
    """Parses, lets the model's pipeline work, renders."""

    def __init__(self, registry: Registry, limits: Limits, scope: CallScope) -> None:
        self._registry = registry
        self._limits = limits
        self._scope = scope
        self._stream = EmbedStream(registry, limits, scope)

    def handler(self) -> grpc.GenericRpcHandler:
        """The service's methods, on raw bytes."""
        methods = {
            "Embed": self.embed,
            "Score": self.score,
            "Tokenize": self.tokenize,
            "GetModel": self.get_model,
            "ListModels": self.list_models,
        }
        handlers = {name: unary(self._scope, name, run) for name, run in methods.items()}
        handlers["EmbedStream"] = grpc.stream_stream_rpc_method_handler(self._stream.serve)
        return grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)

    def end_streams(self) -> None:
        """Lets streams answer what they have read, and end."""
        self._stream.end_all()

    async def embed(self, raw: bytes, call: Call) -> bytes:
        """One EmbedRequest to one EmbedResponse."""
        message = parse.parse_message(raw, pb.EmbedRequest)
        call.take_request_id(message.request_id)
        task = parse.parse_embed(
            message,
            request_id=call.request_id,
            deadline=call.deadline,
            size_bytes=len(raw),
            limits=self._limits,
            max_result_bytes=self._limits.max_response_bytes,
        )
        log_texts(call.request_id, task.texts)
        ready = self._resolve(call, message.model, message.version)
        parse.check_max_tokens(task.max_tokens, ready.loaded.max_tokens)
        with ready.pipeline.in_use():
            result = await ready.pipeline.embed(task)
        options = parse.parse_output_options(message, task)

        totals = Totals()
        totals.add(result)

        def render() -> bytes:
            embeddings = render_embeddings(result, options, ready.loaded.tokenizer)
            return b"".join(render_response(ready.key, call.request_id, totals, embeddings))

        size = ready.pipeline.result_bytes(task, task.text_count, totals.tokens)
        return render() if size < _RENDER_ON_THREAD_BYTES else await asyncio.to_thread(render)

    async def score(self, raw: bytes, call: Call) -> bytes:
        """One ScoreRequest to one ScoreResponse."""
        message = parse.parse_message(raw, pb.ScoreRequest)
        call.take_request_id(message.request_id)
        task = parse.parse_score(
            message, request_id=call.request_id, deadline=call.deadline, size_bytes=len(raw), limits=self._limits
        )
        log_texts(call.request_id, task.texts)
        ready = self._resolve(call, message.model, message.version)
        parse.check_max_tokens(task.max_tokens, ready.loaded.max_tokens)
        weights = parse.parse_score_weights(message, ready.loaded.settings.score_weights)
        with ready.pipeline.in_use():
            scored = await score_task(ready.pipeline, task, weights, top_k=message.top_k)
        response = pb.ScoreResponse(
            model=ready.key.name,
            version=ready.key.version,
            weights=pb.ScoreWeights(dense=weights.dense, sparse=weights.sparse, multi_vector=weights.multi_vector),
            usage=pb.TokenUsage(total_tokens=scored.totals.tokens, truncated_texts=scored.totals.truncated_texts),
            timings=pb.Timings(
                tokenize_us=scored.totals.timings.tokenize_us,
                queue_us=scored.totals.timings.queue_us,
                compute_us=scored.totals.timings.compute_us,
            ),
            query_truncated=scored.query_truncated,
            request_id=call.request_id,
        )
        for score in scored.scores:
            response.scores.add(
                index=score.index,
                dense=score.dense,
                sparse=score.sparse,
                multi_vector=score.multi_vector,
                sparse_dense=score.sparse_dense,
                hybrid=score.hybrid,
                token_count=score.token_count,
                truncated=score.truncated,
            )
        return _serialized(response)

    async def tokenize(self, raw: bytes, call: Call) -> bytes:
        """One TokenizeRequest to one TokenizeResponse."""
        message = parse.parse_message(raw, pb.TokenizeRequest)
        call.take_request_id(message.request_id)
        input_type, truncation = parse.parse_tokenize(message, self._limits)
        asked = parse.parse_max_tokens(message.max_tokens)
        log_texts(call.request_id, message.texts)
        ready = self._resolve(call, message.model, message.version)
        parse.check_max_tokens(asked, ready.loaded.max_tokens)
        limit = asked or ready.loaded.max_tokens
        with ready.pipeline.in_use():
            tokenized = await ready.pipeline.tokenize(list(message.texts), input_type, limit, truncation)
        response = pb.TokenizeResponse(model=ready.key.name, version=ready.key.version, request_id=call.request_id)
        for index, text in enumerate(tokenized):
            response.texts.add(
                index=index,
                ids=text.ids,
                tokens=text.tokens,
                offsets=[pb.TokenOffset(start=start, end=end) for start, end in text.offsets],
                count=len(text.ids),
                truncated=text.truncated,
            )
        return _serialized(response)

    async def get_model(self, raw: bytes, call: Call) -> bytes:
        """One GetModelRequest to one GetModelResponse."""
        message = parse.parse_message(raw, pb.GetModelRequest)
        record = self._registry.find(message.model, message.version)
        call.model = record.key.name
        return _serialized(pb.GetModelResponse(model=self._describe(record)))

    async def list_models(self, raw: bytes, _: Call) -> bytes:
        """One ListModelsRequest to one ListModelsResponse."""
        message = parse.parse_message(raw, pb.ListModelsRequest)
        models = [
            self._describe(record)
            for record in self._registry.records()
            if not message.ready_only or record.state is State.READY
        ]
        return _serialized(pb.ListModelsResponse(models=models))

    def _resolve(self, call: Call, name: str, version: int) -> EmbeddingVersion:
        ready = self._registry.resolve(name, version)
        call.model = ready.key.name
        return ready

    def _describe(self, record: VersionRecord) -> pb.Model:
        return describe_version(record, self._limits)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()
