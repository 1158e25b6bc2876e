"""The blocking client."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

import grpc

from trivec_client.balancing import Balancing
from trivec_client.blocking import BlockingRunner
from trivec_client.channel import ChannelOption, Metadata, Tls
from trivec_client.clock import Clock, SystemClock
from trivec_client.connection import Connection, health_name
from trivec_client.embeddings import TextEmbedding
from trivec_client.flag_embedding import FlagEmbeddingMethods
from trivec_client.health import ServingStatus
from trivec_client.models import ModelInfo, ScoreWeights
from trivec_client.operations import Operations
from trivec_client.planning import ClientSettings, Planner, split_all
from trivec_client.progress import known_length, progress_bar
from trivec_client.requests import InputTypeName, TruncationName
from trivec_client.retry import RetryPolicy
from trivec_client.scores import PassageScore, as_weights, best
from trivec_client.targets import DEFAULT_TARGET
from trivec_client.tokens import TokenizedText
from trivec_client.vectors import WireEncoding


class TrivecClient(FlagEmbeddingMethods):
    """
    Embeds texts on a Trivec server, or on several. Safe to share between threads; to be closed after use, best by
    `with`.

    `encode`, `encode_queries`, `encode_corpus` and `compute_score` take and return what FlagEmbedding 1.4.2's
    `BGEM3FlagModel` does. All methods raise TrivecClientError when a call fails, and ValueError or TypeError for
    arguments that cannot be right.
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
        clock: Clock | None = None,
    ) -> None:
        """
        Connects when first used.

        Args:
            target: `host:port`, a list of them, or a name that gRPC resolves, such as `dns:///trivec:8001`. Behind a
                list or a DNS name stands a cluster: each server can answer every call.
            balancing: how a cluster's servers share the calls: `round_robin`, each in turn, or `least_loaded`, by the
                load that they report. None: round robin for a list or a DNS name, else one server.
            health_service: what a cluster's server must be SERVING, by its health service, to get calls; None: the
                model that is named, else `trivec.v1.EmbeddingService`.
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
            metadata: sent with every request.
            token: sent with every request as `authorization: Bearer ...`.
            allow_insecure_token: whether to send the token in plain text over a network.
            tls: TLS by files; without it and without `credentials` the connection is plain text.
            credentials: channel credentials made with grpc, in place of `tls`.
            options: gRPC channel options, which override this client's own.
            clock: where waits, instants and chance come from.

        Raises:
            OSError: a file that `tls` names is not readable, or a host in a list of targets is not known.
            ValueError: a setting cannot be right, such as a target without a port.
        """
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
        runner = BlockingRunner(connection, settings, clock or SystemClock())
        super().__init__(Operations(Planner(settings), runner))

    def close(self) -> None:
        """Closes the connection; calls under way fail with CANCELLED."""
        self._operations.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

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
            for part in self._operations.embed(sentences, wanted, batch_size, deadline, ordered=ordered):
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
        deadline_s = self._operations.runner.deadline_s(timeout_s)
        jobs = self._operations.planner.score_jobs(
            self._operations.served_model(deadline_s),
            query,
            passages,
            weights=as_weights(weights),
            max_length=max_length,
            truncation=truncation,
            priority=priority,
        )
        return best(self._operations.score(jobs, deadline_s), top_k)

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
        deadline_s = self._operations.runner.deadline_s(timeout_s)
        splitter = self._operations.planner.text_splitter(self._operations.served_model(deadline_s), "sentences")
        jobs = (
            self._operations.planner.tokenize_job(
                part, input_type=input_type, truncation=truncation, max_length=max_length
            )
            for part in split_all(sentences, splitter)
        )
        return [text for part in self._operations.runner.run_all(jobs, lambda: deadline_s) for text in part]

    def get_model(
        self, model: str | None = None, version: int | None = None, *, timeout_s: float | None = None
    ) -> ModelInfo:
        """Describes a model version; by default the one that this client calls."""
        return self._operations.runner.run(
            self._operations.planner.model_job(model, version), self._operations.runner.deadline_s(timeout_s)
        )

    def list_models(self, *, ready_only: bool = False, timeout_s: float | None = None) -> list[ModelInfo]:
        """Describes all model versions, also those that failed to load, ordered by name and version."""
        return self._operations.runner.run(
            self._operations.planner.models_job(ready_only=ready_only), self._operations.runner.deadline_s(timeout_s)
        )

    def health(self, service: str = "", *, timeout_s: float | None = None) -> ServingStatus:
        """
        Asks the server's health service, once: empty for the server, or `trivec.v1.EmbeddingService`, or a model's
        name.

        Raises:
            NotFoundError: the server does not know the service.
            UnavailableError: the server cannot be reached.
        """
        return self._operations.runner.health(service, timeout_s)
