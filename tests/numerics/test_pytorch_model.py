"""The parts of the PyTorch engine in precisions and on weights that a version directory does not bring about."""

import weakref
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trivec_server.backends.interface import Engine, EngineLost, EngineOutput, LexicalRows, TokenBatch
from trivec_server.backends.weights.stored_model import StoredModel, open_stored_model
from trivec_server.errors import LoadError
from trivec_server.serving.encode import lexical_weights
from trivec_server.types import Mode

from tests.graph_reference import LINEAR_HEADS, XLM_ROBERTA, Array, ArraySource, Ids, random_tensors, random_texts

pytestmark = pytest.mark.torch

LENGTHS = (2, 40, 17, 3, 17)


@pytest.fixture(scope="module")
def torch() -> Any:
    return import_module("torch")


def cpu_engine(tensors: Mapping[str, Array], dtype: Any) -> Engine:
    """On the CPU, in any type."""
    from trivec_server.backends.pytorch.cpu_engine import CpuEngine, cpu_arithmetic  # noqa: PLC0415 - imports torch

    stored = StoredModel(XLM_ROBERTA, LINEAR_HEADS, ArraySource(tensors))
    return CpuEngine(stored, cpu_arithmetic(dtype), precision=str(dtype), threads=1)


def batch_of(texts: list[Ids]) -> TokenBatch:
    return TokenBatch(np.concatenate(texts), np.array([len(text) for text in texts], np.int64))


def scaled(name: str, factor: float) -> dict[str, Array]:
    """The random model with one tensor multiplied."""
    tensors = random_tensors(XLM_ROBERTA)
    return tensors | {name: (tensors[name].astype(np.float32) * np.float32(factor))}


def test_texts_that_overflow_float16_are_computed_again_in_float32(torch: Any) -> None:
    tensors = scaled("encoder.layer.1.intermediate.dense.weight", 2e4)
    batch = batch_of(random_texts(*LENGTHS))
    expected = cpu_engine(tensors, torch.float32).run(batch, Mode.HYBRID)

    output = cpu_engine(tensors, torch.float16).run(batch, Mode.HYBRID)

    assert output.recomputed_rows == len(LENGTHS)
    assert output.non_finite_rows is not None
    assert output.non_finite_rows.tolist() == []
    assert output.dense is not None
    assert expected.dense is not None
    np.testing.assert_allclose(output.dense, expected.dense, rtol=0, atol=1e-3)
    assert output.token_weights is not None
    assert expected.token_weights is not None
    np.testing.assert_allclose(output.token_weights, expected.token_weights, rtol=0, atol=1e-2)
    for one, other in zip(output.multi_vector or (), expected.multi_vector or (), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "factor", "modes"),
    [
        ("colbert_linear.weight", 1e38, Mode.MULTI_VECTOR),
        ("sparse_linear.weight", 3e38, Mode.SPARSE),
        ("encoder.layer.1.output.LayerNorm.weight", 1e38, Mode.DENSE),
    ],
)
def test_texts_that_overflow_float32_too_are_named(torch: Any, name: str, factor: float, modes: Mode) -> None:
    engine = cpu_engine(scaled(name, factor), torch.float32)
    batch = batch_of(random_texts(*LENGTHS))

    output = engine.run(batch, modes)

    assert output.non_finite_rows is not None
    assert len(output.non_finite_rows) > 0
    assert output.recomputed_rows == 0


def test_a_text_computed_again_takes_its_place_among_the_others() -> None:
    from trivec_server.backends.pytorch.results import recompute_non_finite  # noqa: PLC0415 - imports torch

    batch = TokenBatch(np.arange(9), np.array([2, 3, 4]))
    first = output_of([2, 3, 4], 1.0, bad=[1])

    output = recompute_non_finite(batch, first, lambda texts: output_of(texts.lengths.tolist(), 2.0, bad=[]))

    assert output.recomputed_rows == 1
    assert np.asarray(output.dense)[:, 0].tolist() == [1, 2, 1]
    assert np.asarray(output.token_weights).tolist() == [1, 1, 2, 2, 2, 1, 1, 1, 1]
    assert [vectors[0, 0] for vectors in output.multi_vector or ()] == [1, 2, 1]
    assert output.lexical is not None
    assert output.lexical.weights.tolist() == [1, 2, 1]
    assert output.lexical.bounds.tolist() == [0, 1, 2, 3]
    assert output.non_finite_rows is not None
    assert output.non_finite_rows.tolist() == []


def output_of(lengths: list[int], value: float, bad: list[int]) -> EngineOutput:
    """An output full of one value; each text has one lexical weight."""
    texts = len(lengths)
    full = np.full(sum(lengths), value, np.float32)
    return EngineOutput(
        dense=np.full((texts, 2), value, np.float32),
        token_weights=full,
        multi_vector=[np.full((length - 1, 2), value, np.float32) for length in lengths],
        lexical=LexicalRows(np.full(texts, 7, np.uint32), full[:texts], np.arange(texts + 1)),
        non_finite_rows=np.array(bad, np.int64),
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"colbert_linear.weight": np.full((24, 32), np.nan, np.float32)}, "colbert_linear.weight has a value that"),
        ({"encoder.layer.0.output.dense.bias": np.zeros(31, np.float32)}, r"output.dense.bias has shape \[31\]"),
        ({"embeddings.LayerNorm.bias": np.zeros(32, np.int64)}, "LayerNorm.bias holds int64"),
        ({"embeddings.word_embeddings.weight": None}, "word_embeddings.weight is missing"),
    ],
)
def test_a_damaged_tensor_is_refused_by_name(torch: Any, change: dict[str, Array | None], reason: str) -> None:
    tensors = {name: each for name, each in (random_tensors(XLM_ROBERTA) | change).items() if each is not None}

    with pytest.raises(LoadError, match=reason):
        cpu_engine(tensors, torch.float32)


@pytest.mark.parametrize("name", ["encoder.layer.1.output.dense.weight", "embeddings.word_embeddings.weight"])
def test_a_weight_that_float16_does_not_hold_is_refused_by_name(torch: Any, name: str) -> None:
    tensors = random_tensors(XLM_ROBERTA)
    tensors[name] = tensors[name].astype(np.float32)
    tensors[name][1, 2] = -1e5

    with pytest.raises(LoadError, match=rf"{name} has a value of 100000, .* bfloat16 or float32"):
        cpu_engine(tensors, torch.float16)
    cpu_engine(tensors, torch.bfloat16)


def test_a_row_of_zeros_in_float8_is_zeros(torch: Any) -> None:
    from trivec_server.backends.pytorch.linear import to_float8  # noqa: PLC0415 - imports torch

    rows, scales = to_float8(torch.zeros(2, 16))

    assert scales.min() >= 1e-12
    assert not rows.float().any()


def test_layer_norm_in_one_step_gives_what_two_steps_give(torch: Any) -> None:
    from trivec_server.backends.pytorch.cpu_engine import CpuEngine, cpu_arithmetic  # noqa: PLC0415 - imports torch
    from trivec_server.backends.pytorch.encoder import add_norm  # noqa: PLC0415 - imports torch

    stored = StoredModel(XLM_ROBERTA, LINEAR_HEADS, ArraySource(random_tensors(XLM_ROBERTA)))
    two_steps = cpu_arithmetic(torch.bfloat16)
    batch = batch_of(random_texts(*LENGTHS))

    found, expected = (
        CpuEngine(stored, each, precision="bfloat16", threads=1).run(batch, Mode.DENSE).dense
        for each in (replace(two_steps, add_norm=add_norm), two_steps)
    )

    np.testing.assert_array_equal(found, expected)


def test_float8_arithmetic_keeps_the_cosine_of_dense_vectors(torch: Any, mini_repository: Path) -> None:
    from trivec_server.backends.pytorch.cpu_engine import CpuEngine, cpu_arithmetic  # noqa: PLC0415 - imports torch
    from trivec_server.backends.pytorch.encoder import Arithmetic  # noqa: PLC0415 - imports torch
    from trivec_server.backends.pytorch.linear import Float8Linear  # noqa: PLC0415 - imports torch

    stored = open_stored_model(mini_repository / "m3-mini" / "1")
    random = np.random.default_rng(5)
    lengths = np.array([12, 30, 64, 7], np.int64)
    batch = TokenBatch(random.integers(4, stored.encoder.vocabulary_size, lengths.sum()), lengths)
    arithmetics = (
        cpu_arithmetic(torch.float32),
        Arithmetic(torch.device("cpu"), torch.bfloat16, Float8Linear),
    )

    exact, float8 = (
        np.asarray(CpuEngine(stored, each, precision="", threads=1).run(batch, Mode.DENSE).dense)
        for each in arithmetics
    )

    assert (exact * float8).sum(axis=1).min() >= 0.99


@pytest.mark.parametrize("seed", range(8))
def test_sparse_vectors_made_on_the_device_are_those_of_the_server(torch: Any, seed: int) -> None:
    from trivec_server.backends.pytorch.batch import host_batch  # noqa: PLC0415 - imports torch
    from trivec_server.backends.pytorch.heads import Parts, compact  # noqa: PLC0415 - imports torch
    from trivec_server.backends.pytorch.results import on_host  # noqa: PLC0415 - imports torch

    random = np.random.default_rng(seed)
    lengths = random.integers(2, 30, random.integers(1, 9))
    ids = random.integers(0, 14, lengths.sum())  # many repeats, many special ids
    weights = np.where(random.random(len(ids)) < 0.4, 0, random.random(len(ids))).astype(np.float32)
    if seed == 0:
        weights[:] = 0
    batch = TokenBatch(ids, lengths)
    prepared = host_batch(batch, XLM_ROBERTA)
    sorted_weights = torch.from_numpy(weights[prepared.layout.source])

    rows = on_host(Parts(None, None, None, torch.zeros(1)), compact(prepared, sorted_weights)).lexical

    assert rows is not None
    expected = lexical_weights(ids, weights, lengths)
    assert len(rows.bounds) == len(expected) + 1
    for start, end, row in zip(rows.bounds[:-1], rows.bounds[1:], expected, strict=True):
        assert rows.ids[start:end].dtype == np.uint32
        np.testing.assert_array_equal(rows.ids[start:end], row.ids)
        np.testing.assert_array_equal(rows.weights[start:end], row.weights)


def test_attention_by_cumulative_lengths_gets_what_attention_by_length_gives(torch: Any) -> None:
    from trivec_server.backends.pytorch import attention as pytorch_attention  # noqa: PLC0415 - imports torch
    from trivec_server.backends.pytorch.batch import host_batch  # noqa: PLC0415 - imports torch

    def by_bounds(query: Any, key: Any, value: Any, bounds: Any, _: Any, longest: int, __: int) -> Any:
        """What flash attention computes, one text after the other."""
        found = []
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            assert end - start <= longest
            parts = [each[start:end].transpose(0, 1) for each in (query, key, value)]
            found.append(torch.nn.functional.scaled_dot_product_attention(*parts).transpose(0, 1))
        return torch.cat(found)

    batch = host_batch(batch_of(random_texts(*LENGTHS)), XLM_ROBERTA)
    qkv = torch.randn(sum(LENGTHS), 96, generator=torch.Generator().manual_seed(1))

    found = pytorch_attention.by_bounds(by_bounds)(qkv, batch, 4)

    expected = pytorch_attention.attend_by_length(qkv, batch, 4)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", MemoryError),
        ("CUDA error: an illegal memory access was encountered\nmore", EngineLost),
        ("shapes do not fit", RuntimeError),
    ],
)
def test_errors_of_a_gpu_are_those_of_the_seam(torch: Any, raised: str, seen: type[Exception]) -> None:
    from trivec_server.backends.pytorch.device_errors import device_errors  # noqa: PLC0415 - imports torch

    with pytest.raises(seen) as caught, device_errors():
        raise RuntimeError(raised)

    assert caught.type is seen


def test_a_full_gpu_is_a_memory_error_and_what_the_failed_call_held_is_let_go_first(
    torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trivec_server.backends.pytorch.device_errors import device_errors  # noqa: PLC0415 - imports torch

    held: list[weakref.ref[Any]] = []
    left_when_emptied = []

    def fail() -> None:
        tensor = torch.zeros(2)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left_when_emptied.append(held[0]()))

    with pytest.raises(MemoryError), device_errors():
        fail()

    assert left_when_emptied == [None]


@pytest.mark.parametrize(
    ("free_bytes", "max_tokens", "budget"),
    [(10e9, 8192, 65536), (1e9, 512, 19456), (1e6, 8192, 8192)],
)
def test_the_token_budget_fills_most_of_the_memory_and_holds_one_text(
    free_bytes: float, max_tokens: int, budget: int
) -> None:
    from trivec_server.backends.pytorch.cuda_engine import budget_for  # noqa: PLC0415 - imports torch

    assert budget_for(free_bytes, 40_000, max_tokens) == budget


def test_positions_beyond_the_model_are_refused(torch: Any) -> None:
    engine = cpu_engine(random_tensors(XLM_ROBERTA), torch.float32)

    with pytest.raises(ValueError, match="a text of 65 tokens: the model takes 64"):
        engine.run(batch_of(random_texts(65)), Mode.DENSE)
