"""
One version of an embedding model: texts through the tokenizer, the queue and the engines, and embeddings out.

Requests are carried as slices over flat arrays; nothing is allocated per text.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from trivec_server.backends.interface import Engine, EngineInfo
from trivec_server.errors import InvalidRequest, TrivecError
from trivec_server.logs import get_logger
from trivec_server.metrics import ModelMetrics
from trivec_server.metrics.statistics import ModelStatistics
from trivec_server.serving.batch_run import deliver
from trivec_server.serving.batcher import Batcher
from trivec_server.serving.cache.model_cache import ModelCache
from trivec_server.serving.device import Device
from trivec_server.serving.embed_run import EmbedRunner
from trivec_server.serving.encode import bytes_per_row
from trivec_server.serving.engine_roster import EngineCounts
from trivec_server.serving.request import EmbedResult, EmbedTask
from trivec_server.serving.selection import BatchLimits
from trivec_server.serving.spine import Load, Spine
from trivec_server.serving.ticket import EmbedTicket
from trivec_server.serving.tokenizer import TokenizedText, Tokenizer
from trivec_server.serving.tokenizing import TextInbox, TextSliceMaker
from trivec_server.settings import Limits
from trivec_server.types import BatchingSettings, InputType, Mode, Truncation

_log = get_logger(__name__)

_BYTES_PER_TEXT = 64
_EXTRA_TOKENS = 8
_BYTES_PER_TOKEN = 4
"""Of a request, in most languages; only its magnitude counts."""
_BYTES_PER_SPARSE_ENTRY = 7


class Pipeline:
    """Embeds with one model version. Its methods are for the event loop; `start` and `close` end its threads."""

    def __init__(
        self,
        *,
        name: str,
        tokenizer: Tokenizer,
        devices: Sequence[Device[EmbedTicket, Engine]],
        info: EngineInfo,
        batching: BatchingSettings,
        max_tokens: int,
        limits: Limits,
        metrics: ModelMetrics,
        statistics: ModelStatistics | None = None,
        cache: ModelCache | None = None,
        on_change: Callable[[EngineCounts], None] = lambda _: None,
    ) -> None:
        """`on_change` is called on the event loop as engines die, are at work again, or are given up."""
        loop = asyncio.get_running_loop()
        self._tokenizer = tokenizer
        self._tokenize_turn = asyncio.Lock()
        self._info = info
        self._max_tokens = max_tokens
        self._limits = limits
        self.statistics = statistics or ModelStatistics()
        slice_maker = TextSliceMaker(
            tokenizer,
            max_tokens=max_tokens,
            vocabulary_size=info.vocabulary_size,
            result_bytes=self.result_bytes,
            fail=self._fail_from_thread,
            metrics=metrics,
            cache=cache,
            finish=lambda tickets: deliver(loop, tickets, ()),
        )
        batcher = Batcher(name, _batch_limits(batching, info), TextInbox(), slice_maker)
        self._spine = Spine(
            batcher=batcher,
            devices=devices,
            make_runner=lambda engine: EmbedRunner(engine, batcher, metrics, self.statistics, loop, cache),
            batching=batching,
            limits=limits,
            metrics=metrics,
            statistics=self.statistics,
            on_change=on_change,
        )
        self._batcher = batcher

    def start(self) -> None:
        """Starts the batcher's thread and lets the devices pull batches."""
        self._spine.start()

    async def close(self) -> None:
        """Waits until nobody uses the version, refuses new requests, ends the threads and closes the engines."""
        await self._spine.close()

    def load(self) -> Load:
        """How busy it is."""
        return self._spine.load()

    def in_use(self) -> AbstractContextManager[None]:
        """While it lasts, the version is not closed: for whoever has resolved it and is not done with it."""
        return self._spine.in_use()

    @property
    def pending_requests(self) -> int:
        """Requests under way."""
        return self._spine.admitted.requests

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
            QueueTimeout: the queue's timeout passed.
            DeadlineExceeded: the task's deadline passed.
            ComputeError: the engine failed.
            Unavailable: the model is being unloaded.
        """
        ticket = EmbedTicket(task, self._spine.level_of(task.priority), self._spine.loop.create_future())
        await self._spine.run(
            ticket,
            held_bytes=self.held_bytes(task),
            timeout_us=task.timeout_us,
            is_continuation=is_continuation,
            expected_tokens=task.size_bytes // _BYTES_PER_TOKEN,
        )
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
        admitted, limits = self._spine.admitted, self._limits
        if admitted.requests and admitted.size_bytes + size_bytes > limits.max_queued_bytes:
            self._spine.admission.refuse(
                f"{admitted.size_bytes:,} bytes are under way; the limit is {limits.max_queued_bytes:,}"
            )
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

    def _fail_from_thread(self, ticket: EmbedTicket, error: TrivecError) -> None:
        self._spine.fail_from_thread(ticket, error)


def _batch_limits(batching: BatchingSettings, info: EngineInfo) -> BatchLimits:
    return BatchLimits(
        token_budget=batching.token_budget or info.token_budget,
        max_rows=batching.max_batch_size,
        preferred_rows=min(batching.preferred_batch_sizes, default=batching.max_batch_size),
        max_delay_s=batching.max_queue_delay_us / 1e6,
        pads=info.pads,
        hidden_size=info.dense_dimension,
    )
