"""One version of a model that takes tensors: the queue and the engines, counting rows."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from trivec_server.backends.tensor_interface import TensorEngineInfo
from trivec_server.metrics import ModelMetrics
from trivec_server.metrics.statistics import ModelStatistics
from trivec_server.serving.admission import Units
from trivec_server.serving.batcher import Batcher
from trivec_server.serving.engine_roster import EngineCounts
from trivec_server.serving.selection import BatchLimits
from trivec_server.serving.spine import Load, Spine
from trivec_server.serving.tensors.batch_run import TensorDevice, TensorRunner
from trivec_server.serving.tensors.intake import RowSliceMaker, TensorInbox
from trivec_server.serving.tensors.layout import BatchLayout
from trivec_server.serving.tensors.request import TensorResult, TensorTask
from trivec_server.serving.tensors.ticket import TensorTicket
from trivec_server.settings import Limits
from trivec_server.types import BatchingSettings, TensorSpec


class TensorPipeline:
    """Infers with one model version. Its methods are for the event loop; `start` and `close` end its threads."""

    def __init__(
        self,
        *,
        name: str,
        devices: Sequence[TensorDevice],
        info: TensorEngineInfo,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batching: BatchingSettings,
        limits: Limits,
        metrics: ModelMetrics,
        statistics: ModelStatistics | None = None,
        on_change: Callable[[EngineCounts], None] = lambda _: None,
    ) -> None:
        """
        `inputs` and `outputs` are what requests give and get. `on_change` is called on the event loop as engines die,
        are at work again, or are given up.
        """
        loop = asyncio.get_running_loop()
        has_batch_dimension = batching.max_batch_size > 0
        self._layout = layout = BatchLayout(inputs, outputs, info, has_batch_dimension=has_batch_dimension)
        self.statistics = statistics or ModelStatistics()
        joins_requests = batching.joins_requests and has_batch_dimension
        slice_maker = RowSliceMaker(inputs, joins_requests=joins_requests)
        self._batcher = batcher = Batcher(
            name, _batch_limits(batching, inputs, joins_requests=joins_requests), TensorInbox(), slice_maker
        )
        self._spine = Spine(
            batcher=batcher,
            devices=devices,
            make_runner=lambda engine: TensorRunner(engine, layout, batcher, metrics, self.statistics, loop),
            batching=batching,
            limits=limits,
            metrics=metrics,
            statistics=self.statistics,
            on_change=on_change,
            units=Units("rows", "rows"),
        )

    def start(self) -> None:
        """Lets the devices pull batches."""
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
    def queued_rows(self) -> int:
        """Rows that wait for a batch."""
        return self._batcher.queued_tokens

    async def infer(self, task: TensorTask) -> TensorResult:
        """
        Computes the task's outputs. Cancelling it drops what is not computed yet and disturbs no other request. A
        priority beyond the model's levels counts as the default one, as in Triton.

        Raises:
            InvalidTensor: an element is not what the model takes.
            Overloaded: a limit on queued work is reached, or the wait would be too long.
            QueueTimeout: the queue's timeout passed.
            DeadlineExceeded: the task's deadline passed.
            ComputeError: the engine failed.
            Unavailable: the model is being unloaded.
        """
        ticket = TensorTicket(task, self._spine.level_or_default(task.priority), self._spine.loop.create_future())
        held_bytes = self._layout.output_bytes(task.inputs, task.rows, task.outputs)
        await self._spine.run(ticket, held_bytes=held_bytes, timeout_us=task.timeout_us)
        return ticket.result()


def _batch_limits(batching: BatchingSettings, inputs: Sequence[TensorSpec], *, joins_requests: bool) -> BatchLimits:
    """
    A row counts as a token, all cost the same, and a request is not divided. Where rows are of different sizes, one
    batch that does not fit into memory says nothing of the next one.
    """
    rows = max(1, batching.max_batch_size)
    are_rows_alike = all(size != -1 for spec in inputs for size in spec.shape)
    return BatchLimits(
        token_budget=rows,
        max_rows=rows,
        preferred_rows=min(batching.preferred_batch_sizes, default=rows),
        max_delay_s=batching.max_queue_delay_us / 1e6 if joins_requests else 0.0,
        pads=False,
        hidden_size=1,
        splits=False,
        least_token_budget=1 if are_rows_alike else rows,
    )
