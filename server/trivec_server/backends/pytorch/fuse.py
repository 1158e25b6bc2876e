"""Makes one kernel of steps of which a GPU otherwise runs several, each reading and writing all activations."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from trivec_server.backends.pytorch.device_errors import first_line

_MOST_DIFFERENCE = 0.02
"""In the length of a row: what rounding in half precision and another order of sums make is below a tenth of it."""
_FEW_ROWS = 32

RowFunction = TypeVar("RowFunction", bound=Callable[..., Tensor | tuple[Tensor, ...]])


def fuse(
    what: str, function: RowFunction, trials: Sequence[tuple[Tensor | float, ...]], notes: list[str]
) -> RowFunction:
    """
    Compiles a function of matrices that treats each row alone, and tries it. No call of the result compiles anything
    more if its arguments are those of a trial but for the number of rows, at least 2, and are made in inference mode.

    Args:
        what: What the function does, for the note.
        function: Gives a matrix, or several.
        trials: Arguments with some thousands of rows, for which the kernels are laid out.
        notes: If torch.compile fails, or gives other numbers, a note is added, and the result is `function` itself.
    """
    try:
        return _compiled(function, trials)
    except Exception as error:  # noqa: BLE001 - a compiler that is missing or fails costs speed, nothing else
        notes.append(f"{what} takes longer than it could: torch.compile failed ({first_line(error)})")
        return function


def _compiled(function: RowFunction, trials: Sequence[tuple[Tensor | float, ...]]) -> RowFunction:
    # Inner sizes stay numbers in the kernels, which are faster so; only what is marked is not.
    fused: RowFunction = torch.compile(function, fullgraph=True, dynamic=False)
    # Compiled outside of inference mode, it would be compiled once more for the first batch.
    with torch.inference_mode():
        for arguments in trials:
            many, few = (_copies(arguments, rows) for rows in (None, _FEW_ROWS))
            for each in filter(_is_matrix, many):
                torch._dynamo.mark_dynamic(each, 0)  # noqa: SLF001 - PyTorch's documentation calls it so
            if not all(_agree(fused(*tried), function(*tried)) for tried in (many, few)):
                raise ArithmeticError("its numbers are others")
    return fused


def _copies(arguments: tuple[Tensor | float, ...], rows: int | None) -> tuple[Any, ...]:
    """The arguments as tensors of inference mode, of matrices the first rows."""
    return tuple(
        (each[:rows] if _is_matrix(each) else each).clone() if isinstance(each, Tensor) else each for each in arguments
    )


def _is_matrix(argument: Tensor | float) -> bool:
    return isinstance(argument, Tensor) and argument.dim() > 1


def _agree(found: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> bool:
    if isinstance(found, tuple) or isinstance(expected, tuple):
        return all(map(_agree, found, expected))
    wide = expected.float()
    difference, length = (torch.linalg.vector_norm(each, dim=1) for each in (found.float() - wide, wide))
    return bool((difference <= _MOST_DIFFERENCE * length).all())
