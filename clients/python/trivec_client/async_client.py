"""The asyncio client: the surface of the blocking one, method for method."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

import grpc

from trivec_client.async_flag_embedding import AsyncFlagEmbeddingMethods
from trivec_client.async_operations import AsyncOperations
from trivec_client.balancing import Balancing
from trivec_client.channel import ChannelOption, Metadata, Tls
from trivec_client.clock import AsyncClock, AsyncSystemClock
from trivec_client.connection import Connection, health_name
from trivec_client.embeddings import TextEmbedding
from trivec_client.health import ServingStatus
from trivec_client.models import ModelInfo, ScoreWeights
from trivec_client.nonblocking import AsyncRunner, iterate
from trivec_client.planning import ClientSettings, Planner, split_all
from trivec_client.progress import known_length, progress_bar
from trivec_client.requests import InputTypeName, TruncationName
from trivec_client.retry import RetryPolicy
from trivec_client.scores import PassageScore, as_weights, best
from trivec_client.targets import DEFAULT_TARGET
from trivec_client.tokens import TokenizedText
from trivec_client.vectors import WireEncoding


class AsyncTrivecClient(AsyncFlagEmbeddingMethods):
    """
    Embeds texts on a Trivec server, or on several, for asyncio. To be used on one event loop and closed after use,
    best by `async with`.

    Every method takes, returns and raises what the method of TrivecClient of the same name does, and is described
    there.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        balancing: Balancing | None = None,
        health_service: str | None = None,
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
        token: str | None = None,
        allow_insecure_token: bool = False,
        tls: Tls | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[ChannelOption] = (),
        clock: AsyncClock | None = None,
    ) -> None:
        """Connects when first used; may be made before the event loop runs. Arguments as for TrivecClient."""
        settings = ClientSettings(
            model=model,
            model_version=model_version,
            wire_encoding=wire_encoding,
            batch_size=batch_size,
            query_max_length=query_max_length,
            passage_max_length=passage_max_length,
            max_in_flight=max_in_flight,
            timeout_s=timeout_s,
            retry=retry or RetryPolicy(),
        )
        connection = Connection.prepare(
            target=target,
            balancing=balancing,
            health_service=health_name(model, model_version) if health_service is None else health_service,
            retry=settings.retry,
            metadata=metadata,
            token=token,
            allow_insecure_token=allow_insecure_token,
            tls=tls,
            credentials=credentials,
            options=options,
        )
        runner = AsyncRunner(connection, settings, clock or AsyncSystemClock())
        super().__init__(AsyncOperations(Planner(settings), runner))

    async def close(self) -> None:
        """Closes the connection; calls under way fail with CANCELLED."""
        await self._operations.runner.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

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
        wanted = self._operations.planner.embed_options(
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
            return self._operations.runner.deadline_s(timeout_s)

        with progress_bar(shown=progress, total=known_length(sentences)) as advance:
            async with aclosing(
                self._operations.embed(sentences, wanted, batch_size, deadline, ordered=ordered)
            ) as parts:
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
        deadline_s = self._operations.runner.deadline_s(timeout_s)
        jobs = self._operations.planner.score_jobs(
            await self._operations.served_model(deadline_s),
            query,
            passages,
            weights=as_weights(weights),
            max_length=max_length,
            truncation=truncation,
            priority=priority,
        )
        return best(await self._operations.score(jobs, deadline_s), top_k)

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
        deadline_s = self._operations.runner.deadline_s(timeout_s)
        splitter = self._operations.planner.text_splitter(await self._operations.served_model(deadline_s), "sentences")
        jobs = (
            self._operations.planner.tokenize_job(
                part, input_type=input_type, truncation=truncation, max_length=max_length
            )
            for part in split_all(sentences, splitter)
        )
        async with aclosing(self._operations.runner.run_all(iterate(jobs), lambda: deadline_s)) as parts:
            return [text async for part in parts for text in part]

    async def get_model(
        self, model: str | None = None, version: int | None = None, *, timeout_s: float | None = None
    ) -> ModelInfo:
        """Describes a model version; by default the one that this client calls."""
        return await self._operations.runner.run(
            self._operations.planner.model_job(model, version), self._operations.runner.deadline_s(timeout_s)
        )

    async def list_models(self, *, ready_only: bool = False, timeout_s: float | None = None) -> list[ModelInfo]:
        """Describes all model versions, also those that failed to load, ordered by name and version."""
        return await self._operations.runner.run(
            self._operations.planner.models_job(ready_only=ready_only), self._operations.runner.deadline_s(timeout_s)
        )

    async def health(self, service: str = "", *, timeout_s: float | None = None) -> ServingStatus:
        """Asks the server's health service, once, as `TrivecClient.health` does."""
        return await self._operations.runner.health(service, timeout_s)
