"""
The spine of one model version: admission, tokenizer, queue, engines.

A request is one coroutine that waits for one future. In between it is carried as slices over flat arrays; nothing is
allocated per text, and each hop between threads serves all requests that are ready.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from trivec_server.backends.interface import EngineInfo
from trivec_server.errors import DeadlineExceeded, InvalidRequest, Overloaded, TrivecError, Unavailable
from trivec_server.logs import get_logger
from trivec_server.metrics import ModelMetrics
from trivec_server.serving.batcher import Batch, Batcher
from trivec_server.serving.device import Device
from trivec_server.serving.encode import bytes_per_row
from trivec_server.serving.engine_roster import EngineCounts, EngineRoster
from trivec_server.serving.request import EmbedResult, EmbedTask
from trivec_server.serving.selection import BatchLimits
from trivec_server.serving.statistics import ModelStatistics
from trivec_server.serving.ticket import Ticket
from trivec_server.serving.tokenizer import TokenizedText, Tokenizer
from trivec_server.serving.tokenizing import SliceMaker
from trivec_server.settings import Limits
from trivec_server.types import BatchingSettings, InputType, Mode, QueuePolicy, TimeoutAction, Truncation

_log = get_logger(__name__)

_MIN_RETRY_AFTER_S = 0.05
_MAX_RETRY_AFTER_S = 5.0
_GATHER_S = 0.002
_MAX_GAP_S = 4 * _GATHER_S
_GAP_SMOOTHING = 0.05
_BYTES_PER_TEXT = 64
_EXTRA_TOKENS = 8
_BYTES_PER_SPARSE_ENTRY = 7


@dataclass(slots=True)
class _Admitted:
    """What the requests under way add up to. Owned by the event loop."""

    requests: int = 0
    texts: int = 0
    size_bytes: int = 0
    held_bytes: int = 0


class Pipeline:
    """Embeds with one model version. Its methods are for the event loop; `start` and `close` end its threads."""

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Tokenizer,
        devices: Sequence[Device],
        info: EngineInfo,
        batching: BatchingSettings,
        max_tokens: int,
        limits: Limits,
        metrics: ModelMetrics,
        statistics: ModelStatistics | None = None,
        on_change: Callable[[EngineCounts], None] = lambda _: None,
    ) -> None:
        """`on_change` is called on the event loop as engines die, are at work again, or are given up."""
        self._loop = asyncio.get_running_loop()
        self._tokenizer = tokenizer
        self._tokenize_turn = asyncio.Lock()
        self._devices = devices
        self._roster = EngineRoster(len(devices), metrics, on_change)
        self._info = info
        self._batching = batching
        self._max_tokens = max_tokens
        self._limits = limits
        self._metrics = metrics
        self.statistics = statistics or ModelStatistics()
        self._admitted = _Admitted()
        self._tickets: set[Ticket] = set()
        self._closing = False
        self._discarding = False
        self._outgoing: list[Ticket] = []
        self._last_arrival = 0.0
        self._mean_gap_s = _MAX_GAP_S
        slice_maker = SliceMaker(
            tokenizer,
            max_tokens=max_tokens,
            vocabulary_size=info.vocabulary_size,
            result_bytes=self.result_bytes,
            fail=self._fail_from_thread,
            metrics=metrics,
        )
        self._batcher = Batcher(name, _batch_limits(batching, info), slice_maker)
        metrics.token_budget.set(self._batcher.token_budget)
        metrics.pending_requests.set_function(lambda: self.pending_requests)
        metrics.queued_tokens.set_function(lambda: self.queued_tokens)

    def start(self) -> None:
        """Starts the batcher's thread and lets the devices pull batches."""
        self._batcher.start()
        for device in self._devices:
            device.serve(self._batcher, self._metrics, self)

    async def close(self) -> None:
        """Refuses new requests, serves those under way, ends the threads and closes the engines."""
        self._closing = True
        self._flush()
        await asyncio.to_thread(self._batcher.close)
        for device in self._devices:
            await asyncio.to_thread(device.join)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that this pipeline lives on."""
        return self._loop

    def device_lost(self, name: str) -> None:
        """An engine has died and is being built anew. What it had begun is computed again; new requests wait."""
        self._roster.lost(name)

    def device_restored(self, name: str) -> None:
        """An engine is at work again."""
        self._roster.restored(name)

    def device_failed(self, name: str, reason: str) -> None:
        """An engine is gone for good. With the last one, all requests are refused, those under way too."""
        self._roster.failed(name, reason)
        if self._roster.all_failed:
            self._closing = True
            for ticket in list(self._tickets):
                _fail(ticket, Unavailable("the engine of this model has failed; send the request to another server"))

    def take_over(self, batches: Iterable[Batch]) -> bool:
        """Puts a dead engine's batches back into the queue if others serve it. Called on that engine's thread."""
        if self._closing or not self._roster.has_others:
            return False
        self._batcher.give_back([pending for batch in batches for pending in batch.slices])
        return True

    @property
    def pending_requests(self) -> int:
        """Requests under way."""
        return self._admitted.requests

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a batch."""
        return self._batcher.queued_tokens

    async def embed(self, task: EmbedTask, *, is_continuation: bool = False) -> EmbedResult:
        """
        Embeds the task's texts. Cancelling it drops what is not computed yet and disturbs no other request. With
        `is_continuation` it is a further portion of a request that was admitted, and not refused for load.

        Raises:
            InvalidRequest: a text is too long, an id out of range, a priority unknown.
            Overloaded: a limit on queued work is reached.
            ResponseTooLarge: the result would exceed `task.max_result_bytes`.
            DeadlineExceeded: the task's deadline or the queue's timeout passed.
            ComputeError: the engine failed.
            Unavailable: the model is being unloaded.
        """
        level = self._priority_level(task)
        policy = self._batching.priority_queue_policies.get(level, self._batching.queue_policy)
        held_bytes = self.held_bytes(task)
        if self._closing:
            raise Unavailable("the model is being unloaded; send the request again")
        if not is_continuation:
            self._check_admission(task, held_bytes, level, policy)
        ticket = Ticket(task, level, self._loop.create_future())
        if policy.timeout_us and policy.timeout_action is TimeoutAction.DELAY:
            ticket.delay_s = policy.timeout_us / 1e6
        self._enter(ticket, held_bytes)
        try:
            self._send(ticket)
            if task.deadline is None and not policy.timeout_us:
                await ticket.future
            else:
                await self._outcome(ticket, policy)
        finally:
            self._leave(ticket, held_bytes)
        self._metrics.queue_duration_s.observe(ticket.queue_s)
        if ticket.truncated_count:
            _log.info("texts truncated", request_id=task.request_id, texts=ticket.truncated_count)
        return ticket.result()

    async def tokenize(
        self, texts: Sequence[str], input_type: InputType, limit: int, truncation: Truncation
    ) -> list[TokenizedText]:
        """
        Tokenizes texts one by one on a thread, one request at a time; counts against the same limits as `embed`.

        Raises:
            InvalidRequest: with Truncation.ERROR, a text has more tokens than `limit`.
            Overloaded: a limit on queued work is reached.
        """
        size_bytes = sum(map(len, texts))
        admitted, limits = self._admitted, self._limits
        if admitted.requests and admitted.size_bytes + size_bytes > limits.max_queued_bytes:
            self._refuse(f"{admitted.size_bytes:,} bytes are under way; the limit is {limits.max_queued_bytes:,}")
        admitted.requests += 1
        admitted.size_bytes += size_bytes
        try:
            async with self._tokenize_turn:
                tokenized = []
                for index, text in enumerate(texts):
                    result = await asyncio.to_thread(self._tokenizer.tokenize, text, input_type, limit, truncation)
                    if result.truncated and truncation is Truncation.ERROR:
                        what = f"has {len(result.ids)} tokens, more than the {limit} allowed"
                        raise InvalidRequest(f"texts[{index}]", f"{what}; shorten it or set `truncation`")
                    tokenized.append(result)
                return tokenized
        finally:
            admitted.requests -= 1
            admitted.size_bytes -= size_bytes

    def result_bytes(self, task: EmbedTask, texts: int, tokens: int) -> int:
        """An upper estimate of the bytes of a response with so many texts and tokens."""
        size = texts * _BYTES_PER_TEXT
        if Mode.DENSE in task.modes:
            size += texts * bytes_per_row(self._info.dense_dimension, task.encoding)
        if Mode.SPARSE in task.modes:
            size += tokens * _BYTES_PER_SPARSE_ENTRY
        if Mode.MULTI_VECTOR in task.modes:
            size += (tokens - texts) * bytes_per_row(self._info.multi_vector_dimension, task.encoding)
        return size

    def held_bytes(self, task: EmbedTask) -> int:
        """About what the task's result takes in memory, before anything is tokenized."""
        if task.modes is Mode.DENSE:
            return task.text_count * self._info.dense_dimension * 4
        return sum(self.held_bytes_of_text(task, len(sequence)) for sequence in task.texts or task.token_ids)

    def held_bytes_of_text(self, task: EmbedTask, length: int) -> int:
        """
        About what the result of one text of so many characters takes: float32 whatever its encoding, and a text has
        hardly more tokens than characters.
        """
        tokens = min(length + _EXTRA_TOKENS, task.max_tokens or self._max_tokens)
        size = self._info.dense_dimension * 4 if Mode.DENSE in task.modes else 0
        if Mode.SPARSE in task.modes:
            size += tokens * 8
        if Mode.MULTI_VECTOR in task.modes:
            size += tokens * self._info.multi_vector_dimension * 4
        return size

    def _priority_level(self, task: EmbedTask) -> int:
        levels = max(1, self._batching.priority_levels)
        if task.priority > levels:
            raise InvalidRequest("priority", f"is {task.priority}; this model has levels 1 to {levels}")
        return task.priority or self._batching.default_priority_level or 1

    def _check_admission(self, task: EmbedTask, held_bytes: int, level: int, policy: QueuePolicy) -> None:
        admitted, limits = self._admitted, self._limits
        if admitted.requests:
            if admitted.texts + task.text_count > limits.max_queued_texts:
                self._refuse(f"{admitted.texts} texts are under way; the limit is {limits.max_queued_texts}")
            if admitted.size_bytes + task.size_bytes > limits.max_queued_bytes:
                self._refuse(f"{admitted.size_bytes:,} bytes are under way; the limit is {limits.max_queued_bytes:,}")
            if admitted.held_bytes + held_bytes > limits.max_held_bytes:
                self._refuse(
                    f"results of {admitted.held_bytes:,} bytes are held; the limit is {limits.max_held_bytes:,}"
                )
            if self._batcher.queued_tokens >= limits.max_queued_tokens:
                self._refuse(f"{self._batcher.queued_tokens:,} tokens wait; the limit is {limits.max_queued_tokens:,}")
        if policy.max_queue_size:
            waiting = sum(1 for ticket in self._tickets if ticket.level == level and not ticket.started)
            if waiting >= policy.max_queue_size:
                self._refuse(f"{waiting} requests wait; the model's max_queue_size is {policy.max_queue_size}")

    def _refuse(self, reason: str) -> None:
        self._metrics.rejected_requests.inc()
        retry_after_s = min(max(self._batcher.backlog_s / 2, _MIN_RETRY_AFTER_S), _MAX_RETRY_AFTER_S)
        raise Overloaded(f"overloaded: {reason}; send the request again later", retry_after_s=retry_after_s)

    async def _outcome(self, ticket: Ticket, policy: QueuePolicy) -> None:
        """Waits until the ticket is done. The queue's timeout and the deadline end the wait on their own."""
        timer = None
        if policy.timeout_us and policy.timeout_action is TimeoutAction.REJECT:
            timer = self._loop.call_later(policy.timeout_us / 1e6, _expire, ticket, policy.timeout_us)
        try:
            if ticket.task.deadline is None:
                await ticket.future
            else:
                async with asyncio.timeout_at(ticket.task.deadline):
                    await ticket.future
        except TimeoutError as error:
            raise DeadlineExceeded("the deadline passed before the request was done") from error
        finally:
            if timer is not None:
                timer.cancel()

    def _send(self, ticket: Ticket) -> None:
        """
        Hands the ticket to the batcher. While requests arrive by the hundreds a second, it waits 2 ms for the next
        ones, because each hop between threads costs more than all else that is done for a short text.
        """
        self._outgoing.append(ticket)
        gap_s = min(ticket.admitted_at - self._last_arrival, _MAX_GAP_S)
        self._last_arrival = ticket.admitted_at
        self._mean_gap_s += _GAP_SMOOTHING * (gap_s - self._mean_gap_s)
        if len(self._outgoing) == 1:
            if self._mean_gap_s < _GATHER_S:
                self._loop.call_later(_GATHER_S, self._flush)
            else:
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._outgoing:
            self._batcher.submit(self._outgoing)
            self._outgoing = []

    def _enter(self, ticket: Ticket, held_bytes: int) -> None:
        self._tickets.add(ticket)
        self._admitted.requests += 1
        self._admitted.texts += ticket.task.text_count
        self._admitted.size_bytes += ticket.task.size_bytes
        self._admitted.held_bytes += held_bytes

    def _leave(self, ticket: Ticket, held_bytes: int) -> None:
        """Undoes `_enter`; work that is left of a request which did not succeed is dropped at once."""
        self._tickets.discard(ticket)
        self._admitted.requests -= 1
        self._admitted.texts -= ticket.task.text_count
        self._admitted.size_bytes -= ticket.task.size_bytes
        self._admitted.held_bytes -= held_bytes
        if not ticket.is_complete:
            ticket.abandoned = True
            self._discard_soon()
            if not ticket.started and _has_nobody_waiting(ticket.future):
                self._metrics.dropped_requests.inc()

    def _discard_soon(self) -> None:
        """Takes abandoned work out of the queue, once for all requests that end in this turn of the event loop."""
        if not self._discarding:
            self._discarding = True
            self._loop.call_soon(self._discard)

    def _discard(self) -> None:
        self._discarding = False
        self._batcher.discard_abandoned()

    def _fail_from_thread(self, ticket: Ticket, error: TrivecError) -> None:
        self._loop.call_soon_threadsafe(_fail, ticket, error)


def _has_nobody_waiting(future: "asyncio.Future[None]") -> bool:
    """Whether a future ended by cancellation, deadline or timeout, and not by a fault."""
    return not future.done() or future.cancelled() or isinstance(future.exception(), DeadlineExceeded)


def _fail(ticket: Ticket, error: TrivecError) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(error)


def _expire(ticket: Ticket, timeout_us: int) -> None:
    """The queue's timeout: concerns only a request of which nothing has been computed."""
    if not ticket.started:
        _fail(ticket, DeadlineExceeded(f"waited longer than the queue's timeout of {timeout_us} us"))


def _batch_limits(batching: BatchingSettings, info: EngineInfo) -> BatchLimits:
    return BatchLimits(
        token_budget=batching.token_budget or info.token_budget,
        max_rows=batching.max_batch_size,
        preferred_rows=min(batching.preferred_batch_sizes, default=batching.max_batch_size),
        max_delay_s=batching.max_queue_delay_us / 1e6,
        pads=info.pads,
        hidden_size=info.dense_dimension,
    )
