"""The asyncio client: the surface of the blocking one, method for method."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from trivec_client.channel import DEFAULT_TARGET, ChannelOption, Metadata, Tls, channel_credentials, channel_options
from trivec_client.clock import AsyncClock, AsyncSystemClock
from trivec_client.embeddings import EmbeddedTexts, TextEmbedding
from trivec_client.health import ServingStatus
from trivec_client.jobs import Job
from trivec_client.models import ModelInfo, ScoreWeights
from trivec_client.nonblocking import AsyncRunner, Deadline, iterate
from trivec_client.outputs import EncodeCollector, EncodeOutput, OneVersion, as_texts
from trivec_client.planning import ClientSettings, Planner, split_all
from trivec_client.progress import known_length, progress_bar
from trivec_client.requests import EmbedOptions, InputTypeName, TruncationName
from trivec_client.retry import RetryPolicy
from trivec_client.scores import (
    PassageScore,
    ScoredPassages,
    ScoreOutput,
    TextPair,
    as_weights,
    best,
    colbert_score,
    lexical_matching_score,
    pair_score,
    render_scores,
)
from trivec_client.splits import Splitter
from trivec_client.tokens import TokenizedText
from trivec_client.vectors import WireEncoding


class AsyncTrivecClient:
    """
    Embeds texts on a Trivec server, for asyncio. To be used on one event loop and closed after use, best by
    `async with`.

    Every method takes, returns and raises what the method of TrivecClient of the same name does, and is described
    there.
    """

    compute_lexical_matching_score = staticmethod(lexical_matching_score)
    colbert_score = staticmethod(colbert_score)

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        model: str = "",
        model_version: int = 0,
        wire_encoding: WireEncoding = "float32",
        batch_size: int = 64,
        query_max_length: int = 512,
        passage_max_length: int = 512,
        max_in_flight: int = 4,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        metadata: Metadata = (),
        tls: Tls | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[ChannelOption] = (),
        clock: AsyncClock | None = None,
    ) -> None:
        """Connects when first used; may be made before the event loop runs. Arguments as for TrivecClient."""
        self._settings = ClientSettings(
            target=target,
            model=model,
            model_version=model_version,
            wire_encoding=wire_encoding,
            batch_size=batch_size,
            query_max_length=query_max_length,
            passage_max_length=passage_max_length,
            max_in_flight=max_in_flight,
            timeout_s=timeout_s,
            retry=retry or RetryPolicy(),
            metadata=metadata,
        )
        self._planner = Planner(self._settings)
        self._model: ModelInfo | None = None
        self._options = channel_options(tls, options)
        self._credentials = channel_credentials(tls, credentials)
        self._clock = clock or AsyncSystemClock()
        self._connected: AsyncRunner | None = None

    @property
    def _runner(self) -> AsyncRunner:
        """Made on first use, because a grpc.aio channel belongs to the loop that runs when it is made."""
        if self._connected is None:
            target = self._settings.target
            channel = (
                grpc.aio.secure_channel(target, self._credentials, self._options)
                if self._credentials
                else grpc.aio.insecure_channel(target, self._options)
            )
            self._connected = AsyncRunner(channel, self._settings, self._clock)
        return self._connected

    async def close(self) -> None:
        """Closes the connection; calls under way fail with CANCELLED."""
        if self._connected is not None:
            await self._connected.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        truncation: TruncationName = "right",
        input_type: InputTypeName = "none",
        timeout_s: float | None = None,
        priority: int = 0,
    ) -> EncodeOutput:
        """Embeds texts and returns all of it, as `TrivecClient.encode` does."""
        texts, single = as_texts(sentences, "sentences")
        wanted = self._planner.embed_options(
            dense=return_dense,
            sparse=return_sparse,
            multi_vector=return_colbert_vecs,
            max_length=max_length,
            input_type=input_type,
            truncation=truncation,
            priority=priority,
        )
        deadline_s = self._runner.deadline_s(timeout_s)
        collector = EncodeCollector(len(texts), wanted.modes)
        async with aclosing(self._embed(texts, wanted, batch_size, lambda: deadline_s)) as parts:
            async for part in parts:
                collector.add(part)
        dimension = 0 if len(texts) else (await self._served_model(deadline_s)).dense_dimension
        return collector.output(single=single, dense_dimension=dimension)

    async def encode_queries(
        self,
        queries: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        timeout_s: float | None = None,
    ) -> EncodeOutput:
        """`encode` with the model's query prefix, and `query_max_length` tokens by default."""
        return await self.encode(
            queries,
            batch_size,
            max_length,
            return_dense,
            return_sparse,
            return_colbert_vecs,
            input_type="query",
            timeout_s=timeout_s,
        )

    async def encode_corpus(
        self,
        corpus: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        timeout_s: float | None = None,
    ) -> EncodeOutput:
        """`encode` with the model's passage prefix, and `passage_max_length` tokens by default."""
        return await self.encode(
            corpus,
            batch_size,
            max_length,
            return_dense,
            return_sparse,
            return_colbert_vecs,
            input_type="passage",
            timeout_s=timeout_s,
        )

    async def encode_stream(
        self,
        sentences: Iterable[str] | AsyncIterable[str],
        *,
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        truncation: TruncationName = "right",
        input_type: InputTypeName = "none",
        sparse_top_k: int = 0,
        sparse_min_weight: float = 0.0,
        return_tokens: bool = False,
        ordered: bool = True,
        progress: bool = False,
        timeout_s: float | None = None,
        priority: int = 0,
    ) -> AsyncGenerator[TextEmbedding]:
        """
        Embeds any number of texts in bounded memory, as `TrivecClient.encode_stream` does; `sentences` may be an
        asynchronous iterable. A loop that may be left early belongs in `contextlib.aclosing`.
        """
        wanted = self._planner.embed_options(
            dense=return_dense,
            sparse=return_sparse,
            multi_vector=return_colbert_vecs,
            max_length=max_length,
            input_type=input_type,
            truncation=truncation,
            priority=priority,
            sparse_top_k=sparse_top_k,
            sparse_min_weight=sparse_min_weight,
            return_tokens=return_tokens,
        )

        def deadline() -> float | None:
            return self._runner.deadline_s(timeout_s)

        with progress_bar(shown=progress, total=known_length(sentences)) as advance:
            async with aclosing(self._embed(sentences, wanted, batch_size, deadline, ordered=ordered)) as parts:
                async for part in parts:
                    for embedding in part:
                        yield embedding
                    advance(len(part))

    async def score(
        self,
        query: str,
        passages: Sequence[str],
        *,
        weights: ScoreWeights | Sequence[float] | None = None,
        top_k: int = 0,
        max_length: int = 0,
        truncation: TruncationName = "error",
        timeout_s: float | None = None,
        priority: int = 0,
    ) -> list[PassageScore]:
        """Scores passages against a query on the server, as `TrivecClient.score` does."""
        deadline_s = self._runner.deadline_s(timeout_s)
        jobs = self._planner.score_jobs(
            await self._served_model(deadline_s),
            query,
            passages,
            weights=as_weights(weights),
            max_length=max_length,
            truncation=truncation,
            priority=priority,
        )
        return best(await self._score(jobs, deadline_s), top_k)

    async def compute_score(
        self,
        sentence_pairs: TextPair | Sequence[TextPair],
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> ScoreOutput:
        """Scores pairs of (query, passage), as `TrivecClient.compute_score` does."""
        plan = self._planner.pairs(sentence_pairs, max_query_length, max_passage_length, weights_for_different_modes)
        deadline_s = self._runner.deadline_s(timeout_s)
        if plan.scored_by_server:
            jobs = self._planner.pair_jobs(await self._served_model(deadline_s), plan, batch_size)
            return render_scores(await self._score(jobs, deadline_s), single=plan.single)
        scores: list[PassageScore] = []
        async with (
            aclosing(self._embed_side(plan.queries, "query", plan.query_length, batch_size, deadline_s)) as queries,
            aclosing(
                self._embed_side(plan.passages, "passage", plan.passage_length, batch_size, deadline_s)
            ) as passages,
        ):
            async for query in queries:
                scores.append(pair_score(len(scores), query, await anext(passages), plan.weights))
        return render_scores(scores, single=plan.single)

    async def tokenize(
        self,
        sentences: Sequence[str],
        *,
        max_length: int = 0,
        truncation: TruncationName = "error",
        input_type: InputTypeName = "none",
        timeout_s: float | None = None,
    ) -> list[TokenizedText]:
        """Tokenizes texts exactly as they would be embedded, as `TrivecClient.tokenize` does."""
        deadline_s = self._runner.deadline_s(timeout_s)
        splitter = self._planner.text_splitter(await self._served_model(deadline_s), "sentences")
        jobs = (
            self._planner.tokenize_job(part, input_type=input_type, truncation=truncation, max_length=max_length)
            for part in split_all(sentences, splitter)
        )
        async with aclosing(self._runner.run_all(iterate(jobs), lambda: deadline_s)) as parts:
            return [text async for part in parts for text in part]

    async def get_model(
        self, model: str | None = None, version: int | None = None, *, timeout_s: float | None = None
    ) -> ModelInfo:
        """Describes a model version; by default the one that this client calls."""
        return await self._runner.run(self._planner.model_job(model, version), self._runner.deadline_s(timeout_s))

    async def list_models(self, *, ready_only: bool = False, timeout_s: float | None = None) -> list[ModelInfo]:
        """Describes all model versions, also those that failed to load, ordered by name and version."""
        return await self._runner.run(
            self._planner.models_job(ready_only=ready_only), self._runner.deadline_s(timeout_s)
        )

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> ServingStatus:
        """Asks the server's health service, once, as `TrivecClient.health` does."""
        return await self._runner.health(service, timeout_s)

    async def _embed(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        options: EmbedOptions,
        batch_size: int | None,
        deadline: Deadline,
        *,
        ordered: bool = True,
    ) -> AsyncGenerator[EmbeddedTexts]:
        model = await self._served_model(deadline())
        splitter = self._planner.embed_splitter(model, options, batch_size, "sentences")
        jobs = self._embed_jobs(texts, splitter, options)
        version = OneVersion()
        async with aclosing(self._runner.run_all(jobs, deadline, ordered=ordered)) as parts:
            async for part in parts:
                version.check(part.model, part.version)
                if part.version != model.version:
                    self._model = None  # another version serves now: its limits are read before the next call
                yield part

    async def _embed_jobs(
        self, texts: Iterable[str] | AsyncIterable[str], splitter: Splitter, options: EmbedOptions
    ) -> AsyncIterator[Job[Any, EmbeddedTexts]]:
        async for text in iterate(texts):
            full = splitter.add(text)
            if full is not None:
                yield self._planner.embed_job(full, options)
        rest = splitter.rest()
        if rest is not None:
            yield self._planner.embed_job(rest, options)

    async def _embed_side(
        self,
        texts: Sequence[str],
        input_type: InputTypeName,
        max_length: int,
        batch_size: int | None,
        deadline_s: float | None,
    ) -> AsyncGenerator[TextEmbedding]:
        wanted = self._planner.side_options(input_type, max_length)
        async with aclosing(self._embed(texts, wanted, batch_size, lambda: deadline_s)) as parts:
            async for part in parts:
                for embedding in part:
                    yield embedding

    async def _score(self, jobs: Iterator[Job[Any, ScoredPassages]], deadline_s: float | None) -> list[PassageScore]:
        version = OneVersion()
        scores: list[PassageScore] = []
        async with aclosing(self._runner.run_all(iterate(jobs), lambda: deadline_s)) as parts:
            async for scored in parts:
                version.check(scored.model, scored.version)
                scores += scored.scores
        return scores

    async def _served_model(self, deadline_s: float | None) -> ModelInfo:
        """The model that this client calls, asked for once: its limits shape the requests."""
        if self._model is None:
            self._model = await self._runner.run(self._planner.model_job(), deadline_s)
        return self._model
