"""
The engine for GPUs with CUDA's streams, events and memory replaced by ones that work at once, on the CPU: what it does
with batches and results. Whether a GPU does the same is for a machine that has one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from trivec_server.backends.interface import EngineLost, OverlappingEngine, TokenBatch
from trivec_server.backends.weights.stored_model import StoredModel
from trivec_server.serving.encode import lexical_weights
from trivec_server.types import Mode

from tests.graph_reference import LINEAR_HEADS, XLM_ROBERTA, Array, ArraySource, random_tensors, random_texts

pytestmark = pytest.mark.torch

TOTAL_BYTES = 16 * 10**9
WEIGHT_BYTES = 10**9
BYTES_PER_TOKEN = 250_000
PROBED_TOKENS = 4096


class NoStream:
    """Work is done when it is launched; nothing is to be waited for."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def wait_stream(self, _: object) -> None:
        pass

    def record(self) -> None:
        pass

    def reset(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """PyTorch whose CUDA is the CPU."""
    torch = import_module("torch")
    empty = torch.empty

    def unpinned(*sizes: object, pin_memory: bool = False, **options: object) -> object:
        return empty(*sizes, **options)

    memory = {
        "get_device_properties": SimpleNamespace(total_memory=TOTAL_BYTES),
        "mem_get_info": (TOTAL_BYTES - WEIGHT_BYTES, TOTAL_BYTES),
        "memory_allocated": WEIGHT_BYTES,
        "memory_reserved": WEIGHT_BYTES,
        "max_memory_allocated": WEIGHT_BYTES + BYTES_PER_TOKEN * PROBED_TOKENS,
        "stream": nullcontext(),
        **dict.fromkeys(
            ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "set_per_process_memory_fraction")
        ),
    }
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "Event", NoStream)
    monkeypatch.setattr(torch, "empty", unpinned)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    return torch


def stored(changes: dict[str, Array] | None = None) -> StoredModel:
    return StoredModel(XLM_ROBERTA, LINEAR_HEADS, ArraySource(random_tensors(XLM_ROBERTA) | (changes or {})))


def cuda_engine(torch: Any, model: StoredModel, dtype: str = "float32", **options: Any) -> OverlappingEngine:
    from trivec_server.backends.pytorch.cpu_engine import cpu_arithmetic  # noqa: PLC0415 - imports torch
    from trivec_server.backends.pytorch.cuda_engine import CudaEngine  # noqa: PLC0415 - imports torch

    arithmetic = replace(cpu_arithmetic(getattr(torch, dtype)), **options.pop("arithmetic", {}))
    return CudaEngine(model, arithmetic, precision=dtype, max_tokens=64, **options)


def cpu_engine(torch: Any, model: StoredModel) -> Any:
    from trivec_server.backends.pytorch.cpu_engine import CpuEngine, cpu_arithmetic  # noqa: PLC0415 - imports torch

    return CpuEngine(model, cpu_arithmetic(torch.float32), precision="float32", threads=1)


def batches() -> list[TokenBatch]:
    texts = [random_texts(*lengths) for lengths in ((2, 40, 17, 3, 17), (64,), (12,) * 20)]
    return [TokenBatch(np.concatenate(each), np.array([len(text) for text in each])) for each in texts]


@pytest.mark.parametrize("half", [False, True])
def test_batches_under_way_together_give_what_each_gives_on_the_cpu(torch: Any, half: bool) -> None:
    engine, reference = cuda_engine(torch, stored()), cpu_engine(torch, stored())
    assert isinstance(engine, OverlappingEngine)

    running = [engine.submit(batch, Mode.HYBRID, half=half) for batch in batches()[:2]]

    for batch, each in zip(batches(), running, strict=False):
        found, expected = each.result(), reference.run(batch, Mode.HYBRID)
        tolerance = 1e-3 if half else 0
        assert found.dense is not None
        assert found.dense.dtype == (np.float16 if half else np.float32)
        np.testing.assert_allclose(found.dense, expected.dense, rtol=0, atol=tolerance)
        for one, other in zip(found.multi_vector or (), expected.multi_vector, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(np.asarray(found.token_weights), expected.token_weights)


def test_sparse_vectors_come_ready_made(torch: Any) -> None:
    engine = cuda_engine(torch, stored())
    for batch in batches():
        output = engine.run(batch, Mode.SPARSE)

        rows = output.lexical
        assert rows is not None
        assert output.token_weights is not None
        expected = lexical_weights(batch.token_ids, output.token_weights, batch.lengths)
        for start, end, row in zip(rows.bounds[:-1], rows.bounds[1:], expected, strict=True):
            np.testing.assert_array_equal(rows.ids[start:end], row.ids)
            np.testing.assert_array_equal(rows.weights[start:end], row.weights)


def test_texts_that_overflow_are_computed_again_with_their_sparse_vectors(torch: Any) -> None:
    name = "encoder.layer.1.intermediate.dense.weight"
    model = stored({name: random_tensors(XLM_ROBERTA)[name].astype(np.float32) * np.float32(2e4)})
    batch = batches()[0]

    output = cuda_engine(torch, model, "float16").run(batch, Mode.HYBRID)

    expected = cpu_engine(torch, model).run(batch, Mode.HYBRID)
    assert output.recomputed_rows == len(batch.lengths)
    assert output.dense is not None
    np.testing.assert_allclose(output.dense, expected.dense, rtol=0, atol=1e-3)
    assert output.token_weights is not None
    assert output.lexical is not None
    rows = lexical_weights(batch.token_ids, output.token_weights, batch.lengths)
    np.testing.assert_array_equal(output.lexical.ids, np.concatenate([row.ids for row in rows]))


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({}, 47104),
        ({"instances": 2}, 21504),
        ({"memory_mb": 3_000}, 6144),
        ({"memory_mb": 3_000, "instances": 2}, 6144),
        ({"memory_mb": 1_001}, 64),
    ],
    ids=["what is free", "a share of it", "what is allowed", "what is allowed to each", "one text at least"],
)
def test_the_token_budget_is_what_fits_into_memory(torch: Any, options: dict[str, Any], budget: int) -> None:
    assert cuda_engine(torch, stored(), **options).info.token_budget == budget


@pytest.fixture
def graphs(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU where recording begins, and fails at its end."""

    @contextmanager
    def capture(*_: object, **__: object) -> Iterator[None]:
        yield
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nadvice")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", NoStream)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *_: None)


def packed(qkv: Any, batch: Any, heads: int) -> Any:
    """Attention within texts by their bounds, whatever lies behind the last."""
    import torch  # noqa: PLC0415 - as the rest

    texts = torch.searchsorted(batch.bounds, torch.arange(len(qkv), dtype=torch.int32), right=True)
    parts = (each.transpose(0, 1)[None] for each in qkv.view(len(qkv), 3, heads, -1).unbind(1))
    mask = texts[:, None] == texts
    return torch.nn.functional.scaled_dot_product_attention(*parts, mask)[0].transpose(0, 1).flatten(1)


@pytest.mark.usefixtures("graphs")
def test_an_engine_whose_small_batches_cannot_be_recorded_runs_them_one_by_one_and_says_so(torch: Any) -> None:
    engine = cuda_engine(torch, stored(), arithmetic={"attention": packed})

    assert [note for note in engine.info.notes if "no CUDA graphs (RuntimeError: CUDA error: operation failed" in note]
    for batch in batches():
        found, expected = engine.run(batch, Mode.DENSE), cpu_engine(torch, stored()).run(batch, Mode.DENSE)
        np.testing.assert_allclose(np.asarray(found.dense), expected.dense, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("graphs")
def test_an_engine_for_a_comparison_records_nothing(torch: Any) -> None:
    assert cuda_engine(torch, stored(), arithmetic={"attention": packed}, has_graphs=False).info.notes == ()


def test_an_error_of_the_gpu_while_results_are_awaited_loses_the_engine(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = cuda_engine(torch, stored()).submit(batches()[0], Mode.DENSE)

    def fail(_: NoStream) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(NoStream, "synchronize", fail)

    with pytest.raises(EngineLost, match="unspecified launch failure"):
        running.result()


def test_a_batch_that_does_not_fit_is_a_memory_error(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cuda_engine(torch, stored())

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", fail)

    with pytest.raises(MemoryError):
        engine.run(batches()[0], Mode.DENSE)
