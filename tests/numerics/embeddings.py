"""The embeddings of a list of texts, wherever they come from, and their comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-5
"""The most that any number may differ from FlagEmbedding's, absolutely."""


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """
    One text's embeddings: `dense` float32 [D], `sparse_ids` int64 [entries] ascending, `sparse_weights` float32
    [entries], `multi_vector` float32 [token_count - 1, D].
    """

    token_count: int
    dense: NDArray[np.float32]
    sparse_ids: NDArray[np.int64]
    sparse_weights: NDArray[np.float32]
    multi_vector: NDArray[np.float32]


@dataclass(slots=True)
class Differences:
    """
    Collects what is wrong and the largest differences seen, so that one failure shows the whole picture. `tolerance`
    is the most that a number may differ; `largest` has an entry for each part that was compared.
    """

    tolerance: float = TOLERANCE
    largest: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def widen(self, part: str, actual: NDArray[np.floating], expected: NDArray[np.floating], where: str) -> None:
        """Compares two arrays; `part` names them in messages."""
        if actual.shape != expected.shape:
            self.faults.append(f"{where}: {part} has shape {actual.shape}, not {expected.shape}")
            return
        largest = float(np.max(np.abs(actual.astype(np.float64) - expected), initial=0.0))
        self.largest[part] = max(self.largest.get(part, 0.0), largest)
        if not largest <= self.tolerance:
            self.faults.append(f"{where}: {part} differs by {largest:.2e}")

    def summary(self) -> str:
        """The largest differences on one line."""
        return ", ".join(f"{part} {largest:.1e}" for part, largest in self.largest.items())

    def check(self) -> None:
        """Raises AssertionError naming the first faults, if there are any."""
        heading = f"{len(self.faults)} faults, largest differences: {self.summary()}\n"
        assert not self.faults, heading + "\n".join(self.faults[:12])


def name_text(index: int, text: str) -> str:
    """A text in a message: its index and how it begins."""
    return f"text {index} ({text[:32]!r}, {len(text)} characters)"


def compare_sparse(
    differences: Differences, actual: TextEmbedding, ids: NDArray[np.int64], weights: NDArray[np.float32], where: str
) -> None:
    """Sparse ids must be identical, in ascending order, and weights close."""
    if not np.array_equal(actual.sparse_ids, ids):
        surplus = sorted(set(actual.sparse_ids.tolist()) ^ set(ids.tolist()))[:5]
        differences.faults.append(f"{where}: sparse ids differ in {surplus}")
        return
    differences.widen("sparse", actual.sparse_weights, weights, where)


def compare_embeddings(
    actual: Sequence[TextEmbedding],
    expected: Sequence[TextEmbedding],
    texts: Sequence[str],
    *,
    tolerance: float = TOLERANCE,
) -> Differences:
    """Compares every number of every text."""
    differences = Differences(tolerance)
    for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        where = name_text(index, texts[index])
        if ours.token_count != theirs.token_count:
            differences.faults.append(f"{where}: {ours.token_count} tokens, not {theirs.token_count}")
            continue
        differences.widen("dense", ours.dense, theirs.dense, where)
        compare_sparse(differences, ours, theirs.sparse_ids, theirs.sparse_weights, where)
        differences.widen("multi_vector", ours.multi_vector, theirs.multi_vector, where)
    return differences


def compare_scores(actual: NDArray[np.float64], expected: NDArray[np.float64]) -> Differences:
    """Compares scores [pairs, 5]."""
    differences = Differences()
    for pair, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        differences.widen("scores", ours, theirs, f"pair {pair}")
    return differences
