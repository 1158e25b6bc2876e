"""The blocking client."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from trivec_client.blocking import BlockingRunner, Deadline
from trivec_client.channel import (
    DEFAULT_TARGET,
    ChannelOption,
    Metadata,
    Tls,
    channel_credentials,
    channel_options,
)
from trivec_client.clock import Clock, SystemClock
from trivec_client.embeddings import EmbeddedTexts, TextEmbedding
from trivec_client.health import ServingStatus
from trivec_client.jobs import Job
from trivec_client.models import ModelInfo, ScoreWeights
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
from trivec_client.tokens import TokenizedText
from trivec_client.vectors import WireEncoding


class TrivecClient:
    """
    Embeds texts on a Trivec server. Safe to share between threads; to be closed after use, best by `with`.

    `encode`, `encode_queries`, `encode_corpus` and `compute_score` take and return what FlagEmbedding 1.4.2's
    `BGEM3FlagModel` does. All methods raise TrivecClientError when a call fails, and ValueError or TypeError for
    arguments that cannot be right.
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
        clock: Clock | None = None,
    ) -> None:
        """
        Connects when first used.

        Args:
            target: `host:port`, or any name that gRPC resolves, such as `dns:///trivec:8001`.
            model: the model's name; empty: the server's only or default one.
            model_version: its version; 0: the newest that is ready.
            wire_encoding: how vectors travel. Results are float32 always; with `float16`, `bfloat16` and `int8` they
                are rounded, with `binary` they are 1 and -1.
            batch_size: texts per request, at most; requests also keep the server's limits.
            query_max_length: tokens of a query, unless a call says otherwise (FlagEmbedding's default).
            passage_max_length: tokens of other texts, unless a call says otherwise (FlagEmbedding's default).
            max_in_flight: requests of one call under way at once.
            timeout_s: how long a call may take, its retries included; None: no limit. A call may give its own.
            retry: when failed requests are sent again; None: RetryPolicy().
            metadata: sent with every request, such as `[("authorization", "Bearer ...")]`.
            tls: TLS by files; without it and without `credentials` the connection is plain text.
            credentials: channel credentials made with grpc, in place of `tls`.
            options: gRPC channel options, which override this client's own.
            clock: where waits, instants and chance come from.

        Raises:
            OSError: a file that `tls` names is not readable.
            ValueError: a setting cannot be right, such as a target without a port.
        """
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
        made = channel_options(tls, options)
        secured = channel_credentials(tls, credentials)
        channel = grpc.secure_channel(target, secured, made) if secured else grpc.insecure_channel(target, made)
        self._runner = BlockingRunner(channel, self._settings, clock or SystemClock())

    def close(self) -> None:
        """Closes the connection; calls under way fail with CANCELLED."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def encode(
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
        """
        Embeds texts and returns all of it; for more than memory holds there is `encode_stream`.

        Args:
            sentences: n texts, or one.
            batch_size: texts per request, at most; the results do not depend on it.
            max_length: tokens per text, special tokens included; more are cut off as `truncation` says. None: the
                client's `passage_max_length` (`query_max_length` with input type `query`). 0: the model's limit.
            return_dense: whether to return dense vectors; None: yes.
            return_sparse: whether to return lexical weights; None: no.
            return_colbert_vecs: whether to return multi-vectors; None: no.
            truncation: `right`, `left`, or `error` to refuse texts that are too long.
            input_type: `query` and `passage` put the model's prefix before each text.
            timeout_s: how long all of it may take, retries included.
            priority: the queue's level, 1 first; 0: the model's default.

        Returns:
            For a list: `dense_vecs` float32 [n, D]; `lexical_weights` n `defaultdict(int)` from `str(token_id)` to
            np.float32; `colbert_vecs` n arrays float32 [tokens - 1, D]. For one string: the one entry of each,
            without the list. None for what was not asked for.
        """
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
        for part in self._embed(texts, wanted, batch_size, lambda: deadline_s):
            collector.add(part)
        dimension = 0 if len(texts) else self._served_model(deadline_s).dense_dimension
        return collector.output(single=single, dense_dimension=dimension)

    def encode_queries(
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
        return self.encode(
            queries,
            batch_size,
            max_length,
            return_dense,
            return_sparse,
            return_colbert_vecs,
            input_type="query",
            timeout_s=timeout_s,
        )

    def encode_corpus(
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
        return self.encode(
            corpus,
            batch_size,
            max_length,
            return_dense,
            return_sparse,
            return_colbert_vecs,
            input_type="passage",
            timeout_s=timeout_s,
        )

    def encode_stream(
        self,
        sentences: Iterable[str],
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
    ) -> Iterator[TextEmbedding]:
        """
        Embeds any number of texts in bounded memory.

        `sentences` is read only as results are consumed: never more than `max_in_flight * batch_size` texts ahead.
        Leaving the loop early ends what is under way.

        Args:
            sentences: the texts; they may come from a generator.
            batch_size: texts per request, at most.
            max_length: tokens per text, as in `encode`.
            return_dense: whether to return dense vectors; None: yes.
            return_sparse: whether to return sparse vectors; None: no.
            return_colbert_vecs: whether to return multi-vectors; None: no.
            truncation: `right`, `left` or `error`, as in `encode`.
            input_type: `query` and `passage` put the model's prefix before each text.
            sparse_top_k: keep only this many sparse entries per text, the largest; 0: all.
            sparse_min_weight: keep only sparse entries of at least this weight.
            return_tokens: whether sparse vectors carry the vocabulary's strings.
            ordered: whether results come in the order of the texts; else as requests finish, told apart by `index`.
            progress: whether to show a progress bar; needs the extra `progress`.
            timeout_s: how long each request may take, its retries included.
            priority: the queue's level, 1 first; 0: the model's default.

        Yields:
            One TextEmbedding per text.

        Raises:
            MissingExtraError: `progress` without tqdm.
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
            for part in self._embed(sentences, wanted, batch_size, deadline, ordered=ordered):
                yield from part
                advance(len(part))

    def score(
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
        """
        Scores passages against a query on the server, in all modes.

        Args:
            query: the query; the model's query prefix is put before it.
            passages: the passages; the model's passage prefix is put before each.
            weights: factors of the weighted sums, as a value or as (dense, sparse, multi-vector). None: the model's.
            top_k: only the best by `hybrid`, best first; 0: all, in the order given.
            max_length: tokens of the query and of each passage, at most; 0: the model's limit.
            truncation: what to do with longer ones: `error`, `right` or `left`.
            timeout_s: how long all of it may take, retries included.
            priority: the queue's level, 1 first; 0: the model's default.

        Returns:
            One PassageScore per passage, or `top_k` of them.
        """
        deadline_s = self._runner.deadline_s(timeout_s)
        jobs = self._planner.score_jobs(
            self._served_model(deadline_s),
            query,
            passages,
            weights=as_weights(weights),
            max_length=max_length,
            truncation=truncation,
            priority=priority,
        )
        return best(self._score(jobs, deadline_s), top_k)

    def compute_score(
        self,
        sentence_pairs: TextPair | Sequence[TextPair],
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> ScoreOutput:
        """
        Scores pairs of (query, passage) as FlagEmbedding's `compute_score` does, texts cut off on the right.

        The server scores. Only where queries and passages are to have different lengths, which its Score does not
        know, are both embedded and scored here.

        Args:
            sentence_pairs: one pair, or a list of pairs; consecutive pairs with the same query are scored together.
            batch_size: passages per request, at most.
            max_query_length: tokens of a query; None: the client's `query_max_length`.
            max_passage_length: tokens of a passage; None: the client's `passage_max_length`.
            weights_for_different_modes: factors in the order dense, sparse, multi-vector; None: 1 each.
            timeout_s: how long all of it may take, retries included.

        Returns:
            `colbert`, `sparse`, `dense`, `sparse+dense`, `colbert+sparse+dense`: a float each for one pair, a list
            each for a list.
        """
        plan = self._planner.pairs(sentence_pairs, max_query_length, max_passage_length, weights_for_different_modes)
        deadline_s = self._runner.deadline_s(timeout_s)
        if plan.scored_by_server:
            jobs = self._planner.pair_jobs(self._served_model(deadline_s), plan, batch_size)
            return render_scores(self._score(jobs, deadline_s), single=plan.single)
        sides = zip(
            self._embed_side(plan.queries, "query", plan.query_length, batch_size, deadline_s),
            self._embed_side(plan.passages, "passage", plan.passage_length, batch_size, deadline_s),
            strict=True,
        )
        scores = [pair_score(index, *side, plan.weights) for index, side in enumerate(sides)]
        return render_scores(scores, single=plan.single)

    def tokenize(
        self,
        sentences: Sequence[str],
        *,
        max_length: int = 0,
        truncation: TruncationName = "error",
        input_type: InputTypeName = "none",
        timeout_s: float | None = None,
    ) -> list[TokenizedText]:
        """
        Tokenizes texts exactly as they would be embedded; arguments as in `encode`, `max_length` 0 being the model's
        limit.
        """
        deadline_s = self._runner.deadline_s(timeout_s)
        splitter = self._planner.text_splitter(self._served_model(deadline_s), "sentences")
        jobs = (
            self._planner.tokenize_job(part, input_type=input_type, truncation=truncation, max_length=max_length)
            for part in split_all(sentences, splitter)
        )
        return [text for part in self._runner.run_all(jobs, lambda: deadline_s) for text in part]

    def get_model(
        self, model: str | None = None, version: int | None = None, *, timeout_s: float | None = None
    ) -> ModelInfo:
        """Describes a model version; by default the one that this client calls."""
        return self._runner.run(self._planner.model_job(model, version), self._runner.deadline_s(timeout_s))

    def list_models(self, *, ready_only: bool = False, timeout_s: float | None = None) -> list[ModelInfo]:
        """Describes all model versions, also those that failed to load, ordered by name and version."""
        return self._runner.run(self._planner.models_job(ready_only=ready_only), self._runner.deadline_s(timeout_s))

    def health(self, service: str = "", *, timeout_s: float | None = None) -> ServingStatus:
        """
        Asks the server's health service, once: empty for the server, or `trivec.v1.EmbeddingService`, or a model's
        name.

        Raises:
            NotFoundError: the server does not know the service.
            UnavailableError: the server cannot be reached.
        """
        return self._runner.health(service, timeout_s)

    def _embed(
        self,
        texts: Iterable[str],
        options: EmbedOptions,
        batch_size: int | None,
        deadline: Deadline,
        *,
        ordered: bool = True,
    ) -> Iterator[EmbeddedTexts]:
        model = self._served_model(deadline())
        splitter = self._planner.embed_splitter(model, options, batch_size, "sentences")
        jobs = (self._planner.embed_job(part, options) for part in split_all(texts, splitter))
        version = OneVersion()
        for part in self._runner.run_all(jobs, deadline, ordered=ordered):
            version.check(part.model, part.version)
            if part.version != model.version:
                self._model = None  # another version serves now: its limits are read before the next call
            yield part

    def _embed_side(
        self,
        texts: Sequence[str],
        input_type: InputTypeName,
        max_length: int,
        batch_size: int | None,
        deadline_s: float | None,
    ) -> Iterator[TextEmbedding]:
        wanted = self._planner.side_options(input_type, max_length)
        for part in self._embed(texts, wanted, batch_size, lambda: deadline_s):
            yield from part

    def _score(self, jobs: Iterator[Job[Any, ScoredPassages]], deadline_s: float | None) -> list[PassageScore]:
        version = OneVersion()
        scores: list[PassageScore] = []
        for scored in self._runner.run_all(jobs, lambda: deadline_s):
            version.check(scored.model, scored.version)
            scores += scored.scores
        return scores

    def _served_model(self, deadline_s: float | None) -> ModelInfo:
        """The model that this client calls, asked for once: its limits shape the requests."""
        if self._model is None:
            self._model = self._runner.run(self._planner.model_job(), deadline_s)
        return self._model
