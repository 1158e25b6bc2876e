"""Splits texts into requests that keep the server's limits."""

from dataclasses import dataclass, replace

from trivec_client.models import ModelInfo
from trivec_client.requests import EmbedOptions
from trivec_client.vectors import row_bytes

_MESSAGE_SLACK_BYTES = 4096
"""Room for the fields beside the texts: names, options, headers."""
_TEXT_OVERHEAD_BYTES = 6
"""A field tag and a length before each text."""
_TEXT_OVERHEAD_TOKENS = 3
"""The special tokens and the word mark that the tokenizer puts before a text."""
_SPARSE_ENTRY_BYTES = 7
"""The longest id of a vocabulary below 2^21 as a varint, and a float32."""
_TOKEN_STRING_BYTES = 64
"""More than a token string of a SentencePiece vocabulary takes."""
_EMBEDDING_OVERHEAD_BYTES = 64
"""Headers of one embedding and its parts."""
_MULTI_VECTOR_REQUEST_BYTES = 32 << 20
"""Multi-vectors of one request: what a broken stream costs to send again, and what each request in flight holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """
    What one request may hold. `max_tokens` bounds the sum over its texts of the most tokens each can have, and is
    passed only by a text that passes it alone; None: no bound.
    """

    max_texts: int
    max_bytes: int
    max_tokens: int | None
    max_tokens_per_text: int


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive texts of the caller's that travel in one request; `first_index` is the first one's position."""

    first_index: int
    texts: list[str]


def text_limits(model: ModelInfo, *, batch_size: int, max_in_flight: int, max_length: int = 0) -> RequestLimits:
    """
    Limits of requests that carry texts, for `max_in_flight` of them at once.

    Args:
        model: whose limits to keep.
        batch_size: texts per request, at most.
        max_in_flight: requests under way at once; together they stay below the server's queue, so that a client alone
            never overloads it by itself.
        max_length: tokens per text after truncation; 0: the model's limit.
    """
    limits = model.limits
    return RequestLimits(
        max_texts=max(1, min(batch_size, limits.max_texts_per_request or batch_size)),
        max_bytes=(limits.max_request_bytes or 4 << 20) - _MESSAGE_SLACK_BYTES,
        max_tokens=limits.max_queued_tokens // max_in_flight if limits.max_queued_tokens else None,
        max_tokens_per_text=min(max_length or limits.max_tokens, limits.max_tokens),
    )


def embed_limits(model: ModelInfo, options: EmbedOptions, *, batch_size: int, max_in_flight: int) -> RequestLimits:
    """As `text_limits`, with the answers bounded too: multi-vectors in all, other answers as one message."""
    limits = text_limits(model, batch_size=batch_size, max_in_flight=max_in_flight, max_length=options.max_length)
    if "multi_vector" in options.modes:
        row = row_bytes(options.wire_encoding, model.multi_vector_dimension) or 1
        rows = max(1, _MULTI_VECTOR_REQUEST_BYTES // row)
        return replace(limits, max_tokens=rows if limits.max_tokens is None else min(rows, limits.max_tokens))
    if not model.limits.max_response_bytes:
        return limits
    answer_bytes = _EMBEDDING_OVERHEAD_BYTES
    if "dense" in options.modes:
        answer_bytes += row_bytes(options.wire_encoding, model.dense_dimension)
    if "sparse" in options.modes:
        entries = min(limits.max_tokens_per_text, options.sparse_top_k or limits.max_tokens_per_text)
        answer_bytes += entries * (_SPARSE_ENTRY_BYTES + (_TOKEN_STRING_BYTES if options.return_tokens else 0))
    fitting = max(1, (model.limits.max_response_bytes - _MESSAGE_SLACK_BYTES) // answer_bytes)
    return replace(limits, max_texts=min(limits.max_texts, fitting))


class Splitter:
    """Gathers texts, one at a time, into parts within the limits."""

    def __init__(self, limits: RequestLimits, field: str) -> None:
        """`field` is the caller's name for the texts, for messages."""
        self._limits = limits
        self._field = field
        self._next_index = 0
        self._begin()

    def add(self, text: str) -> Part | None:
        """
        Takes one more text.

        Returns:
            A part that is full; None while the texts so far fit into one request.

        Raises:
            TypeError: it is no string.
            ValueError: it is not valid Unicode, or longer than a request may be.
        """
        size = self._size(text)
        tokens = min(size + _TEXT_OVERHEAD_TOKENS, self._limits.max_tokens_per_text)
        full = None
        if self._texts and not self._fits(size + _TEXT_OVERHEAD_BYTES, tokens):
            full = self.rest()
        self._texts.append(text)
        self._bytes += size + _TEXT_OVERHEAD_BYTES
        self._tokens += tokens
        self._next_index += 1
        return full

    def rest(self) -> Part | None:
        """The texts since the last part; None if there are none."""
        if not self._texts:
            return None
        part = Part(self._next_index - len(self._texts), self._texts)
        self._begin()
        return part

    def _begin(self) -> None:
        self._texts: list[str] = []
        self._bytes = 0
        self._tokens = 0

    def _fits(self, size: int, tokens: int) -> bool:
        limits = self._limits
        return (
            len(self._texts) < limits.max_texts
            and self._bytes + size <= limits.max_bytes
            and (limits.max_tokens is None or self._tokens + tokens <= limits.max_tokens)
        )

    def _size(self, text: str) -> int:
        where = f"{self._field}[{self._next_index}]"
        if not isinstance(text, str):
            raise TypeError(f"{where}: expected a string, got {type(text).__name__}")
        try:
            size = len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: not valid Unicode at character {error.start}: {error.reason}") from None
        if size + _TEXT_OVERHEAD_BYTES > self._limits.max_bytes:
            raise ValueError(
                f"{where}: {size} bytes are more than the {self._limits.max_bytes} that fit into a request to this "
                "server (its max_request_bytes); split the text"
            )
        return size
