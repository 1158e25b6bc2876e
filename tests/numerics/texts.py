"""
The texts and pairs on which the server is compared with FlagEmbedding: the same ones every time.

Three kinds: texts at the edges of what a tokenizer meets, seeded mixtures of words in many scripts, and a ladder of
texts with a known number of tokens up to one more than a model takes.
"""

import hashlib
import json
from pathlib import Path

from tests.numerics.random_numbers import RandomNumbers

_SEED = 5617
_MIXED_TEXTS = 110

LADDER_TOKENS = (
    *(3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64, 65, 96, 127, 128, 129, 192),
    *(255, 256, 257, 384, 511, 512, 513, 768, 1023, 1024, 1025, 2048, 4096, 8192, 8193),
)
"""Token counts of the ladder's texts, both special tokens included and before truncation."""

_DATA = json.loads(Path(__file__).with_name("data").joinpath("texts.json").read_text(encoding="utf-8"))
_EDGE_TEXTS: tuple[str, ...] = tuple(text for group in _DATA["edges"].values() for text in group)
_SINGLE_PIECE_WORDS: tuple[str, ...] = tuple(_DATA["single_piece_words"])
"""Words that are one piece of the vocabulary each when a space stands before them."""
_OTHER_WORDS: tuple[str, ...] = tuple(_DATA["other_words"])
_JOINERS = (" ", " ", " ", " ", " ", ", ", ". ", "、", "\n", "  ", "", " - ", "; ")

SCORE_WEIGHTS = ((1.0, 1.0, 1.0), (0.4, 0.2, 0.4), (0.0, 0.25, 2.0))
"""Weightings for `compute_score`, in its order: dense, sparse, multi-vector."""

_QUERIES = ("What is the capital of France?", "人工智能", "вода и хлеб", "", "river river water", "<mask> garden 😀")
_PASSAGES = (
    "Paris is the capital and largest city of France.",
    "人工智能是研究、开发用于模拟人的智能的科学。",
    "Хлеб и вода стоят на столе.",
    "A river carries water from the mountain to the sea.",
    "",
)


def all_texts() -> tuple[str, ...]:
    """Every text of the comparison: edges, mixtures, then the ladder."""
    return _EDGE_TEXTS + _mixed_texts() + tuple(ladder_text(tokens) for tokens in LADDER_TOKENS)


def score_pairs() -> tuple[tuple[str, str], ...]:
    """Every query with every passage, and pairs of long texts: (query, passage)."""
    crossed = tuple((query, passage) for query in _QUERIES for passage in _PASSAGES)
    return (
        *crossed,
        (ladder_text(17), ladder_text(257)),
        (ladder_text(257), ladder_text(17)),
        ("a", ladder_text(2048)),
    )


def ladder_text(tokens: int) -> str:
    """A text of exactly `tokens` tokens, both special tokens included."""
    numbers = RandomNumbers(_SEED + tokens)
    return " ".join(_SINGLE_PIECE_WORDS[numbers.below(len(_SINGLE_PIECE_WORDS))] for _ in range(tokens - 2))


def digest() -> str:
    """SHA-256 over texts, pairs and weightings, in hexadecimal."""
    content = json.dumps([all_texts(), score_pairs(), SCORE_WEIGHTS])
    return hashlib.sha256(content.encode()).hexdigest()


def _mixed_texts() -> tuple[str, ...]:
    numbers = RandomNumbers(_SEED)
    words = (*_SINGLE_PIECE_WORDS, *_OTHER_WORDS, *_OTHER_WORDS)
    texts = []
    for index in range(_MIXED_TEXTS):
        count = 1 + numbers.below(4 + index // 2)
        parts = [words[numbers.below(len(words))] + _JOINERS[numbers.below(len(_JOINERS))] for _ in range(count)]
        texts.append("".join(parts))
    return tuple(texts)
