"""Texts as tokens."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """
    One text as tokens, special tokens included.

    Attributes:
        index: the position of the text among the caller's, from 0.
        ids: uint32 [tokens].
        tokens: the vocabulary's strings, [tokens].
        offsets: [tokens] ranges of the text in code points, empty for special tokens and those of the prefix.
        truncated: whether tokens were removed.
    """

    index: int
    ids: NDArray[np.uint32]
    tokens: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    truncated: bool


def parse_tokens(response: pb.TokenizeResponse, first_index: int) -> list[TokenizedText]:
    """A TokenizeResponse as values; `first_index` is the caller's index of the request's first text."""
    return [
        TokenizedText(
            index=first_index + text.index,
            ids=np.array(text.ids, np.uint32),
            tokens=tuple(text.tokens),
            offsets=tuple((offset.start, offset.end) for offset in text.offsets),
            truncated=text.truncated,
        )
        for text in response.texts
    ]
