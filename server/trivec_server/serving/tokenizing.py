"""
Requests between admission and the queue: whose texts are tokenized next, and what becomes of them.

Nothing here has a thread of its own; `batcher.py` calls it from whichever thread is free. One round at a time
suffices because the tokenizer itself spreads a batch of texts over the cores, outside the GIL; a hop per request to a
pool of threads costs more than tokenizing a short text does.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from trivec_server.errors import ComputeError, InvalidRequest, ResponseTooLarge, TrivecError
from trivec_server.logs import get_logger
from trivec_server.metrics import ModelMetrics
from trivec_server.serving.cache.model_cache import ModelCache
from trivec_server.serving.request import EmbedTask
from trivec_server.serving.ticket import EmbedTicket, Pending, Share
from trivec_server.serving.tokenizer import Tokenizer, token_count, truncate
from trivec_server.serving.word_cache import pack_ids
from trivec_server.types import CLS_TOKEN_ID, EOS_TOKEN_ID, InputType, Truncation

_log = get_logger(__name__)

_ROUND_CHARACTERS = 256 * 1024
_ID_BYTES = 8


@dataclass(slots=True)
class _Progress:
    """A ticket and how many of its texts are tokenized."""

    ticket: EmbedTicket
    done: int = 0


class TextInbox:
    """
    Requests whose texts are not all tokenized. Not thread-safe: the batcher's lock guards it.

    A round takes at most 256 Ki characters (one text at least), in turn from every request, so that a large request
    does not hold up a small one; what is tokenized can be computed while the rest of its request is being tokenized.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Progress] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, tickets: Sequence[EmbedTicket]) -> None:
        """Puts requests at the end of the line."""
        self._waiting.extend(map(_Progress, tickets))

    def take_round(self) -> list[Share[EmbedTicket]]:
        """Takes shares of waiting requests until the round is full; unfinished requests go to the end of the line."""
        shares: list[Share[EmbedTicket]] = []
        characters = 0
        for _ in range(len(self._waiting)):
            if characters >= _ROUND_CHARACTERS:
                break
            progress = self._waiting.popleft()
            ticket = progress.ticket
            if ticket.abandoned:
                continue
            start = progress.done
            if start == 0 and ticket.task.size_bytes + characters <= _ROUND_CHARACTERS:
                # The common case: all of a small request.
                progress.done = ticket.task.text_count
                characters += ticket.task.size_bytes
            else:
                characters += _advance(progress, _ROUND_CHARACTERS - characters)
            shares.append(Share(ticket, start, progress.done))
            if progress.done < ticket.task.text_count:
                self._waiting.append(progress)
        return shares


class TextSliceMaker:
    """Tokenizes shares of requests into slices for the queue. Used by one thread at a time."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        vocabulary_size: int,
        result_bytes: Callable[[EmbedTask, int, int], int],
        fail: Callable[[EmbedTicket, TrivecError], None],
        metrics: ModelMetrics,
        cache: ModelCache | None = None,
        finish: Callable[[Sequence[EmbedTicket]], None] = lambda _: None,
    ) -> None:
        """
        `result_bytes(task, texts, tokens)` estimates the size of a response; `fail` ends a ticket, `finish` those whose
        results were all in the cache; both are thread-safe.
        """
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._vocabulary_size = vocabulary_size
        self._result_bytes = result_bytes
        self._fail = fail
        self._metrics = metrics
        self._cache = cache
        self._finish = finish

    def make(self, shares: Sequence[Share[EmbedTicket]]) -> list[Pending[EmbedTicket]]:
        """The slices of one round. A request that is at fault fails alone."""
        started_at = time.monotonic()
        try:
            sequences = iter(self._encode(shares))
        except BaseException as error:  # noqa: BLE001 - a panic in the tokenizer's native code is no Exception
            if len(shares) > 1:
                # The fault is in one of them: each on its own.
                return [pending for share in shares for pending in self.make([share])]
            self._fail_ticket(shares[0].ticket, error, "the tokenizer")
            return []
        slices = []
        now = time.monotonic()
        for share in shares:
            task = share.ticket.task
            try:
                if task.texts:
                    packed = list(islice(sequences, share.end - share.start))
                else:
                    packed = [self._checked_ids(task, index) for index in range(share.start, share.end)]
                slices.append(self._slice(share, packed, now))
            except Exception as error:  # noqa: BLE001 - concerns this request only; the thread goes on
                self._fail_ticket(share.ticket, error, "the tokenizer")
        self._metrics.tokenize_duration_s.observe(time.monotonic() - started_at)
        return slices if self._cache is None or not slices else self._take_from_cache(slices, self._cache)

    def _take_from_cache(self, slices: Sequence[Pending[EmbedTicket]], cache: ModelCache) -> list[Pending[EmbedTicket]]:
        """Gives requests the rows that are known, in one look for all; returns what is left to compute."""
        keys = [cache.key(pending.ticket.task, ids) for pending in slices for ids in pending.sequences()]
        try:
            found = iter(cache.look_up(keys))
        except Exception as error:  # noqa: BLE001 - nothing is lost by it; the thread goes on
            _log.error("the response cache failed: texts are computed", exc_info=error)
            return list(slices)
        left: list[Pending[EmbedTicket]] = []
        finished: list[EmbedTicket] = []
        for pending in slices:
            ticket = pending.ticket
            rows = list(islice(found, len(pending.rows)))
            known = [index for index, row in enumerate(rows) if row is not None]
            if not known:
                left.append(pending)
                continue
            try:
                hit, rest = pending.split(np.array(known))
                if ticket.complete_cached(hit.rows, [row for row in rows if row is not None]):
                    finished.append(ticket)
            except Exception as error:  # noqa: BLE001 - for lack of memory; concerns this request only
                self._fail_ticket(ticket, error, "the response cache")
                continue
            if rest is not None:
                left.append(rest)
        if finished:
            self._finish(finished)
        return left

    def _encode(self, shares: Sequence[Share[EmbedTicket]]) -> list[bytes]:
        """The packed sequences of all texts in the shares."""
        texts: list[str] = []
        kinds: list[InputType] = []
        for share in shares:
            task = share.ticket.task
            if task.texts:
                texts.extend(task.texts[share.start : share.end])
                kinds.extend(task.input_types_of(share.start, share.end))
        return self._tokenizer.encode(texts, kinds) if texts else []

    def _slice(self, share: Share[EmbedTicket], sequences: list[bytes], now: float) -> Pending[EmbedTicket]:
        """Cuts the packed sequences to length and lays them flat; notes lengths on the ticket."""
        ticket = share.ticket
        task = ticket.task
        limit = task.max_tokens or self._max_tokens
        if max(map(len, sequences)) > limit * _ID_BYTES:
            self._truncate(share, sequences, limit)
        lengths = np.array([len(packed) for packed in sequences]) // _ID_BYTES
        token_ids = np.frombuffer(b"".join(sequences), np.int64)
        ticket.lengths[share.start : share.end] = lengths
        ticket.tokens += len(token_ids)
        ticket.enter_queue(now)
        self._check_result_size(ticket)
        delay_at = None if ticket.delay_s is None else now + ticket.delay_s
        return Pending(ticket, token_ids, lengths, np.arange(share.start, share.end), now, delay_at)

    def _truncate(self, share: Share[EmbedTicket], sequences: list[bytes], limit: int) -> None:
        ticket = share.ticket
        for offset, packed in enumerate(sequences):
            count = token_count(packed)
            if count <= limit:
                continue
            index = share.start + offset
            if ticket.task.truncation is Truncation.ERROR:
                raise InvalidRequest(
                    ticket.task.field(index),
                    f"has {count} tokens, more than the {limit} allowed; shorten it or set `truncation`",
                )
            sequences[offset] = truncate(packed, limit, ticket.task.truncation)
            ticket.truncated[index] = True
            ticket.truncated_count += 1
            self._metrics.truncated_texts.inc()

    def _checked_ids(self, task: EmbedTask, index: int) -> bytes:
        """The caller's own ids of one text, packed."""
        ids = list(task.token_ids[index])
        field = task.field(index)
        if len(ids) < 2 or ids[0] != CLS_TOKEN_ID or ids[-1] != EOS_TOKEN_ID:
            raise InvalidRequest(field, f"must begin with {CLS_TOKEN_ID} (<s>) and end with {EOS_TOKEN_ID} (</s>)")
        largest = max(ids)
        if largest >= self._vocabulary_size:
            at = ids.index(largest)
            raise InvalidRequest(f"{field}.ids[{at}]", f"is {largest}; must be below {self._vocabulary_size}")
        return pack_ids(ids)

    def _check_result_size(self, ticket: EmbedTicket) -> None:
        task = ticket.task
        if task.max_result_bytes is None:
            return
        size = self._result_bytes(task, task.text_count, ticket.tokens)
        if size > task.max_result_bytes:
            raise ResponseTooLarge(
                f"the response would have about {size:,} bytes, more than the {task.max_result_bytes:,} allowed; send "
                "fewer texts, ask for a smaller `encoding`, or use EmbedStream"
            )

    def _fail_ticket(self, ticket: EmbedTicket, error: BaseException, what: str) -> None:
        # The rest of the request must not be tokenized; the event loop hears of it a moment later.
        ticket.abandoned = True
        if not isinstance(error, TrivecError):
            _log.error(f"{what} failed", request_id=ticket.task.request_id, exc_info=error)
            error = ComputeError(f"{what} failed on this request")
        self._fail(ticket, error)


def _advance(progress: _Progress, characters: int) -> int:
    """Moves a large request on by about so many characters, one text at least; returns how many it took."""
    task = progress.ticket.task
    sequences = task.texts or task.token_ids
    taken = len(sequences[progress.done])
    progress.done += 1
    while progress.done < task.text_count and taken < characters:
        taken += len(sequences[progress.done])
        progress.done += 1
    return taken
