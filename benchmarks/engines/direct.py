"""
An engine called directly, in a process of its own: no server, no tokenizer, the batches that the server would form of
the same texts. Runs as a worker in the benchmark's own environment.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from trivec_server.backends.interface import (
    Engine,
    EngineInfo,
    EngineRequest,
    OverlappingEngine,
    RunningBatch,
    TokenBatch,
)
from trivec_server.repository.engines import ENGINES
from trivec_server.serving.request import EmbedTask
from trivec_server.serving.selection import BatchLimits, select
from trivec_server.serving.ticket import EmbedTicket, Pending
from trivec_server.types import CLS_TOKEN_ID, EOS_TOKEN_ID, InstanceKind, Mode

from benchmarks.engines.worker import Message, Started, run_worker, timed

_IN_FLIGHT = 2
_FIRST_ORDINARY_ID = 5


class DirectEngine:
    """One engine instance and the batches for it."""

    def __init__(self, options: Message) -> None:
        self._engine: Engine = ENGINES[options["engine"]](
            EngineRequest(
                version_dir=Path(options["version"]),
                kind=InstanceKind[options["kind"]],
                precision=options["precision"],
                max_tokens=options["max_tokens"],
                device_memory_mb=options["device_memory_mb"],
            )
        )
        self._max_rows: int = options["max_batch_size"]

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def run(self, lengths: Sequence[int], *, half: bool) -> None:
        """All three outputs of texts with these lengths in tokens."""
        self._run_all(list(self.batches(lengths)), half=half)

    def timed_run(self, lengths: Sequence[int], *, half: bool) -> float:
        """Seconds for all of them; making the batches is not counted."""
        batches = list(self.batches(lengths))
        return timed(lambda: self._run_all(batches, half=half))

    def batches(self, lengths: Sequence[int]) -> Iterator[TokenBatch]:
        """As the server forms them of one request: `selection.select` until nothing is left."""
        limits = BatchLimits(
            token_budget=self.info.token_budget,
            max_rows=self._max_rows,
            preferred_rows=self._max_rows,
            max_delay_s=0.0,
            pads=self.info.pads,
            hidden_size=self.info.dense_dimension,
        )
        queue = [_pending(lengths, self.info.vocabulary_size)]
        while queue:
            left: list[Pending[EmbedTicket]] = []
            parts: list[Pending[EmbedTicket]] = []
            selection = select(queue, time.monotonic(), limits, seconds_per_token=1e-3, may_grow=False)
            taken = {id(pending): chosen for pending, chosen in selection.taken}
            for pending in queue:
                if id(pending) not in taken:
                    left.append(pending)
                    continue
                chosen = taken[id(pending)]
                part, rest = (pending, None) if chosen is None else pending.split(chosen)
                parts.append(part)
                left.extend([] if rest is None else [rest])
            yield TokenBatch(
                np.concatenate([part.token_ids for part in parts]), np.concatenate([part.lengths for part in parts])
            )
            queue = left

    def _run_all(self, batches: Sequence[TokenBatch], *, half: bool) -> None:
        if not isinstance(self._engine, OverlappingEngine):
            for batch in batches:
                self._engine.run(batch, Mode.HYBRID, half=half)
            return
        running: deque[RunningBatch] = deque()
        for batch in batches:
            if len(running) == _IN_FLIGHT:
                running.popleft().result()
            running.append(self._engine.submit(batch, Mode.HYBRID, half=half))
        for each in running:
            each.result()


def _pending(lengths: Sequence[int], vocabulary_size: int) -> Pending[EmbedTicket]:
    """A request's texts as the server queues them; which tokens they are makes no difference to the time."""
    random = np.random.default_rng(5)
    token_ids = random.integers(_FIRST_ORDINARY_ID, vocabulary_size, sum(lengths))
    rows: NDArray[np.int64] = np.array(lengths, np.int64)
    ends = np.cumsum(rows)
    token_ids[ends - rows] = CLS_TOKEN_ID
    token_ids[ends - 1] = EOS_TOKEN_ID
    loop = asyncio.new_event_loop()
    ticket = EmbedTicket(EmbedTask("", Mode.HYBRID, texts=[""] * len(lengths)), 1, loop.create_future())
    loop.close()
    return Pending(ticket, token_ids, rows, np.arange(len(lengths)), 0.0)


def device_peak_bytes() -> int | None:
    """The most GPU memory that this process has held through torch; None: it has not used a GPU so."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    peak: int = torch.cuda.max_memory_reserved()
    return peak


def start(options: Message) -> Started:
    engine = DirectEngine(options)
    info = engine.info

    def run(message: Message) -> Message:
        half: bool = message["half"]
        return {"seconds": [engine.timed_run(lengths, half=half) for lengths in message["lengths"]]}

    def peak(_: Message) -> Message:
        return {"peak_bytes": device_peak_bytes()}

    settings = f"{info.engine}, {info.precision}, {info.device}, in process"
    versions = {"batch_token_budget": str(info.token_budget), "precision": info.precision}
    return Started(settings, versions, {"run": run, "peak": peak})


if __name__ == "__main__":
    run_worker(start)
