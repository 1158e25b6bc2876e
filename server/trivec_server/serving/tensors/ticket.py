"""A request of tensors under way inside the server."""

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivec_server.errors import ComputeError
from trivec_server.serving.request import Timings
from trivec_server.serving.tensors.request import TensorResult, TensorTask
from trivec_server.serving.ticket import Ticket


class TensorTicket(Ticket):
    """Tensors to be run. The engines' threads fill in the outputs, under the ticket's own lock."""

    __slots__ = ("_outputs", "_parts", "task")

    def __init__(self, task: TensorTask, level: int, future: asyncio.Future[None]) -> None:
        super().__init__(
            request_id=task.request_id,
            rows=task.rows,
            size_bytes=task.size_bytes,
            deadline=task.deadline,
            level=level,
            future=future,
        )
        self.task = task
        self._parts: list[tuple[int, Mapping[str, NDArray[Any]]]] = []
        self._outputs: Mapping[str, NDArray[Any]] = {}

    def complete_rows(self, rows: NDArray[np.int64], outputs: Mapping[str, NDArray[Any]]) -> bool:
        """
        Takes in the outputs of some rows (positions in the request, [R]). True if they were the last ones.

        Raises:
            ComputeError: the rows ran in several batches, and the shapes of their outputs do not fit together.
        """
        with self._lock:
            self._parts.append((int(rows[0]), outputs))
            is_complete = self.count_done(len(rows))
            if is_complete:
                self._outputs = outputs if len(self._parts) == 1 else self._joined()
            return is_complete

    def _joined(self) -> Mapping[str, NDArray[Any]]:
        parts = [outputs for _, outputs in sorted(self._parts, key=lambda part: part[0])]
        try:
            return {name: np.concatenate([outputs[name] for outputs in parts]) for name in self.task.outputs}
        except ValueError as error:
            raise ComputeError(
                "the request did not fit into memory at once, and the outputs of its parts differ in shape; send fewer "
                "rows"
            ) from error

    def result(self) -> TensorResult:
        """The whole result. Only after `complete_rows` said that the last rows are in."""
        timings = Timings(tokenize_us=0, queue_us=round(self.queue_s * 1e6), compute_us=self.stages.infer_ns // 1000)
        return TensorResult(self._outputs, timings)
