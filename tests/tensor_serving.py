"""A TensorPipeline over scripted engines, and requests to it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from trivec_server.metrics import Metrics
from trivec_server.metrics.statistics import FailReason, StatisticsSnapshot
from trivec_server.serving.device import Device
from trivec_server.serving.engine_roster import EngineCounts
from trivec_server.serving.tensors.batch_run import TensorDevice
from trivec_server.serving.tensors.pipeline import TensorPipeline
from trivec_server.serving.tensors.request import TensorResult, TensorTask
from trivec_server.settings import Limits
from trivec_server.types import BatchingSettings, ModelVersion

from tests.scripted_tensors import Tensors, TensorScript

KEY = ModelVersion("scripted", 1)
_PATIENCE_S = 30.0


@dataclass
class TensorServing:
    """A pipeline at work, and its engines' script."""

    script: TensorScript
    pipeline: TensorPipeline
    metrics: Metrics

    def start(self, task: TensorTask) -> "asyncio.Task[TensorResult]":
        """Sends a request; the caller awaits it."""
        return asyncio.ensure_future(self.pipeline.infer(task))

    async def queue(self, *tasks: TensorTask) -> "list[asyncio.Task[TensorResult]]":
        """Sends requests, one after the other, and waits until all are in the queue."""
        sent = []
        for task in tasks:
            expected = self.pipeline.queued_rows + task.rows
            sent.append(self.start(task))
            await self.until_queued(expected)
        return sent

    async def until_queued(self, rows: int) -> None:
        """Waits until so many rows are in the queue."""
        await until(lambda: self.pipeline.queued_rows == rows, f"never were {rows} rows queued")

    def metric(self, name: str) -> float:
        """The value of a series of the model; 0 if it was never touched."""
        return self.metrics.registry.get_sample_value(name, {"model": KEY.name, "version": str(KEY.version)}) or 0.0

    @asynccontextmanager
    async def busy(self, task: TensorTask, *, engines: int = 1) -> AsyncIterator[None]:
        """
        Keeps every engine, all idle before, at a request of its own while the block runs, so that what is sent
        meanwhile queues.
        """
        self.script.entered = threading.Semaphore(0)
        self.script.gate.clear()
        blockers = []
        for _ in range(engines):
            blockers.append(self.start(task))
            await asyncio.to_thread(self.script.entered.acquire)
        try:
            yield
        finally:
            self.script.gate.set()
            await asyncio.gather(*blockers)


@asynccontextmanager
async def serving(
    script: TensorScript,
    batching: BatchingSettings | None = None,
    *,
    instances: int = 1,
    limits: Limits | None = None,
    on_change: Callable[[EngineCounts], None] = lambda _: None,
) -> AsyncIterator[TensorServing]:
    """Serves the script's model until the block ends. A request that is never answered ends it with an error."""
    devices: list[TensorDevice] = [Device(f"engine {number}", script.build) for number in range(instances)]
    for device in devices:
        await asyncio.to_thread(device.start)
    metrics = Metrics()
    pipeline = TensorPipeline(
        name=KEY.name,
        devices=devices,
        info=script.info,
        inputs=script.model.inputs,
        outputs=script.model.outputs,
        batching=batching or BatchingSettings(),
        limits=limits or Limits(),
        metrics=metrics.model(KEY),
        on_change=on_change,
    )
    pipeline.start()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            yield TensorServing(script, pipeline, metrics)
    finally:
        script.building.set()
        script.gate.set()
        await pipeline.close()


def task_of(
    inputs: Mapping[str, NDArray[Any]],
    outputs: Sequence[str],
    *,
    rows: int | None = None,
    priority: int = 0,
    timeout_us: int = 0,
    deadline: float | None = None,
) -> TensorTask:
    """A request. `rows` None: those of the first input."""
    return TensorTask(
        request_id="r",
        inputs=inputs,
        outputs=tuple(outputs),
        rows=len(next(iter(inputs.values()))) if rows is None else rows,
        priority=priority,
        timeout_us=timeout_us,
        deadline=deadline,
        size_bytes=sum(array.nbytes for array in inputs.values()),
    )


def floats(
    rows: ArrayLike,
    outputs: Sequence[str] = ("same",),
    *,
    priority: int = 0,
    timeout_us: int = 0,
    deadline: float | None = None,
) -> TensorTask:
    """A request to a model with the input `x` of FP32."""
    x = np.array(rows, np.float32)
    return task_of({"x": x}, outputs, priority=priority, timeout_us=timeout_us, deadline=deadline)


def fail_on(number: float, error: BaseException) -> Callable[[Tensors], None]:
    """Fails with a batch that holds a number."""

    def run(inputs: Tensors) -> None:
        if number in inputs["x"]:
            raise error

    return run


def counts(statistics: StatisticsSnapshot) -> dict[FailReason, int]:
    """The reasons for which requests failed, with their number."""
    return {reason: total.count for reason, total in statistics.failures.items() if total.count}


async def until(condition: Callable[[], bool], otherwise: str = "it never came true") -> None:
    """Waits for a condition that no event tells of."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(otherwise) from None
