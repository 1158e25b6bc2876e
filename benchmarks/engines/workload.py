"""
The texts that every system is given, half Chinese and half words in Latin letters, made from the vocabulary of the
model's own tokenizer so that each has the number of tokens that was drawn for it. The same seed gives the same texts.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.engines.lengths import SPECIAL_TOKENS, TextSet, mixed_lengths, query_lengths, seeded

_COMMON_PIECES = 20_000
_CJK = ("\u4e00", "\u9fff")


class TextMaker:
    """Makes texts for one tokenizer (`tokenizer.json` of a Unigram model with XLM-RoBERTa's marks)."""

    def __init__(self, tokenizer_file: Path, seed: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._random = seeded(seed)
        scores = _scores(self._tokenizer)
        self._words = _Pieces(self._whole([(piece[1:], score) for piece, score in scores if _is_word(piece)]))
        self._characters = _Pieces([(piece, score) for piece, score in scores if _is_chinese(piece)])

    def short_queries(self, count: int) -> TextSet:
        """About 12 tokens each."""
        return self.with_lengths("short", query_lengths(count, self._random))

    def mixed_corpus(self, count: int) -> TextSet:
        """Lognormal lengths, about 54 tokens on average, up to 512."""
        return self.with_lengths("mixed", mixed_lengths(count, self._random))

    def of_length(self, count: int, tokens: int) -> TextSet:
        """Texts of one length: passages of 512 tokens, documents of 8192."""
        return self.with_lengths(f"{tokens} tokens", [tokens] * count)

    def of_characters(self, count: int, characters: int) -> TextSet:
        """Texts of so many characters, whatever they have in tokens."""
        texts = []
        for number in range(count):
            text = " ".join(self._words.draw(characters, self._random))
            if number % 2:
                text = "".join(self._characters.draw(characters, self._random))
            texts.append(text[:characters].rstrip().ljust(characters, "。"))
        return TextSet(f"{characters} characters", tuple(texts), tuple(self._count(texts)))

    def with_lengths(self, name: str, lengths: Sequence[int]) -> TextSet:
        """A text for each length."""
        texts = tuple(self._text(length, chinese=bool(number % 2)) for number, length in enumerate(lengths))
        counted = tuple(self._count(texts))
        if counted != tuple(lengths):
            raise ValueError("the tokenizer does not split these texts as its vocabulary says")
        return TextSet(name, texts, counted)

    def _text(self, tokens: int, *, chinese: bool) -> str:
        wanted = tokens - SPECIAL_TOKENS
        if not chinese:
            return " ".join(self._words.draw(wanted, self._random))
        pieces = self._characters.draw(wanted, self._random)
        # Neighbours may join to longer pieces, and the first one has a mark before it: what is missing or too much at
        # the end is words, of which each is one token.
        while pieces and self._count(["".join(pieces)])[0] > tokens:
            pieces = pieces[:-1]
        text = "".join(pieces)
        missing = tokens - self._count([text])[0]
        return " ".join([text, *self._words.draw(missing, self._random)]).strip()

    def _whole(self, words: list[tuple[str, float]]) -> list[tuple[str, float]]:
        """Those that are one token each; a few are cheaper in parts."""
        counts = self._count([word for word, _ in words])
        return [item for item, count in zip(words, counts, strict=True) if count == 1 + SPECIAL_TOKENS]

    def _count(self, texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))]


class _Pieces:
    """The commonest pieces of a vocabulary, drawn by their own probabilities."""

    def __init__(self, scores: list[tuple[str, float]]) -> None:
        common = sorted(scores, key=lambda item: (-item[1], item[0]))[:_COMMON_PIECES]
        if not common:
            raise ValueError("the tokenizer's vocabulary has no words to make texts of")
        self._pieces: NDArray[np.str_] = np.array([piece for piece, _ in common])
        weights = np.exp(np.array([score for _, score in common], np.float64))
        self._weights = weights / weights.sum()

    def draw(self, count: int, random: np.random.Generator) -> list[str]:
        drawn: list[str] = random.choice(self._pieces, count, p=self._weights).tolist()
        return drawn


def _scores(tokenizer: Tokenizer) -> list[tuple[str, float]]:
    """The pieces of a Unigram vocabulary and their log probabilities, without the special tokens."""

    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(piece, float(score)) for piece, score in vocabulary if score < 0]


def _is_word(piece: str) -> bool:
    return len(piece) > 2 and piece[0] == "\u2581" and piece[1:].isascii() and piece[1:].isalpha()


def _is_chinese(piece: str) -> bool:
    return all(_CJK[0] <= character <= _CJK[1] for character in piece)
