"""Functions that a GPU runs as one kernel: how often they are compiled, and what happens where they cannot be."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pytest

pytestmark = pytest.mark.torch

Function = Callable[..., Any]
ROWS = 300


@pytest.fixture
def torch() -> Iterator[Any]:
    """PyTorch with nothing compiled."""
    torch = import_module("torch")
    torch._dynamo.reset()
    yield torch
    torch._dynamo.reset()


@pytest.fixture
def compiled(torch: Any, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """
    What is compiled, by a compiler that takes any function and leaves it as it is: the inner size of the first matrix.
    """
    inner_sizes: list[object] = []

    def keep(graph: Any, inputs: list[Any]) -> Function:
        inner_sizes.append(next(each for each in inputs if isinstance(each, torch.Tensor)).shape[1])
        forward: Function = graph.forward
        return forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    return inner_sizes


def fused_to_float8(torch: Any, notes: list[str]) -> Function:
    from trivec_server.backends.pytorch.fuse import fuse  # noqa: PLC0415 - imports torch
    from trivec_server.backends.pytorch.linear import to_float8  # noqa: PLC0415 - imports torch

    trials = [(torch.randn(ROWS, columns, dtype=torch.bfloat16),) for columns in (32, 64)]
    return fuse("float8", to_float8, trials, notes)


def test_batches_of_all_sizes_run_what_was_compiled_for_the_two_inner_sizes(torch: Any, compiled: list[object]) -> None:
    notes: list[str] = []

    fused = fused_to_float8(torch, notes)
    with torch.inference_mode():
        for rows in (2, 3, 16, 32, 64, 1000, 4096):
            for columns in (32, 64):
                fused(torch.randn(rows, columns, dtype=torch.bfloat16))

    assert notes == []
    assert compiled == [32, 64]
    assert all(type(inner_size) is int for inner_size in compiled)  # not a symbol of any size


def test_layer_norm_of_a_sum_is_compiled_once(torch: Any, compiled: list[object]) -> None:
    from trivec_server.backends.pytorch.encoder import add_norm  # noqa: PLC0415 - imports torch
    from trivec_server.backends.pytorch.fuse import fuse  # noqa: PLC0415 - imports torch

    notes: list[str] = []
    x, weight = torch.randn(ROWS, 32, dtype=torch.bfloat16), torch.ones(32, dtype=torch.bfloat16)

    fused = fuse("layer norm", add_norm, [(x, x * 2, weight, weight * 0, 1e-5)], notes)
    with torch.inference_mode():
        weight, bias = weight.clone(), weight * 0
        for rows in (2, 3, 32, 1000):
            x = torch.randn(rows, 32, dtype=torch.bfloat16)
            assert fused(x, x * 2, weight, bias, 1e-5).shape == x.shape

    assert notes == []
    assert compiled == [32]


def fail(*_: object, **__: object) -> Any:
    raise RuntimeError("no C compiler\nadvice")


def differ(function: Function, **_: object) -> Function:
    """A compiler that gets one row wrong."""

    def wrong(x: Any) -> Any:
        rows, scales = function(x)
        scales[-1] *= 2
        return rows, scales

    return wrong


@pytest.mark.parametrize(("compiler", "reason"), [(fail, "no C compiler"), (differ, "its numbers are others")])
def test_without_a_compiler_that_is_right_the_function_stays_as_it_is_and_a_note_says_so(
    torch: Any, monkeypatch: pytest.MonkeyPatch, compiler: Function, reason: str
) -> None:
    from trivec_server.backends.pytorch.linear import to_float8  # noqa: PLC0415 - imports torch

    monkeypatch.setattr(torch, "compile", compiler)
    notes: list[str] = []

    assert fused_to_float8(torch, notes) is to_float8
    assert len(notes) == 1
    assert notes[0].startswith("float8 takes longer than it could: torch.compile failed (")
    assert notes[0].endswith(f"{reason})")
