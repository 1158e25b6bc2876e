"""One inference request of tensors in the domain's own terms, and what comes of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from trivec_server.serving.request import Timings


class TensorTask(NamedTuple):
    """
    Tensors for one version of a model; `TensorPipeline.infer` computes the outputs asked for.

    `inputs`: arrays [R, ...] of the model's dtypes, all with `rows` R rows, one at least; BYTES are object arrays of
    `bytes`. A model without a batch dimension gets the arrays as they are, and `rows` is 1. `outputs`: names, one at
    least, in the response's order. `priority` 0: the model's default level. `timeout_us` 0: the model's. `deadline` is
    an instant of `time.monotonic`.
    """

    request_id: str
    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]
    rows: int
    priority: int = 0
    timeout_us: int = 0
    deadline: float | None = None
    size_bytes: int = 0


class TensorResult(NamedTuple):
    """The outputs by name, [R, ...] each; BYTES are object arrays of `bytes`."""

    outputs: Mapping[str, NDArray[Any]]
    timings: Timings
