"""What both clients share: their settings, and everything about a call that needs no I/O."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trivec.v1 import embedding_pb2 as pb

from trivec_client.embeddings import EmbedAssembly, EmbeddedTexts
from trivec_client.jobs import Job, RequestIds, Rpc, SingleResponse, StreamAssembly
from trivec_client.models import ModelInfo, ScoreWeights, parse_model
from trivec_client.requests import (
    INPUT_TYPES,
    TRUNCATIONS,
    EmbedOptions,
    InputTypeName,
    TruncationName,
    build_embed_request,
    modes_of,
    pick,
)
from trivec_client.retry import RetryPolicy
from trivec_client.scores import ScoredPassages, TextPair, as_pairs, as_weights, by_query, parse_scores
from trivec_client.splits import Part, RequestLimits, Splitter, embed_limits, text_limits
from trivec_client.tokens import TokenizedText, parse_tokens
from trivec_client.vectors import ENCODINGS, WireEncoding


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Settings of a client, described where callers give them: `TrivecClient.__init__`."""

    model: str = ""
    model_version: int = 0
    wire_encoding: WireEncoding = "float32"
    batch_size: int = 64
    query_max_length: int = 512
    passage_max_length: int = 512
    max_in_flight: int = 4
    timeout_s: float | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        pick("wire_encoding", ENCODINGS, self.wire_encoding)
        for name in ("batch_size", "max_in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ValueError(f"timeout_s: {self.timeout_s} is not above zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsPlan:
    """What `compute_score` is asked for. The server's Score knows one length for queries and passages."""

    pairs: list[tuple[str, str]]
    single: bool
    weights: ScoreWeights
    query_length: int
    passage_length: int

    @property
    def queries(self) -> list[str]:
        """The queries, one per pair."""
        return [query for query, _ in self.pairs]

    @property
    def passages(self) -> list[str]:
        """The passages, one per pair."""
        return [passage for _, passage in self.pairs]

    @property
    def scored_by_server(self) -> bool:
        """Whether Score can do it; else both sides are embedded and scored here."""
        return self.query_length == self.passage_length


class Planner:
    """Turns what callers ask for into jobs."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._request_ids = RequestIds()

    def embed_options(
        self,
        *,
        dense: bool | None,
        sparse: bool | None,
        multi_vector: bool | None,
        max_length: int | None,
        input_type: InputTypeName,
        truncation: TruncationName,
        priority: int,
        sparse_top_k: int = 0,
        sparse_min_weight: float = 0.0,
        return_tokens: bool = False,
    ) -> EmbedOptions:
        """What to ask for each text; the client's settings fill what the call left open."""
        settings = self._settings
        default_length = settings.query_max_length if input_type == "query" else settings.passage_max_length
        return EmbedOptions(
            modes=modes_of(dense=dense is None or dense, sparse=bool(sparse), multi_vector=bool(multi_vector)),
            model=settings.model,
            version=settings.model_version,
            input_type=input_type,
            truncation=truncation,
            max_length=default_length if max_length is None else max_length,
            wire_encoding=settings.wire_encoding,
            sparse_top_k=sparse_top_k,
            sparse_min_weight=sparse_min_weight,
            return_tokens=return_tokens,
            priority=priority,
        )

    def side_options(self, input_type: InputTypeName, max_length: int) -> EmbedOptions:
        """What to ask for one side of pairs that are scored here: all modes, cut off on the right."""
        return self.embed_options(
            dense=True,
            sparse=True,
            multi_vector=True,
            max_length=max_length,
            input_type=input_type,
            truncation="right",
            priority=0,
        )

    def pairs(
        self,
        sentence_pairs: TextPair | Sequence[TextPair],
        max_query_length: int | None,
        max_passage_length: int | None,
        weights: Sequence[float] | None,
    ) -> PairsPlan:
        """What `compute_score` is asked for; the client's settings fill what the call left open."""
        pairs, single = as_pairs(sentence_pairs)
        return PairsPlan(
            pairs=pairs,
            single=single,
            weights=as_weights(weights) or ScoreWeights(),
            query_length=self._settings.query_max_length if max_query_length is None else max_query_length,
            passage_length=self._settings.passage_max_length if max_passage_length is None else max_passage_length,
        )

    def pair_jobs(
        self, model: ModelInfo, plan: PairsPlan, batch_size: int | None
    ) -> Iterator[Job[Any, ScoredPassages]]:
        """Scores pairs on the server, consecutive pairs with the same query together."""
        for first_index, query, passages in by_query(plan.pairs):
            yield from self.score_jobs(
                model,
                query,
                passages,
                weights=plan.weights,
                max_length=plan.query_length,
                truncation="right",
                batch_size=batch_size,
                first_index=first_index,
            )

    def embed_splitter(
        self, model: ModelInfo, options: EmbedOptions, batch_size: int | None, text_field: str
    ) -> Splitter:
        """A splitter of texts to embed."""
        limits = embed_limits(
            model, options, batch_size=self._batch_size(batch_size), max_in_flight=self._settings.max_in_flight
        )
        return Splitter(limits, text_field)

    def text_splitter(self, model: ModelInfo, text_field: str) -> Splitter:
        """A splitter of texts to tokenize."""
        return Splitter(self._text_limits(model, None), text_field)

    def _text_limits(self, model: ModelInfo, batch_size: int | None) -> RequestLimits:
        return text_limits(model, batch_size=self._batch_size(batch_size), max_in_flight=self._settings.max_in_flight)

    def _batch_size(self, batch_size: int | None) -> int:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} is below 1")
        return batch_size or self._settings.batch_size

    def embed_job(self, part: Part, options: EmbedOptions) -> Job[Any, EmbeddedTexts]:
        """Embeds a part: over Embed, or with multi-vectors over an EmbedStream of its own, in small messages."""
        request_id = self._request_ids.next()
        request = build_embed_request(part.texts, options, request_id)

        def assemble() -> EmbedAssembly:
            return EmbedAssembly(
                count=len(part.texts),
                first_index=part.first_index,
                modes=options.modes,
                encoding=options.wire_encoding,
            )

        if "multi_vector" not in options.modes:
            return Job(Rpc.EMBED, request, request_id, part.first_index, assemble)
        return Job(
            Rpc.EMBED_STREAM,
            pb.EmbedStreamRequest(id=request_id, request=request),
            request_id,
            part.first_index,
            lambda: StreamAssembly(request_id, assemble()),
        )

    def score_jobs(
        self,
        model: ModelInfo,
        query: str,
        passages: Sequence[str],
        *,
        weights: ScoreWeights | None,
        max_length: int,
        truncation: TruncationName,
        batch_size: int | None = None,
        first_index: int = 0,
        priority: int = 0,
    ) -> Iterator[Job[Any, ScoredPassages]]:
        """Scores passages against a query, in as many requests as the limits need; each asks for all its scores."""
        limits = self._text_limits(model, batch_size)
        query_size = len(query.encode())
        passage_limits = RequestLimits(
            max_texts=min(limits.max_texts, max(1, model.limits.max_texts_per_request - 1)),
            max_bytes=limits.max_bytes - query_size,
            max_tokens=limits.max_tokens,
            max_tokens_per_text=limits.max_tokens_per_text,
        )
        for part in split_all(passages, Splitter(passage_limits, "passages")):
            request_id = self._request_ids.next()
            start = first_index + part.first_index
            request = pb.ScoreRequest(
                model=self._settings.model,
                version=self._settings.model_version,
                query=query,
                passages=part.texts,
                truncation=pick("truncation", TRUNCATIONS, truncation),
                max_tokens=max_length,
                priority=priority,
                request_id=request_id,
            )
            if weights is not None:
                request.weights.dense = weights.dense
                request.weights.sparse = weights.sparse
                request.weights.multi_vector = weights.multi_vector
            yield Job(
                Rpc.SCORE,
                request,
                request_id,
                start,
                lambda start=start: SingleResponse(lambda response: parse_scores(response, start)),  # type: ignore[misc]
            )

    def tokenize_job(
        self, part: Part, *, input_type: InputTypeName, truncation: TruncationName, max_length: int
    ) -> Job[Any, list[TokenizedText]]:
        """Tokenizes a part."""
        request_id = self._request_ids.next()
        request = pb.TokenizeRequest(
            model=self._settings.model,
            version=self._settings.model_version,
            texts=part.texts,
            input_type=pick("input_type", INPUT_TYPES, input_type),
            truncation=pick("truncation", TRUNCATIONS, truncation),
            max_tokens=max_length,
            request_id=request_id,
        )

        def parse(response: pb.TokenizeResponse) -> list[TokenizedText]:
            return parse_tokens(response, part.first_index)

        return Job(Rpc.TOKENIZE, request, request_id, part.first_index, lambda: SingleResponse(parse))

    def model_job(self, model: str | None = None, version: int | None = None) -> Job[Any, ModelInfo]:
        """Describes a model version; by default the one that this client calls."""
        request = pb.GetModelRequest(
            model=self._settings.model if model is None else model,
            version=self._settings.model_version if version is None else version,
        )

        def parse(response: pb.GetModelResponse) -> ModelInfo:
            return parse_model(response.model)

        return Job(Rpc.GET_MODEL, request, "", 0, lambda: SingleResponse(parse))

    def models_job(self, *, ready_only: bool) -> Job[Any, list[ModelInfo]]:
        """Describes all model versions."""

        def parse(response: pb.ListModelsResponse) -> list[ModelInfo]:
            return [parse_model(model) for model in response.models]

        request = pb.ListModelsRequest(ready_only=ready_only)
        return Job(Rpc.LIST_MODELS, request, "", 0, lambda: SingleResponse(parse))


def split_all(texts: Iterable[str], splitter: Splitter) -> Iterator[Part]:
    """All parts of some texts."""
    for text in texts:
        full = splitter.add(text)
        if full is not None:
            yield full
    rest = splitter.rest()
    if rest is not None:
        yield rest
