"""
Token ids of words, remembered: short texts are mostly words that were seen before.

A BGE-M3 tokenizer splits a text at spaces before anything else looks at it, so the ids of a text are those of its
words, one after the other. Looking a word up costs a twentieth of tokenizing it. That only holds for plain words, and
only they are remembered (`_is_plain`); a text with anything else in it goes to the tokenizer whole.
"""

import json
import string
import unicodedata
from collections.abc import Sequence

import tokenizers

_MAX_WORD_CHARACTERS = 24
_GENERATION_WORDS = 32_768
_PLAIN_PUNCTUATION = frozenset(string.punctuation) - frozenset("<>[]|_")


class WordCache:
    """
    Tokenizes like the tokenizer it stands before. Used by one thread at a time.

    Two generations of words are kept: when the young one is full it becomes the old one, and what is used of the old
    one joins the young one again. Together they hold at most 65,536 words, about 20 MB.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, first_id: int, last_id: int) -> None:
        """`first_id` and `last_id` are put around each text: <s> and </s>."""
        self._tokenizer = tokenizer
        self._first = [first_id]
        self._last = [last_id]
        self._young: dict[str, list[int]] = {}
        self._old: dict[str, list[int]] = {}
        self._splits_words = _splits_words(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, not truncated."""
        found: list[list[int] | None] = [None] * len(texts)
        if self._splits_words:
            found = [self._look_up(text) for text in texts]
        missing = [index for index, ids in enumerate(found) if ids is None]
        if missing:
            words = self._unknown_words([texts[index] for index in missing])
            whole = self._tokenizer.encode_batch_fast([texts[index] for index in missing])
            for index, encoding in zip(missing, whole, strict=True):
                found[index] = encoding.ids
            self._learn(words)
        return [ids for ids in found if ids is not None]

    def _look_up(self, text: str) -> list[int] | None:
        """The ids of a text whose words are all known."""
        young, old = self._young, self._old
        ids = self._first.copy()
        for word in text.split(" "):
            known = young.get(word)
            if known is None:
                known = old.get(word)
                if known is None:
                    return None
                young[word] = known
            ids += known
        ids += self._last
        return ids

    def _unknown_words(self, texts: Sequence[str]) -> list[str]:
        if not self._splits_words:
            return []
        words: set[str] = set()
        for text in texts:
            words.update(text.split(" ", _MAX_WORDS_LEARNT)[:_MAX_WORDS_LEARNT])
        return [word for word in words if word not in self._young and word not in self._old and _is_plain(word)]

    def _learn(self, words: Sequence[str]) -> None:
        if len(self._young) >= _GENERATION_WORDS:
            self._old, self._young = self._young, {}
        if words:
            encodings = self._tokenizer.encode_batch_fast(list(words), add_special_tokens=False)
            self._young.update((word, encoding.ids) for word, encoding in zip(words, encodings, strict=True))


_MAX_WORDS_LEARNT = 64
"""Of each text: a long document would spend more on its words than it gains."""


def _is_plain(word: str) -> bool:
    """
    Whether a word gives the same ids alone as between spaces.

    Letters and digits in their normal form NFKC, and ASCII punctuation of which no special token is made. That leaves
    out what a normalizer could turn into a space or into nothing, marks that would join what stands before the word,
    and the character that stands for a space in the vocabulary.
    """
    return (
        0 < len(word) <= _MAX_WORD_CHARACTERS
        and all(map(_is_plain_character, word))
        and unicodedata.is_normalized("NFKC", word)
    )


def _is_plain_character(character: str) -> bool:
    return character.isalnum() or character in _PLAIN_PUNCTUATION


def _splits_words(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether the tokenizer is of the kind described above; of any other kind, nothing is remembered."""
    if tokenizer.pre_tokenizer is None or type(tokenizer.model).__name__ != "Unigram":
        return False
    splitter = json.loads(tokenizer.pre_tokenizer.__getstate__())
    steps = splitter.get("pretokenizers", [splitter])
    if [step["type"] for step in steps] not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        return False
    if not steps[-1].get("split", True) or steps[-1].get("prepend_scheme") not in ("always", "first"):
        return False
    # No special token can arise from plain words and spaces.
    return all(
        any(not _is_plain_character(character) and character != " " for character in token.content)
        for token in tokenizer.get_added_tokens_decoder().values()
    )
