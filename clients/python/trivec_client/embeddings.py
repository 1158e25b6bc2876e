"""Embeddings as arrays, and how they are put together from the answers of Embed and EmbedStream."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb

from trivec_client.errors import MalformedResponseError
from trivec_client.requests import ModeName
from trivec_client.vectors import ENCODINGS, WireEncoding, decode_rows


@dataclass(frozen=True, slots=True)
class SparseVector:
    """
    Lexical weights of one text. `ids` uint32 [entries], ascending and unique; `weights` float32 [entries], above zero;
    `tokens` the vocabulary's strings, [entries], or None where they were not asked for.
    """

    ids: NDArray[np.uint32]
    weights: NDArray[np.float32]
    tokens: tuple[str, ...] | None

    def lexical_weights(self) -> dict[str, np.float32]:
        """The weights as FlagEmbedding gives them: a `defaultdict(int)` from `str(token_id)` to np.float32."""
        weights: dict[str, np.float32] = defaultdict(int)  # type: ignore[arg-type] # the reference's own default
        weights.update(zip(map(str, self.ids.tolist()), self.weights, strict=True))
        return weights


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """
    The embeddings of one text; a part is None if its mode was not asked for.

    Attributes:
        index: the position of the text among the caller's, from 0.
        token_count: tokens embedded, special tokens and prefix included, after truncation.
        truncated: whether tokens were removed.
        dense: float32 [D].
        sparse: token ids and weights.
        multi_vector: float32 [token_count - 1, D].
    """

    index: int
    token_count: int
    truncated: bool
    dense: NDArray[np.float32] | None
    sparse: SparseVector | None
    multi_vector: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedTexts:
    """
    The answer to one request of `n` texts, the first at the caller's `first_index`.

    `dense` float32 [n, D]; `sparse` and `multi_vectors` (each float32 [tokens - 1, D]) have n entries.
    """

    model: str
    version: int
    first_index: int
    token_counts: list[int]
    truncated: list[bool]
    dense: NDArray[np.float32] | None
    sparse: list[SparseVector] | None
    multi_vectors: list[NDArray[np.float32]] | None

    def __len__(self) -> int:
        return len(self.token_counts)

    def __iter__(self) -> Iterator[TextEmbedding]:
        for position, token_count in enumerate(self.token_counts):
            yield TextEmbedding(
                index=self.first_index + position,
                token_count=token_count,
                truncated=self.truncated[position],
                dense=None if self.dense is None else self.dense[position],
                sparse=None if self.sparse is None else self.sparse[position],
                multi_vector=None if self.multi_vectors is None else self.multi_vectors[position],
            )


class EmbedAssembly:
    """Collects the embeddings of one request from one message or many, in order of index."""

    def __init__(self, *, count: int, first_index: int, modes: tuple[ModeName, ...], encoding: WireEncoding) -> None:
        """`count` is the number of texts in the request."""
        self._count = count
        self._first_index = first_index
        self._encoding = encoding
        self._model = ""
        self._version = 0
        self._token_counts: list[int] = []
        self._truncated: list[bool] = []
        self._dense = _DenseRows(encoding) if "dense" in modes else None
        self._sparse: list[SparseVector] | None = [] if "sparse" in modes else None
        self._multi_vectors = _MultiVectors(encoding) if "multi_vector" in modes else None

    def add(self, response: pb.EmbedResponse) -> None:
        """Takes the embeddings of one message."""
        self._model, self._version = response.model, response.version
        for embedding in response.embeddings:
            known = len(self._token_counts)
            if embedding.index == known < self._count:
                self._begin_text(embedding)
            elif embedding.index != known - 1:
                raise MalformedResponseError.because(
                    f"embedding {embedding.index} follows {known - 1} in a request of {self._count} texts"
                )
            if self._multi_vectors is not None:
                self._multi_vectors.add(embedding)

    def _begin_text(self, embedding: pb.Embedding) -> None:
        self._token_counts.append(embedding.token_count)
        self._truncated.append(embedding.truncated)
        if self._dense is not None:
            self._dense.add(embedding)
        if self._sparse is not None:
            self._sparse.append(_parse_sparse(embedding))
        if self._multi_vectors is not None:
            self._multi_vectors.begin_text()

    def finish(self) -> EmbeddedTexts:
        """The embeddings of all texts of the request."""
        if len(self._token_counts) != self._count:
            raise MalformedResponseError.because(f"{len(self._token_counts)} embeddings for {self._count} texts")
        return EmbeddedTexts(
            model=self._model,
            version=self._version,
            first_index=self._first_index,
            token_counts=self._token_counts,
            truncated=self._truncated,
            dense=None if self._dense is None else self._dense.finish(),
            sparse=self._sparse,
            multi_vectors=None if self._multi_vectors is None else self._multi_vectors.finish(),
        )


class _DenseRows:
    """The packed dense vectors of a request, decoded together."""

    def __init__(self, encoding: WireEncoding) -> None:
        self._encoding = encoding
        self._dimension = 0
        self._rows: list[bytes] = []
        self._scales: list[float] = []

    def add(self, embedding: pb.Embedding) -> None:
        if not embedding.HasField("dense"):
            raise MalformedResponseError.because(f"embedding {embedding.index} has no dense vector")
        dense = embedding.dense
        _check_encoding(dense.encoding, self._encoding)
        if self._rows and dense.dimension != self._dimension:
            raise MalformedResponseError.because(f"dense dimensions {self._dimension} and {dense.dimension}")
        self._dimension = dense.dimension
        self._rows.append(dense.data)
        self._scales.append(dense.scale)

    def finish(self) -> NDArray[np.float32]:
        rows = decode_rows(self._rows, self._scales, self._encoding, self._dimension)
        if len(rows) != len(self._rows):
            raise MalformedResponseError.because(f"{len(rows)} dense rows for {len(self._rows)} texts")
        return rows


class _MultiVectors:
    """The multi-vectors of a request, each put together from consecutive ranges of rows in an array made once."""

    def __init__(self, encoding: WireEncoding) -> None:
        self._encoding = encoding
        self._arrays: list[NDArray[np.float32]] = []
        self._filled = 0
        self._expected = 0

    def begin_text(self) -> None:
        self._check_complete()
        self._filled = self._expected = -1

    def add(self, embedding: pb.Embedding) -> None:
        if not embedding.HasField("multi_vector"):
            raise MalformedResponseError.because(f"embedding {embedding.index} has no multi-vector")
        chunk = embedding.multi_vector
        _check_encoding(chunk.encoding, self._encoding)
        rows = decode_rows([chunk.data], chunk.scales, self._encoding, chunk.dimension)
        if self._expected < 0:
            self._filled, self._expected = 0, chunk.total_rows
            whole = len(rows) == chunk.total_rows
            self._arrays.append(rows if whole else np.empty((chunk.total_rows, chunk.dimension), np.float32))
        array = self._arrays[-1]
        end = self._filled + len(rows)
        if (
            chunk.first_row != self._filled
            or chunk.rows != len(rows)
            or end > len(array)
            or chunk.dimension != array.shape[1]
        ):
            raise MalformedResponseError.because(
                f"rows {chunk.first_row} to {chunk.first_row + chunk.rows} of embedding {embedding.index} follow "
                f"{self._filled} of {len(array)} rows"
            )
        if array is not rows:
            array[self._filled : end] = rows
        self._filled = end

    def _check_complete(self) -> None:
        if self._filled != self._expected:
            raise MalformedResponseError.because(f"{self._filled} of {self._expected} multi-vector rows")

    def finish(self) -> list[NDArray[np.float32]]:
        self._check_complete()
        return self._arrays


def _parse_sparse(embedding: pb.Embedding) -> SparseVector:
    if not embedding.HasField("sparse"):
        raise MalformedResponseError.because(f"embedding {embedding.index} has no sparse vector")
    sparse = embedding.sparse
    if len(sparse.ids) != len(sparse.weights):
        raise MalformedResponseError.because(f"{len(sparse.ids)} sparse ids, {len(sparse.weights)} weights")
    return SparseVector(
        ids=np.array(sparse.ids, np.uint32),
        weights=np.array(sparse.weights, np.float32),
        tokens=tuple(sparse.tokens) if sparse.tokens else None,
    )


def _check_encoding(actual: pb.VectorEncoding.ValueType, asked: WireEncoding) -> None:
    if actual != ENCODINGS[asked]:
        raise MalformedResponseError.because(f"vector encoding {actual} where {asked} was asked for")
