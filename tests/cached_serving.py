"""A Pipeline with a response cache over scripted engines, and requests to it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from trivec_server.backends.interface import Engine, EngineOutput, EngineRequest, TokenBatch
from trivec_server.metrics import Metrics
from trivec_server.metrics.statistics import ModelStatistics, StatisticsSnapshot
from trivec_server.serving.cache.model_cache import ModelCache
from trivec_server.serving.cache.store import LocalStore, RowStore
from trivec_server.serving.device import Device
from trivec_server.serving.embed_run import EmbedDevice
from trivec_server.serving.encode import lexical_weights
from trivec_server.serving.pipeline import Pipeline
from trivec_server.serving.request import EmbedResult, EmbedTask
from trivec_server.serving.tokenizer import Tokenizer
from trivec_server.settings import MIB, Limits
from trivec_server.types import BatchingSettings, Mode, ModelVersion

from tests.scripted_engine import (
    Script,
    ScriptedEngine,
    expected_dense,
    expected_multi_vector,
    expected_weights,
)
from tests.small_repository import MAX_TOKENS, ids_of, write_tokenizer

KEY = ModelVersion("small", 1)
_PATIENCE_S = 30.0


class HalvingScript(Script):
    """Its engines give float16 where all want it, as one on another device."""

    def build(self, request: EngineRequest) -> Engine:
        super().build(request)
        return _HalvingEngine(self)


class _HalvingEngine(ScriptedEngine):
    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        output = super().run(batch, modes, half=half)
        if not half:
            return output
        return replace(
            output,
            dense=None if output.dense is None else output.dense.astype(np.float16),
            multi_vector=None
            if output.multi_vector is None
            else [vectors.astype(np.float16) for vectors in output.multi_vector],
        )


@dataclass
class CachedServing:
    """A pipeline at work, its engines' script, and its cache."""

    script: Script
    pipeline: Pipeline
    store: RowStore

    @property
    def statistics(self) -> StatisticsSnapshot:
        return self.pipeline.statistics.snapshot()

    @property
    def computed(self) -> list[list[list[int]]]:
        """The token ids of each batch that the engines ran."""
        return [_sequences(batch) for batch in self.script.batches]

    async def embed(self, *texts: str, modes: Mode = Mode.DENSE, **fields: Any) -> EmbedResult:
        """One request."""
        task = EmbedTask("r", modes, texts=texts, size_bytes=sum(map(len, texts)), **fields)
        return await self.pipeline.embed(task)

    def start(self, *texts: str, modes: Mode = Mode.DENSE, **fields: Any) -> "asyncio.Task[EmbedResult]":
        """Sends a request; the caller awaits it."""
        return asyncio.ensure_future(self.embed(*texts, modes=modes, **fields))

    async def queue(self, *texts: str, modes: Mode = Mode.DENSE, **fields: Any) -> "asyncio.Task[EmbedResult]":
        """Sends a request of texts that are not cached, and waits until it is in the queue."""
        expected = self.pipeline.queued_tokens + sum(len(ids_of(text)) for text in texts)
        sent = self.start(*texts, modes=modes, **fields)
        await until(lambda: self.pipeline.queued_tokens == expected)
        return sent

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Keeps the engine, idle before, at the text `w999` while the block runs, so that what is sent queues."""
        self.script.entered = threading.Semaphore(0)
        self.script.gate.clear()
        blocker = self.start("w999")
        await asyncio.to_thread(self.script.entered.acquire)
        try:
            yield
        finally:
            self.script.gate.set()
            await blocker


@asynccontextmanager
async def cached_serving(
    folder: Path,
    script: Script | None = None,
    *,
    store: RowStore | None = None,
    is_cached: bool = True,
    content_digest: str = "content",
    batching: BatchingSettings | None = None,
    prefixes: tuple[str, str] = ("", ""),
) -> AsyncIterator[CachedServing]:
    """Serves the scripted engine until the block ends. `prefixes` are those of queries and passages."""
    script = script or Script()
    store = store or LocalStore(MIB)
    tokenizer_path = folder / "tokenizer.json"
    write_tokenizer(tokenizer_path)
    device: EmbedDevice = Device("engine 0", lambda: script.build(EngineRequest(version_dir=folder)))
    await asyncio.to_thread(device.start)
    info = ScriptedEngine(script).info
    statistics = ModelStatistics()
    pipeline = Pipeline(
        name=KEY.name,
        tokenizer=Tokenizer(tokenizer_path, query_prefix=prefixes[0], passage_prefix=prefixes[1]),
        devices=[device],
        info=info,
        batching=batching or BatchingSettings(),
        max_tokens=MAX_TOKENS,
        limits=Limits(),
        metrics=Metrics().model(KEY),
        statistics=statistics,
        cache=ModelCache(store, content_digest, "1.0", info, statistics) if is_cached else None,
    )
    pipeline.start()
    try:
        yield CachedServing(script, pipeline, store)
    finally:
        script.gate.set()
        await pipeline.close()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition that no event tells of."""
    async with asyncio.timeout(_PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def assert_embeds(result: EmbedResult, sequences: Sequence[Sequence[int]], modes: Mode, *, atol: float = 0) -> None:
    """The result is what the scripted engine gives for these token ids, in all parts and no others."""
    assert result.lengths.tolist() == [len(ids) for ids in sequences]
    assert result.token_count == sum(map(len, sequences))
    assert (result.dense is not None) == (Mode.DENSE in modes)
    assert (result.sparse is not None) == (Mode.SPARSE in modes)
    assert (result.multi_vector is not None) == (Mode.MULTI_VECTOR in modes)
    for row, sequence in enumerate(sequences):
        ids = list(sequence)
        if result.dense is not None:
            np.testing.assert_allclose(result.dense[row], expected_dense(ids), rtol=0, atol=atol)
        if result.sparse is not None:
            packed = np.array(ids, np.int64)
            (expected,) = lexical_weights(packed, expected_weights(ids), np.array([len(ids)]))
            np.testing.assert_array_equal(result.sparse[row].ids, expected.ids)
            np.testing.assert_array_equal(result.sparse[row].weights, expected.weights)
        if result.multi_vector is not None:
            np.testing.assert_allclose(result.multi_vector[row], expected_multi_vector(ids), rtol=0, atol=atol)


def _sequences(batch: TokenBatch) -> list[list[int]]:
    ends = np.cumsum(batch.lengths).tolist()
    return [
        batch.token_ids[end - length : end].tolist() for end, length in zip(ends, batch.lengths.tolist(), strict=True)
    ]
