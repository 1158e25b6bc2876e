"""What torch raises where a GPU fails, as the errors of the engines' seam."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trivec_server.backends.interface import EngineLost

FULL = "the GPU's memory is full"


@contextmanager
def device_errors() -> Iterator[None]:
    """
    Turns torch's errors into those of the seam.

    Raises:
        MemoryError: the GPU's memory is full.
        EngineLost: an error after which CUDA cannot be used any more in this process.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            drop_frames(error)
            torch.cuda.empty_cache()
            raise MemoryError(FULL) from error
        reason = first_line(error)
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in reason:
            raise EngineLost(f"the GPU failed: {reason}") from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's memory is full."""
    reason = first_line(error)
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in reason or "out of memory" in reason


def drop_frames(error: BaseException) -> None:
    """Lets go of what the functions that an error ended in still hold: tensors, whose memory is then free."""
    traceback.clear_frames(error.__traceback__)


def first_line(error: BaseException) -> str:
    """What an error says, without the advice and the trace that torch adds in further lines."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
