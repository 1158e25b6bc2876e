"""What the methods of AsyncTrivecClient are put together from."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from trivec_client.embeddings import EmbeddedTexts, TextEmbedding
from trivec_client.jobs import Job
from trivec_client.models import ModelInfo
from trivec_client.nonblocking import AsyncRunner, Deadline, iterate
from trivec_client.outputs import OneVersion
from trivec_client.planning import Planner
from trivec_client.requests import EmbedOptions, InputTypeName
from trivec_client.scores import PassageScore, ScoredPassages
from trivec_client.splits import Splitter


class AsyncOperations:
    """Plans requests, runs them and checks that their answers belong together."""

    def __init__(self, planner: Planner, runner: AsyncRunner) -> None:
        self.planner = planner
        self.runner = runner
        self._model: ModelInfo | None = None

    async def embed(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        options: EmbedOptions,
        batch_size: int | None,
        deadline: Deadline,
        *,
        ordered: bool = True,
    ) -> AsyncGenerator[EmbeddedTexts]:
        """Embeds texts in requests that keep the limits of the server; gives the answer to each."""
        model = await self.served_model(deadline())
        splitter = self.planner.embed_splitter(model, options, batch_size, "sentences")
        jobs = self._embed_jobs(texts, splitter, options)
        version = OneVersion()
        async with aclosing(self.runner.run_all(jobs, deadline, ordered=ordered)) as parts:
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
                yield self.planner.embed_job(full, options)
        rest = splitter.rest()
        if rest is not None:
            yield self.planner.embed_job(rest, options)

    async def embed_side(
        self,
        texts: Sequence[str],
        input_type: InputTypeName,
        max_length: int,
        batch_size: int | None,
        deadline_s: float | None,
    ) -> AsyncGenerator[TextEmbedding]:
        """Embeds the queries or the passages of pairs, one after the other."""
        wanted = self.planner.side_options(input_type, max_length)
        async with aclosing(self.embed(texts, wanted, batch_size, lambda: deadline_s)) as parts:
            async for part in parts:
                for embedding in part:
                    yield embedding

    async def score(self, jobs: Iterator[Job[Any, ScoredPassages]], deadline_s: float | None) -> list[PassageScore]:
        """Runs the requests; the scores of all of them, in order."""
        version = OneVersion()
        scores: list[PassageScore] = []
        async with aclosing(self.runner.run_all(iterate(jobs), lambda: deadline_s)) as parts:
            async for scored in parts:
                version.check(scored.model, scored.version)
                scores += scored.scores
        return scores

    async def served_model(self, deadline_s: float | None) -> ModelInfo:
        """The model that this client calls, asked for once: its limits shape the requests."""
        if self._model is None:
            self._model = await self.runner.run(self.planner.model_job(), deadline_s)
        return self._model
