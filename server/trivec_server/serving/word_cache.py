"""
Token ids of words, remembered: short texts are mostly words that were seen before.

A BGE-M3 tokenizer splits a text at spaces before anything else looks at it, so the ids of a text are those of its
words, one after the other. Looking a word up costs a twentieth of tokenizing it. That only holds for plain words, and
only they are remembered (`_is_plain`); a text with anything else in it goes to the tokenizer whole.
"""

import json
import unicodedata
from array import array
from collections.abc import Sequence

import tokenizers

_MAX_WORD_CHARACTERS = 32
_MAX_TEXT_CHARACTERS = 65_536
_GENERATION_WORDS = 65_536
_RUN_WORDS = 128
_SPACE_IN_VOCABULARY = "\u2581"


class WordCache:
    """
    Tokenizes like the tokenizer it stands before. Used by one thread at a time.

    Ids are packed, 8 bytes each as in an int64 array: joining the words of a text is then joining bytes. Two
    generations of words are kept: when the young one is full it becomes the old one, and what is used of the old one
    joins the young one again. Together they hold about 131,072 words, in 25 MB.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, first_id: int, last_id: int) -> None:
        """`first_id` and `last_id` are put around each text: <s> and </s>."""
        self._tokenizer = tokenizer
        self._first = pack_ids([first_id])
        self._last = pack_ids([last_id])
        self._young: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}
        self._splits_words = _splits_words(tokenizer)
        self._normalize = str if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Packed token ids of each text, special tokens included, not truncated."""
        if not self._splits_words:
            return [pack_ids(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(texts)]
        if len(self._young) >= _GENERATION_WORDS:
            self._old, self._young = self._young, {}
        try:
            # The common case: no text is long, every word is known.
            return [self._join(text) for text in texts]
        except KeyError:
            return self._encode_with_unknown(texts)

    def _join(self, text: str) -> bytes:
        """
        The ids of a text of known words.

        Raises:
            KeyError: a word is not known, or the text is long.
        """
        if len(text) > _MAX_TEXT_CHARACTERS:
            raise KeyError
        return b"".join([self._first, *map(self._young.__getitem__, text.split(" ")), self._last])

    def _encode_with_unknown(self, texts: Sequence[str]) -> list[bytes]:
        unknown: dict[str, None] = {}
        is_plain = [self._find_unknown(text, unknown) for text in texts]
        if unknown:
            self._learn(list(unknown))
        whole = [text for text, plain in zip(texts, is_plain, strict=True) if not plain]
        encodings = iter(self._tokenizer.encode_batch_fast(whole) if whole else ())
        return [
            self._join(text) if plain else pack_ids(next(encodings).ids)
            for text, plain in zip(texts, is_plain, strict=True)
        ]

    def _find_unknown(self, text: str, unknown: dict[str, None]) -> bool:
        """Whether all words of a text are plain; those not known yet join `unknown`."""
        if len(text) > _MAX_TEXT_CHARACTERS:
            return False
        young, old = self._young, self._old
        for word in text.split(" "):
            if word in young or word in unknown:
                continue
            known = old.get(word)
            if known is not None:
                young[word] = known
            elif self._is_plain(word):
                unknown[word] = None
            else:
                return False
        return True

    def _learn(self, words: list[str]) -> None:
        """Tokenizes unknown words many at a time: most of what a call costs does not depend on its length."""
        runs = [words[start : start + _RUN_WORDS] for start in range(0, len(words), _RUN_WORDS)]
        encodings = self._tokenizer.encode_batch([" ".join(run) for run in runs], add_special_tokens=False)
        for run, encoding in zip(runs, encodings, strict=True):
            ids_of: list[list[int]] = [[] for _ in run]
            for token_id, word in zip(encoding.ids, encoding.word_ids, strict=True):
                if word is not None:
                    ids_of[word].append(token_id)
            self._young.update(zip(run, map(pack_ids, ids_of), strict=True))

    def _is_plain(self, word: str) -> bool:
        """
        Whether a word gives the same ids alone as between spaces.

        That leaves out what the normalizer turns into a space or into nothing, marks that would join what stands before
        the word, the character that stands for a space in the vocabulary, and all that special tokens are made of.
        """
        if not 0 < len(word) <= _MAX_WORD_CHARACTERS or not all(map(_is_plain_character, word)):
            return False
        normalized = self._normalize(word)
        return bool(normalized) and all(map(_is_plain_character, normalized))


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as the bytes of an int64 array."""
    return array("q", ids).tobytes()


def unpack_ids(packed: bytes) -> list[int]:
    """What `pack_ids` packed."""
    return array("q", packed).tolist()


def _is_plain_character(character: str) -> bool:
    """Letters, numbers, punctuation and symbols, but for the two named above."""
    return unicodedata.category(character)[0] in "LNPS" and character not in ("<", _SPACE_IN_VOCABULARY)


def _splits_words(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether the tokenizer is of the kind described above; of any other kind, nothing is remembered."""
    if tokenizer.pre_tokenizer is None or type(tokenizer.model).__name__ != "Unigram":
        return False
    splitter = json.loads(tokenizer.pre_tokenizer.__getstate__())
    steps = splitter.get("pretokenizers", [splitter])
    if [step["type"] for step in steps] not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        return False
    if not steps[-1].get("split", True) or steps[-1].get("prepend_scheme") != "always":
        return False
    # No special token can arise from plain words and spaces.
    return all(
        any(not _is_plain_character(character) and character != " " for character in token.content)
        for token in tokenizer.get_added_tokens_decoder().values()
    )
