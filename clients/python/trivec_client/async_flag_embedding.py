"""The methods of FlagEmbedding 1.4.2's `BGEM3FlagModel`, for asyncio."""

from collections.abc import Sequence
from contextlib import aclosing

from trivec_client.async_operations import AsyncOperations
from trivec_client.outputs import EncodeCollector, EncodeOutput, as_texts
from trivec_client.requests import InputTypeName, TruncationName
from trivec_client.scores import (
    PassageScore,
    ScoreOutput,
    TextPair,
    colbert_score,
    lexical_matching_score,
    pair_score,
    render_scores,
)


class AsyncFlagEmbeddingMethods:
    """What AsyncTrivecClient has in common with `BGEM3FlagModel`."""

    compute_lexical_matching_score = staticmethod(lexical_matching_score)
    colbert_score = staticmethod(colbert_score)

    def __init__(self, operations: AsyncOperations) -> None:
        self._operations = operations

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
        wanted = self._operations.planner.embed_options(
            dense=return_dense,
            sparse=return_sparse,
            multi_vector=return_colbert_vecs,
            max_length=max_length,
            input_type=input_type,
            truncation=truncation,
            priority=priority,
        )
        deadline_s = self._operations.runner.deadline_s(timeout_s)
        collector = EncodeCollector(len(texts), wanted.modes)
        async with aclosing(self._operations.embed(texts, wanted, batch_size, lambda: deadline_s)) as parts:
            async for part in parts:
                collector.add(part)
        dimension = 0 if len(texts) else (await self._operations.served_model(deadline_s)).dense_dimension
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
        plan = self._operations.planner.pairs(
            sentence_pairs, max_query_length, max_passage_length, weights_for_different_modes
        )
        deadline_s = self._operations.runner.deadline_s(timeout_s)
        if plan.scored_by_server:
            jobs = self._operations.planner.pair_jobs(await self._operations.served_model(deadline_s), plan, batch_size)
            return render_scores(await self._operations.score(jobs, deadline_s), single=plan.single)
        scores: list[PassageScore] = []
        async with (
            aclosing(
                self._operations.embed_side(plan.queries, "query", plan.query_length, batch_size, deadline_s)
            ) as queries,
            aclosing(
                self._operations.embed_side(plan.passages, "passage", plan.passage_length, batch_size, deadline_s)
            ) as passages,
        ):
            async for query in queries:
                scores.append(pair_score(len(scores), query, await anext(passages), plan.weights))
        return render_scores(scores, single=plan.single)
