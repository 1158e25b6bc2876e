"""
The thread between admission and the batcher: it tokenizes the texts of all requests that wait, together.

One thread suffices because the tokenizer itself spreads a batch of texts over the cores, outside the GIL; a hop per
request to a pool of threads costs more than tokenizing a short text does.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from trivec_server.errors import ComputeError, InvalidRequest, ResponseTooLarge, TrivecError
from trivec_server.logs import get_logger
from trivec_server.serving.batcher import Batcher
from trivec_server.serving.request import EmbedTask
from trivec_server.serving.ticket import Pending, Ticket
from trivec_server.serving.tokenizer import Tokenizer, truncate
from trivec_server.types import CLS_TOKEN_ID, EOS_TOKEN_ID, InputType, Truncation

_log = get_logger(__name__)

_ROUND_CHARACTERS = 256 * 1024


@dataclass(slots=True)
class _Progress:
    """A ticket and how many of its texts are tokenized."""

    ticket: Ticket
    done: int = 0


@dataclass(frozen=True, slots=True)
class _Share:
    """The part of a ticket that one round tokenizes: texts `start` to `end`."""

    progress: _Progress
    start: int
    end: int


class TokenizingThread:
    """
    Owns the requests between admission and queue. A round takes at most 256 Ki characters (one text at least), in turn
    from every request, so that a large request does not hold up a small one; what is tokenized goes to the batcher at
    once, while the rest of its request is still being tokenized.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        batcher: Batcher,
        *,
        name: str,
        max_tokens: int,
        vocabulary_size: int,
        result_bytes: Callable[[EmbedTask, int, int], int],
        fail: Callable[[Ticket, TrivecError], None],
    ) -> None:
        """
        `result_bytes(task, texts, tokens)` estimates the size of a response; `fail` ends a ticket, from this thread.
        """
        self._tokenizer = tokenizer
        self._batcher = batcher
        self._max_tokens = max_tokens
        self._vocabulary_size = vocabulary_size
        self._result_bytes = result_bytes
        self._fail = fail
        self._inbox: deque[_Progress] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def put(self, ticket: Ticket) -> None:
        """Adds a request. Does not block."""
        with self._changed:
            self._inbox.append(_Progress(ticket))
            self._changed.notify()

    def close(self) -> None:
        """Lets the thread end once all requests are tokenized."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self) -> None:
        """Waits for the thread's end."""
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._inbox or self._closing)
                if not self._inbox:
                    return
                shares = self._take_round()
            try:
                self._tokenize(shares)
            except Exception:  # noqa: BLE001 - concerns these requests only; the thread goes on
                _log.exception("tokenizer failed")
                for share in shares:
                    self._fail_share(share, ComputeError("the tokenizer failed on this request"))
            del shares

    def _take_round(self) -> list[_Share]:
        """Takes shares of waiting requests until the round is full; unfinished requests go to the end of the line."""
        shares: list[_Share] = []
        characters = 0
        for _ in range(len(self._inbox)):
            if characters >= _ROUND_CHARACTERS:
                break
            progress = self._inbox.popleft()
            task = progress.ticket.task
            if progress.ticket.abandoned:
                continue
            start = progress.done
            sequences = task.texts or task.token_ids
            if task.size_bytes + characters <= _ROUND_CHARACTERS and start == 0:
                # The common case: all of a small request.
                progress.done = task.count
                characters += task.size_bytes
            else:
                while progress.done < task.count and (characters < _ROUND_CHARACTERS or progress.done == start):
                    characters += len(sequences[progress.done])
                    progress.done += 1
            shares.append(_Share(progress, start, progress.done))
            if progress.done < task.count:
                self._inbox.append(progress)
        return shares

    def _tokenize(self, shares: list[_Share]) -> None:
        texts: list[str] = []
        kinds: list[InputType] = []
        for share in shares:
            task = share.progress.ticket.task
            if task.texts:
                texts.extend(task.texts[share.start : share.end])
                kinds.extend(task.input_type(i) for i in range(share.start, share.end))
        sequences = iter(self._tokenizer.encode(texts, kinds) if texts else ())
        slices = []
        now = time.monotonic()
        for share in shares:
            task = share.progress.ticket.task
            try:
                if task.texts:
                    pending = self._slice(share, [next(sequences) for _ in range(share.end - share.start)])
                else:
                    pending = self._slice(share, [self._checked_ids(task, i) for i in range(share.start, share.end)])
            except TrivecError as error:
                self._fail_share(share, error)
                continue
            share.progress.ticket.tokenized_at = now
            pending.enqueued_at = now
            delay_s = share.progress.ticket.delay_s
            pending.delay_at = None if delay_s is None else now + delay_s
            slices.append(pending)
        if slices:
            self._batcher.put(slices)

    def _slice(self, share: _Share, sequences: list[list[int]]) -> Pending:
        """Cuts the sequences to length and lays them flat; notes lengths on the ticket."""
        ticket = share.progress.ticket
        task = ticket.task
        limit = task.max_tokens or self._max_tokens
        for offset, ids in enumerate(sequences):
            index = share.start + offset
            if len(ids) > limit:
                if task.truncation is Truncation.ERROR:
                    raise InvalidRequest(
                        task.field(index),
                        f"has {len(ids)} tokens, more than the {limit} allowed; shorten it or set `truncation`",
                    )
                sequences[offset] = truncate(ids, limit, task.truncation)
                ticket.truncated[index] = True
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        ticket.lengths[share.start : share.end] = lengths
        total = int(lengths.sum())
        self._check_result_size(ticket)
        token_ids = np.fromiter(chain.from_iterable(sequences), np.int64, count=total)
        return Pending(ticket, token_ids, lengths, np.arange(share.start, share.end), enqueued_at=0.0)

    def _checked_ids(self, task: EmbedTask, index: int) -> list[int]:
        """The caller's own ids of one text."""
        ids = list(task.token_ids[index])
        field = task.field(index)
        if len(ids) < 2 or ids[0] != CLS_TOKEN_ID or ids[-1] != EOS_TOKEN_ID:
            raise InvalidRequest(field, f"must begin with {CLS_TOKEN_ID} (<s>) and end with {EOS_TOKEN_ID} (</s>)")
        largest = max(ids)
        if largest >= self._vocabulary_size:
            at = ids.index(largest)
            raise InvalidRequest(f"{field}.ids[{at}]", f"is {largest}; must be below {self._vocabulary_size}")
        return ids

    def _check_result_size(self, ticket: Ticket) -> None:
        task = ticket.task
        if task.max_result_bytes is None:
            return
        size = self._result_bytes(task, task.count, int(ticket.lengths.sum()))
        if size > task.max_result_bytes:
            raise ResponseTooLarge(
                f"the response would have about {size:,} bytes, more than the {task.max_result_bytes:,} allowed; send "
                "fewer texts, ask for a smaller `encoding`, or use EmbedStream"
            )

    def _fail_share(self, share: _Share, error: TrivecError) -> None:
        ticket = share.progress.ticket
        # The thread itself must not tokenize the rest of the request; the event loop hears of it a moment later.
        ticket.abandoned = True
        self._fail(ticket, error)
