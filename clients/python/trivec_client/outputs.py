"""Results in the shapes of FlagEmbedding 1.4.2's `BGEM3FlagModel` (`inference/embedder/encoder_only/m3.py`)."""

from collections.abc import Collection
from typing import TypedDict

import grpc
import numpy as np
from numpy.typing import NDArray

from trivec_client.embeddings import EmbeddedTexts
from trivec_client.errors import TrivecClientError
from trivec_client.requests import ModeName


class EncodeOutput(TypedDict):
    """
    What `encode` returns, for a list of n texts or for one.

    `dense_vecs`: float32 [n, D], or [D]. `lexical_weights`: n dictionaries from `str(token_id)` to np.float32, or one.
    `colbert_vecs`: n arrays float32 [tokens - 1, D], or one. A part that was not asked for is None.
    """

    dense_vecs: NDArray[np.float32] | None
    lexical_weights: list[dict[str, np.float32]] | dict[str, np.float32] | None
    colbert_vecs: list[NDArray[np.float32]] | NDArray[np.float32] | None


class OneVersion:
    """Sees to it that all answers of one call come from one model version: vectors of two do not compare."""

    def __init__(self) -> None:
        self._seen: tuple[str, int] | None = None

    def check(self, model: str, version: int) -> None:
        """
        Raises:
            TrivecClientError: ABORTED, if an earlier answer came from another model or version.
        """
        if self._seen is None:
            self._seen = (model, version)
        elif self._seen != (model, version):
            raise TrivecClientError(
                grpc.StatusCode.ABORTED,
                f"the server went from {self._seen[0]}/{self._seen[1]} to {model}/{version} within one call, and "
                "vectors of the two do not compare; call again, or name the version with model_version",
            )


class EncodeCollector:
    """Fills the result of `encode` from the answers, which come in order."""

    def __init__(self, count: int, modes: tuple[ModeName, ...]) -> None:
        """`count` is the number of texts."""
        self._count = count
        self._next = 0
        self._dense_wanted = "dense" in modes
        self._dense: NDArray[np.float32] | None = None
        self._lexical: list[dict[str, np.float32]] | None = [] if "sparse" in modes else None
        self._colbert: list[NDArray[np.float32]] | None = [] if "multi_vector" in modes else None

    def add(self, part: EmbeddedTexts) -> None:
        """Takes the next answer."""
        if part.dense is not None:
            if self._dense is None:
                self._dense = np.empty((self._count, part.dense.shape[1]), np.float32)
            self._dense[self._next : self._next + len(part)] = part.dense
        if self._lexical is not None and part.sparse is not None:
            self._lexical += [sparse.lexical_weights() for sparse in part.sparse]
        if self._colbert is not None and part.multi_vectors is not None:
            self._colbert += part.multi_vectors
        self._next += len(part)

    def output(self, *, single: bool, dense_dimension: int) -> EncodeOutput:
        """The result; `single` for one string, `dense_dimension` for an empty list."""
        dense = self._dense
        if dense is None and self._dense_wanted:
            dense = np.empty((0, dense_dimension), np.float32)
        if not single:
            return EncodeOutput(dense_vecs=dense, lexical_weights=self._lexical, colbert_vecs=self._colbert)
        return EncodeOutput(
            dense_vecs=None if dense is None else dense[0],
            lexical_weights=None if self._lexical is None else self._lexical[0],
            colbert_vecs=None if self._colbert is None else self._colbert[0],
        )


def as_texts(sentences: object, field: str) -> tuple[Collection[str], bool]:
    """
    The texts as a collection, and whether a single string was given.

    Raises:
        TypeError: neither a string nor a collection.
    """
    if isinstance(sentences, str):
        return [sentences], True
    if isinstance(sentences, bytes) or not isinstance(sentences, Collection):
        raise TypeError(
            f"{field}: expected a string or a list of strings, got {type(sentences).__name__}; "
            "encode_stream takes any iterable"
        )
    return sentences, False
