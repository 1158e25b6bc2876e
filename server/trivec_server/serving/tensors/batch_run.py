"""Batches of tensors on an engine."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from trivec_server.backends.tensor_interface import TensorEngine
from trivec_server.errors import ComputeError, InvalidTensor, TrivecError
from trivec_server.metrics import ModelMetrics
from trivec_server.metrics.statistics import ModelStatistics
from trivec_server.serving.batch_run import BatchRunner, BatchTimes, Begun, Distributed
from trivec_server.serving.batcher import Batch, Batcher
from trivec_server.serving.device import Device
from trivec_server.serving.tensors.layout import BatchLayout
from trivec_server.serving.tensors.ticket import TensorTicket
from trivec_server.serving.ticket import Pending, Ticket

TensorDevice: TypeAlias = Device[TensorTicket, TensorEngine]


@dataclass(frozen=True, slots=True)
class _AtOnce:
    """A batch that is computed when its result is asked for."""

    engine: TensorEngine
    inputs: Mapping[str, NDArray[Any]]
    outputs: Sequence[str]

    def result(self) -> Mapping[str, NDArray[Any]]:
        return self.engine.run(self.inputs, self.outputs)


class TensorRunner(BatchRunner[TensorTicket]):
    """Runs batches of tensors."""

    def __init__(
        self,
        engine: TensorEngine,
        layout: BatchLayout,
        batcher: Batcher[TensorTicket],
        metrics: ModelMetrics,
        statistics: ModelStatistics,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(batcher, metrics, statistics, loop)
        self._engine = engine
        self._layout = layout

    def _start(self, batch: Batch[TensorTicket]) -> Begun[TensorTicket]:
        inputs = self._layout.join([_inputs(pending) for pending in batch.slices])
        outputs = dict.fromkeys(name for pending in batch.slices for name in pending.ticket.task.outputs)
        return Begun(batch, _AtOnce(self._engine, inputs, list(outputs)), time.monotonic())

    def _distribute(
        self, batch: Batch[TensorTicket], output: Mapping[str, NDArray[Any]], times: BatchTimes
    ) -> Distributed:
        requests = [_inputs(pending) for pending in batch.slices]
        rows = [len(pending.rows) for pending in batch.slices]
        finished: list[Ticket] = []
        failed: list[tuple[Ticket, TrivecError]] = []
        for pending, outputs in zip(batch.slices, self._layout.split(requests, rows, output), strict=True):
            ticket = pending.ticket
            self._record(ticket, batch, times)
            try:
                if ticket.complete_rows(pending.rows, {name: outputs[name] for name in ticket.task.outputs}):
                    finished.append(ticket)
            except ComputeError as error:
                failed.append((ticket, error))
        return Distributed(finished, failed)

    def _may_be_one_requests_fault(self, error: Exception) -> bool:
        # A model may fail on values, such as an index that is out of range.
        return isinstance(error, InvalidTensor | ComputeError)

    def _computed_tokens(self, batch: Batch[TensorTicket]) -> int:
        return len(batch.tokens.lengths)

    def _too_large(self, pending: Pending[TensorTicket]) -> TrivecError:
        return ComputeError("the request does not fit into the device's memory; send smaller tensors")


def _inputs(pending: Pending[TensorTicket]) -> Mapping[str, NDArray[Any]]:
    """The tensors of a slice."""
    task = pending.ticket.task
    if len(pending.rows) == task.rows:
        return task.inputs
    return {name: array[pending.rows] for name, array in task.inputs.items()}
