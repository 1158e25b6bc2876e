"""What the methods of TrivecClient are put together from."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trivec_client.blocking import BlockingRunner, Deadline
from trivec_client.embeddings import EmbeddedTexts, TextEmbedding
from trivec_client.jobs import Job
from trivec_client.models import ModelInfo
from trivec_client.outputs import OneVersion
from trivec_client.planning import Planner, split_all
from trivec_client.requests import EmbedOptions, InputTypeName
from trivec_client.scores import PassageScore, ScoredPassages


class Operations:
    """Plans requests, runs them and checks that their answers belong together."""

    def __init__(self, planner: Planner, runner: BlockingRunner) -> None:
        self.planner = planner
        self.runner = runner
        self._model: ModelInfo | None = None

    def embed(
        self,
        texts: Iterable[str],
        options: EmbedOptions,
        batch_size: int | None,
        deadline: Deadline,
        *,
        ordered: bool = True,
    ) -> Iterator[EmbeddedTexts]:
        """Embeds texts in requests that keep the limits of the server; gives the answer to each."""
        model = self.served_model(deadline())
        splitter = self.planner.embed_splitter(model, options, batch_size, "sentences")
        jobs = (self.planner.embed_job(part, options) for part in split_all(texts, splitter))
        version = OneVersion()
        for part in self.runner.run_all(jobs, deadline, ordered=ordered):
            version.check(part.model, part.version)
            if part.version != model.version:
                self._model = None  # another version serves now: its limits are read before the next call
            yield part

    def embed_side(
        self,
        texts: Sequence[str],
        input_type: InputTypeName,
        max_length: int,
        batch_size: int | None,
        deadline_s: float | None,
    ) -> Iterator[TextEmbedding]:
        """Embeds the queries or the passages of pairs, one after the other."""
        wanted = self.planner.side_options(input_type, max_length)
        for part in self.embed(texts, wanted, batch_size, lambda: deadline_s):
            yield from part

    def score(self, jobs: Iterator[Job[Any, ScoredPassages]], deadline_s: float | None) -> list[PassageScore]:
        """Runs the requests; the scores of all of them, in order."""
        version = OneVersion()
        scores: list[PassageScore] = []
        for scored in self.runner.run_all(jobs, lambda: deadline_s):
            version.check(scored.model, scored.version)
            scores += scored.scores
        return scores

    def served_model(self, deadline_s: float | None) -> ModelInfo:
        """The model that this client calls, asked for once: its limits shape the requests."""
        if self._model is None:
            self._model = self.runner.run(self.planner.model_job(), deadline_s)
        return self._model
