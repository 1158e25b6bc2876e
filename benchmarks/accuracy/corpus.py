"""
The texts of the accuracy report, the same ones every time: the retrieval set of the tests, their texts at the edges of
what a tokenizer meets and their mixtures of words in many scripts, and pieces of 3 to 200 tokens, cut out of the
retrieval set's sentences joined at random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trivec_server.serving.tokenizer import Tokenizer, truncate
from trivec_server.serving.word_cache import unpack_ids
from trivec_server.types import InputType, ModelSettings, Truncation

from tests.numerics.random_numbers import RandomNumbers
from tests.numerics.retrieval_set import PASSAGES, QUERIES
from tests.numerics.texts import all_texts

PIECES = 240
_SEED = 4177
_LEAST_TOKENS, _MOST_TOKENS = 3, 200
_MOST_CHARACTERS = 400
_SCALE = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """A text, what it is for, and the tokens after which it is cut off, special ones included."""

    text: str
    input_type: InputType = InputType.NONE
    most_tokens: int = _MOST_TOKENS


QUERY_ROWS = slice(0, len(QUERIES))
PASSAGE_ROWS = slice(len(QUERIES), len(QUERIES) + len(PASSAGES))
"""Where the retrieval set lies in `samples()`."""


def samples(pieces: int = PIECES) -> tuple[Sample, ...]:
    """The retrieval set's queries and passages, the short ones of the texts of the tests, and so many pieces."""
    return (
        *(Sample(query.text, InputType.QUERY) for query in QUERIES),
        *(Sample(passage, InputType.PASSAGE) for passage in PASSAGES.values()),
        *(Sample(text) for text in all_texts() if len(text) <= _MOST_CHARACTERS),
        *_pieces(pieces),
    )


def tokenize(samples: Sequence[Sample], version_dir: Path, settings: ModelSettings) -> list[list[int]]:
    """The token ids of each sample, as the server makes them for a model with these settings."""
    tokenizer = Tokenizer(
        version_dir / "tokenizer.json", query_prefix=settings.query_prefix, passage_prefix=settings.passage_prefix
    )
    packed = tokenizer.encode([sample.text for sample in samples], [sample.input_type for sample in samples])
    return [
        list(unpack_ids(truncate(ids, sample.most_tokens, Truncation.RIGHT)))
        for ids, sample in zip(packed, samples, strict=True)
    ]


def _pieces(count: int) -> list[Sample]:
    """Short ones are more frequent: the logarithm of a piece's length grows with the square of a uniform number."""
    sentences: dict[str, list[str]] = {}
    for query in QUERIES:
        sentences.setdefault(query.language, []).append(query.text)
    for key, passage in PASSAGES.items():
        sentences[key.partition("-")[0]].append(passage)
    languages = sorted(sentences)
    numbers = RandomNumbers(_SEED)
    pieces = []
    for index in range(count):
        choices = sentences[languages[index % len(languages)]]
        tokens = round(
            _LEAST_TOKENS * math.exp((numbers.below(_SCALE) / _SCALE) ** 2 * math.log(_MOST_TOKENS / _LEAST_TOKENS))
        )
        text = choices[numbers.below(len(choices))]
        text = text[numbers.below(len(text)) :]
        # A character makes at most a few tokens, a token seldom more than six characters.
        while len(text) < 6 * tokens:
            text += " " + choices[numbers.below(len(choices))]
        pieces.append(Sample(text.strip(), most_tokens=tokens))
    return pieces
