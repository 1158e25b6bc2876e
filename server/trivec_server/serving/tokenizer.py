"""Texts to token ids, exactly as BGE-M3's reference does it (FlagEmbedding 1.4.2 on the pinned `tokenizer.json`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from trivec_server.errors import LoadError
from trivec_server.serving.word_cache import WordCache
from trivec_server.types import CLS_TOKEN_ID, EOS_TOKEN_ID, PAD_TOKEN_ID, UNK_TOKEN_ID, InputType, Truncation

_ID_BYTES = 8
_SPECIAL_TOKENS = {"<s>": CLS_TOKEN_ID, "<pad>": PAD_TOKEN_ID, "</s>": EOS_TOKEN_ID, "<unk>": UNK_TOKEN_ID}


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """
    One text as tokens, special tokens included. `offsets` are half-open ranges of code points of the text without
    its prefix; special tokens and tokens of the prefix have (0, 0).
    """

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    truncated: bool


@dataclass(frozen=True, slots=True)
class _Ends:
    """A special token that truncation took away and that is put back, or nothing."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]


_NOTHING = _Ends([], [], [])


class Tokenizer:
    """The tokenizer of one model version. Every thread may use it, but `encode` only one at a time."""

    def __init__(self, path: Path, *, query_prefix: str = "", passage_prefix: str = "") -> None:
        """
        Raises:
            LoadError: the file is missing, not a tokenizer, or numbers its special tokens in another way.
        """
        if not path.is_file():
            raise LoadError(f"{path.name} is missing in {path.parent}; pull the model again")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise LoadError(f"{path.name} is not a readable tokenizer ({error}); pull the model again") from error
        # The file may carry settings for training; lengths are decided per request, here.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        for token, token_id in _SPECIAL_TOKENS.items():
            found = self._tokenizer.token_to_id(token)
            if found != token_id:
                raise LoadError(f"{path.name}: special token {token} has id {found}, must be {token_id}")
        if self._tokenizer.encode("").ids != [CLS_TOKEN_ID, EOS_TOKEN_ID]:
            raise LoadError(f"{path.name}: an empty text must give <s> </s>, as BGE-M3's tokenizer does")
        self._words = WordCache(self._tokenizer, CLS_TOKEN_ID, EOS_TOKEN_ID)
        self._prefixes = {InputType.NONE: "", InputType.QUERY: query_prefix, InputType.PASSAGE: passage_prefix}

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def prefix(self, input_type: InputType) -> str:
        """The prefix put before a text of this type."""
        return self._prefixes[input_type]

    def encode(self, texts: Sequence[str], input_types: Sequence[InputType] | InputType) -> list[bytes]:
        """
        Token ids of each text, special tokens included, not truncated, packed as int64. For one thread at a time; what
        is not remembered from earlier texts is tokenized in parallel, outside the GIL.
        """
        return self._words.encode(self._with_prefixes(texts, input_types))

    def tokenize(self, text: str, input_type: InputType, limit: int, truncation: Truncation) -> TokenizedText:
        """One text with strings and offsets. With Truncation.ERROR an overlong text is returned whole, marked."""
        prefix_length = len(self._prefixes[input_type])
        # Of a batch, the library tokenizes outside the GIL: other threads go on.
        encoding = self._tokenizer.encode_batch([self._prefixes[input_type] + text])[0]
        truncated = len(encoding) > limit
        first, last = _NOTHING, _NOTHING
        if truncated and truncation is Truncation.RIGHT:
            encoding.truncate(limit - 1, direction="right")
            last = _Ends([EOS_TOKEN_ID], ["</s>"], [(0, 0)])
        elif truncated and truncation is Truncation.LEFT:
            encoding.truncate(limit - 1, direction="left")
            first = _Ends([CLS_TOKEN_ID], ["<s>"], [(0, 0)])
        offsets = [(max(0, start - prefix_length), max(0, end - prefix_length)) for start, end in encoding.offsets]
        return TokenizedText(
            [*first.ids, *encoding.ids, *last.ids],
            [*first.tokens, *encoding.tokens, *last.tokens],
            [*first.offsets, *offsets, *last.offsets],
            truncated,
        )

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's string for each id; empty for an id without one."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]

    def _with_prefixes(self, texts: Sequence[str], input_types: Sequence[InputType] | InputType) -> list[str]:
        if not any(self._prefixes.values()):
            return list(texts)
        if isinstance(input_types, InputType):
            prefix = self._prefixes[input_types]
            return [prefix + text for text in texts] if prefix else list(texts)
        return [self._prefixes[kind] + text for text, kind in zip(texts, input_types, strict=True)]


def token_count(packed: bytes) -> int:
    """How many token ids are packed."""
    return len(packed) // _ID_BYTES


def truncate(packed: bytes, limit: int, truncation: Truncation) -> bytes:
    """
    Shortens packed ids that begin with <s> and end with </s> to `limit` tokens, both kept.

    RIGHT equals Hugging Face's truncation to `max_length` with special tokens; LEFT is its mirror image.
    """
    if token_count(packed) <= limit:
        return packed
    kept = (limit - 1) * _ID_BYTES
    if truncation is Truncation.LEFT:
        return packed[:_ID_BYTES] + packed[-kept:]
    return packed[:kept] + packed[-_ID_BYTES:]
