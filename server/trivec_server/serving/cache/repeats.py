"""Texts that stand several times in one batch: computed once."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import EngineOutput, LexicalRows, TokenBatch
from trivec_server.serving.batcher import Batch
from trivec_server.serving.ticket import EmbedTicket


@dataclass(frozen=True, slots=True)
class Repeats:
    """`tokens`: the distinct texts of a batch, U of them; `source` int64 [B]: where each text of the batch is there."""

    tokens: TokenBatch
    source: NDArray[np.int64]

    def expand(self, output: EngineOutput) -> EngineOutput:
        """The output of the distinct texts as the whole batch's."""
        source = self.source
        weights = None
        if output.token_weights is not None:
            pieces = np.split(output.token_weights, np.cumsum(self.tokens.lengths)[:-1])
            weights = np.concatenate([pieces[index] for index in source])
        bad = output.non_finite_rows
        return replace(
            output,
            dense=None if output.dense is None else output.dense[source],
            token_weights=weights,
            multi_vector=None if output.multi_vector is None else [output.multi_vector[index] for index in source],
            lexical=None if output.lexical is None else self._expand_lexical(output.lexical),
            non_finite_rows=None if bad is None else np.flatnonzero(np.isin(source, bad)),
        )

    def _expand_lexical(self, lexical: LexicalRows) -> LexicalRows:
        parts = [slice(start, end) for start, end in pairwise(lexical.bounds.tolist())]
        lengths = np.diff(lexical.bounds)[self.source]
        return LexicalRows(
            np.concatenate([lexical.ids[parts[index]] for index in self.source]),
            np.concatenate([lexical.weights[parts[index]] for index in self.source]),
            np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        )


def find_repeats(batch: Batch[EmbedTicket]) -> Repeats | None:
    """The distinct texts of a batch; None if they all are."""
    places: dict[bytes, int] = {}
    sequences = [ids for pending in batch.slices for ids in pending.sequences()]
    source = [places.setdefault(ids, len(places)) for ids in sequences]
    if len(places) == len(sequences):
        return None
    lengths = np.array([len(ids) for ids in places]) // np.dtype(np.int64).itemsize
    return Repeats(TokenBatch(np.frombuffer(b"".join(places), np.int64), lengths), np.array(source, np.int64))
