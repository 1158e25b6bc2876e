"""From the heads' arrays on the host, the longest text first, to an EngineOutput in the order of the batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import EngineOutput, LexicalRows, TokenBatch, Vectors
from trivec_server.backends.pytorch.batch import Layout, select_texts
from trivec_server.backends.pytorch.heads import Lexical, Parts


@dataclass(frozen=True, slots=True)
class HostParts:
    """As `heads.Parts` and `Lexical`, on the host."""

    dense: Vectors | None
    token_weights: NDArray[np.float32] | None
    multi_vector: Vectors | None
    bad: NDArray[np.int32]
    lexical: LexicalRows | None = None


def on_host(parts: Parts, lexical: Lexical | None = None) -> HostParts:
    """The arrays of tensors that are on the host already."""
    dense, weights, vectors = (
        None if each is None else each.numpy() for each in (parts.dense, parts.token_weights, parts.multi_vector)
    )
    rows = None
    if lexical is not None:
        bounds = lexical.bounds.numpy()
        end = int(bounds[-1])
        rows = LexicalRows(lexical.ids.numpy()[:end].view(np.uint32), lexical.weights.numpy()[:end], bounds)
    return HostParts(dense, weights, vectors, parts.bad.numpy(), rows)


def in_batch_order(parts: HostParts, layout: Layout) -> EngineOutput:
    """The output of a batch. Multi-vectors are views of one array."""
    weights = parts.token_weights
    if weights is not None:
        sorted_weights, weights = weights, np.empty_like(weights)
        weights[layout.source] = sorted_weights
    dense = parts.dense
    if dense is not None:
        sorted_dense, dense = dense, np.empty_like(dense)
        dense[layout.order] = sorted_dense
    vectors = None
    if parts.multi_vector is not None:
        starts = layout.bounds - np.arange(len(layout.bounds))  # each text has one vector less than tokens
        places = np.argsort(layout.order)
        vectors = [parts.multi_vector[starts[place] : starts[place + 1]] for place in places]
    return EngineOutput(
        dense=dense,
        token_weights=weights,
        multi_vector=vectors,
        lexical=parts.lexical,
        non_finite_rows=np.flatnonzero(parts.bad),
    )


def recompute_non_finite(
    batch: TokenBatch, output: EngineOutput, exact: Callable[[TokenBatch], EngineOutput]
) -> EngineOutput:
    """
    The output with the texts that are not finite computed again by `exact`, which gives the same parts in float32.
    """
    rows = output.non_finite_rows
    if rows is None or not len(rows):
        return output
    again = exact(select_texts(batch, rows))
    dense, weights, vectors = output.dense, output.token_weights, output.multi_vector
    if dense is not None and again.dense is not None:
        dense = dense.copy()
        dense[rows] = again.dense
    if weights is not None and again.token_weights is not None:
        weights = weights.copy()
        bounds = np.concatenate(([0], np.cumsum(batch.lengths)))
        places = np.concatenate([np.arange(bounds[row], bounds[row + 1]) for row in rows])
        weights[places] = again.token_weights
    if vectors is not None and again.multi_vector is not None:
        vectors = list(vectors)
        for row, vector in zip(rows, again.multi_vector, strict=True):
            vectors[row] = vector
    still_bad = again.non_finite_rows
    return replace(
        output,
        dense=dense,
        token_weights=weights,
        multi_vector=vectors,
        lexical=_merge(output.lexical, again.lexical, rows.tolist()),
        non_finite_rows=None if still_bad is None else rows[still_bad],
        recomputed_rows=len(rows),
    )


def _merge(first: LexicalRows | None, again: LexicalRows | None, rows: Sequence[int]) -> LexicalRows | None:
    """The sparse vectors of `first`, those of `rows` from `again`."""
    if first is None or again is None:
        return None
    parts = _split(first)
    for row, part in zip(rows, _split(again), strict=True):
        parts[row] = part
    ids, weights = zip(*parts, strict=True)
    bounds = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return LexicalRows(np.concatenate(ids), np.concatenate(weights), bounds)


def _split(rows: LexicalRows) -> list[tuple[NDArray[np.uint32], NDArray[np.float32]]]:
    inner = rows.bounds[1:-1]
    return list(
        zip(np.split(rows.ids[: rows.bounds[-1]], inner), np.split(rows.weights[: rows.bounds[-1]], inner), strict=True)
    )
