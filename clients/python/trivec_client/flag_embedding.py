"""The methods of FlagEmbedding 1.4.2's `BGEM3FlagModel`, with its arguments and its results."""

from collections.abc import Sequence

from trivec_client.operations import Operations
from trivec_client.outputs import EncodeCollector, EncodeOutput, as_texts
from trivec_client.requests import InputTypeName, TruncationName
from trivec_client.scores import (
    ScoreOutput,
    TextPair,
    colbert_score,
    lexical_matching_score,
    pair_score,
    render_scores,
)


class FlagEmbeddingMethods:
    """What TrivecClient has in common with `BGEM3FlagModel`."""

    compute_lexical_matching_score = staticmethod(lexical_matching_score)
    colbert_score = staticmethod(colbert_score)

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

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
        for part in self._operations.embed(texts, wanted, batch_size, lambda: deadline_s):
            collector.add(part)
        dimension = 0 if len(texts) else self._operations.served_model(deadline_s).dense_dimension
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
        plan = self._operations.planner.pairs(
            sentence_pairs, max_query_length, max_passage_length, weights_for_different_modes
        )
        deadline_s = self._operations.runner.deadline_s(timeout_s)
        if plan.scored_by_server:
            jobs = self._operations.planner.pair_jobs(self._operations.served_model(deadline_s), plan, batch_size)
            return render_scores(self._operations.score(jobs, deadline_s), single=plan.single)
        sides = zip(
            self._operations.embed_side(plan.queries, "query", plan.query_length, batch_size, deadline_s),
            self._operations.embed_side(plan.passages, "passage", plan.passage_length, batch_size, deadline_s),
            strict=True,
        )
        scores = [pair_score(index, *side, plan.weights) for index, side in enumerate(sides)]
        return render_scores(scores, single=plan.single)
