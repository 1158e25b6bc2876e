"""
One Embed request in the domain's own terms, and what comes of it.

The values that every request makes are named tuples: immutable as frozen dataclasses are, and made in a third of the
time.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import Vectors
from trivec_server.types import InputType, Mode, Truncation


class VectorEncoding(enum.Enum):
    """How vectors leave the server; the layouts are described at `VectorEncoding` in `embedding.proto`."""

    FLOAT_LIST = enum.auto()
    FLOAT32 = enum.auto()
    FLOAT16 = enum.auto()
    BFLOAT16 = enum.auto()
    INT8 = enum.auto()
    BINARY = enum.auto()


class EmbedTask(NamedTuple):
    """
    Texts, or token ids already made, to be embedded by one model version. Exactly one of `texts` and `token_ids` is
    not empty. `max_tokens` None: the model's. `priority` 0: the model's default level. `deadline` is an instant of
    `time.monotonic`, None: no deadline. `fields` are the texts' paths in the request, where they are not `texts[i]` or
    `token_ids[i]`. `max_result_bytes` None: the result may be of any size. `timeout_us`: the
    longest wait in the queue where the model's policy lets requests say so, 0: the model's.
    """

    request_id: str
    modes: Mode
    texts: Sequence[str] = ()
    token_ids: Sequence[Sequence[int]] = ()
    input_types: Sequence[InputType] | InputType = InputType.NONE
    truncation: Truncation = Truncation.ERROR
    max_tokens: int | None = None
    priority: int = 0
    deadline: float | None = None
    size_bytes: int = 0
    fields: Sequence[str] = ()
    encoding: VectorEncoding = VectorEncoding.FLOAT32
    max_result_bytes: int | None = None
    timeout_us: int = 0

    @property
    def text_count(self) -> int:
        """The number of texts."""
        return len(self.texts) or len(self.token_ids)

    def input_types_of(self, start: int, end: int) -> Sequence[InputType]:
        """The input types of some texts."""
        if isinstance(self.input_types, InputType):
            return [self.input_types] * (end - start)
        return self.input_types[start:end]

    def field(self, index: int) -> str:
        """The path of one text in the request, for errors."""
        if self.fields:
            return self.fields[index]
        return f"{'texts' if self.texts else 'token_ids'}[{index}]"


class SparseRow(NamedTuple):
    """One text's lexical weights: `ids` uint32 [K] ascending and unique, `weights` float32 [K] above zero."""

    ids: NDArray[np.uint32]
    weights: NDArray[np.float32]


class Timings(NamedTuple):
    """Durations in microseconds, as in `Timings` of `embedding.proto`."""

    tokenize_us: int
    queue_us: int
    compute_us: int


class EmbedResult(NamedTuple):
    """
    The embeddings of one task with B texts. `lengths` int64 [B] and `truncated` bool [B] are per text, `token_count`
    and `truncated_count` their sums. `dense` is [B, D]; `sparse` and `multi_vector` hold B entries, the latter
    [length - 1, D]; vectors are float32, or float16 where the task's encoding is FLOAT16 and the engine cast them. A
    part that was not asked for is None.
    """

    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    token_count: int
    truncated_count: int
    dense: Vectors | None
    sparse: Sequence[SparseRow] | None
    multi_vector: Sequence[Vectors] | None
    timings: Timings
