"""What an embedding model gives: which outputs, and the bytes of each."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import EngineInfo
from trivec_server.backends.tensor_interface import DTYPES
from trivec_server.errors import InvalidTensor
from trivec_server.serving.encode import prune
from trivec_server.serving.request import EmbedResult, SparseRow, VectorEncoding
from trivec_server.transport.kserve.datatypes import Buffer, as_buffer
from trivec_server.transport.kserve.embed_parameters import MODES, EmbedParameters
from trivec_server.transport.kserve.response import OutputTensor
from trivec_server.types import Mode

_OUTPUT_MODES: Mapping[str, Mode] = {
    "dense": Mode.DENSE,
    "sparse_indptr": Mode.SPARSE,
    "sparse_indices": Mode.SPARSE,
    "sparse_values": Mode.SPARSE,
    "multi_vector_offsets": Mode.MULTI_VECTOR,
    "multi_vector": Mode.MULTI_VECTOR,
}
_FLOAT_TYPES = {VectorEncoding.FLOAT32: "FP32", VectorEncoding.FLOAT16: "FP16"}


def describe_outputs(info: EngineInfo) -> list[tuple[str, str, tuple[int, ...]]]:
    """The outputs of an embedding model: name, data type and shape, whole."""
    shapes: Mapping[str, tuple[str, tuple[int, ...]]] = {
        "dense": ("FP32", (-1, info.dense_dimension)),
        "sparse_indptr": ("INT64", (-1,)),
        "sparse_indices": ("INT64", (-1,)),
        "sparse_values": ("FP32", (-1,)),
        "multi_vector_offsets": ("INT64", (-1,)),
        "multi_vector": ("FP32", (-1, info.multi_vector_dimension)),
    }
    return [(name, *shapes[name]) for name in output_names(info.modes)]


def output_names(modes: Mode) -> tuple[str, ...]:
    """The outputs of a model that has these modes."""
    # By their value: an enum takes longer to look up than all else here.
    return _names_of(modes.value)


@lru_cache(maxsize=8)
def _names_of(modes: int) -> tuple[str, ...]:
    return tuple(name for name, mode in _OUTPUT_MODES.items() if mode in Mode(modes))


@lru_cache(maxsize=256)
def choose_outputs(
    available: tuple[str, ...], wanted: tuple[str, ...], modes: Mode | None
) -> tuple[tuple[str, ...], Mode]:
    """
    The outputs to give, and what has to be computed for them. `wanted` are some of those available, each once, so that
    what is cached stays small; empty: all.

    Raises:
        InvalidTensor: an output is of a mode that `modes` leaves out.
    """
    names = tuple(name for name in available if name in wanted) if wanted else available
    if modes is not None:
        for name in wanted:
            if _OUTPUT_MODES[name] not in modes:
                needed = next(mode for mode, flag in MODES.items() if flag == _OUTPUT_MODES[name])
                raise InvalidTensor(f"output '{name}' needs mode '{needed}', which 'modes' leaves out")
        names = tuple(name for name in names if _OUTPUT_MODES[name] in modes)
        if not names:
            raise InvalidTensor(f"'modes' names nothing that the model has; it has {', '.join(available)}")
    computed = Mode(0)
    for name in names:
        computed |= _OUTPUT_MODES[name]
    return names, computed


class EmbedAnswer:
    """The embeddings of one request. `size_bytes`: about what they take in the response."""

    __slots__ = ("_float_type", "_names", "_options", "_result", "size_bytes")

    def __init__(self, result: EmbedResult, names: Sequence[str], options: EmbedParameters, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._result = result
        self._names = names
        self._options = options
        self._float_type = _FLOAT_TYPES[options.encoding]

    @property
    def parameters(self) -> Mapping[str, int | bool]:
        """The response's parameters."""
        return {"total_tokens": self._result.token_count, "truncated_texts": self._result.truncated_count}

    def outputs(self) -> list[OutputTensor]:
        """The outputs asked for, in the model's order."""
        result = self._result
        outputs: list[OutputTensor] = []
        if result.dense is not None:
            outputs.append(self._floats("dense", result.dense))
        if result.sparse is not None:
            outputs += self._sparse_outputs(result.sparse)
        if result.multi_vector is not None:
            outputs += self._multi_vector_outputs(result.multi_vector)
        if len(outputs) == len(self._names):
            return outputs
        return [output for output in outputs if output.name in self._names]

    def _sparse_outputs(self, rows: Sequence[SparseRow]) -> list[OutputTensor]:
        """The rows as a CSR triple: row i has the indices and values from indptr[i] to indptr[i + 1]."""
        top_k, min_weight = self._options.sparse_top_k, self._options.sparse_min_weight
        if top_k or min_weight:
            rows = [prune(row, top_k=top_k, min_weight=min_weight) for row in rows]
        indices = np.concatenate([row.ids for row in rows]).astype(np.int64)
        return [
            _offsets("sparse_indptr", [len(row.ids) for row in rows]),
            OutputTensor("sparse_indices", "INT64", indices.shape, [as_buffer(indices)]),
            self._floats("sparse_values", np.concatenate([row.weights for row in rows])),
        ]

    def _multi_vector_outputs(self, vectors: Sequence[NDArray[np.floating]]) -> list[OutputTensor]:
        """The vectors of all rows one below the other: row i has those from offsets[i] to offsets[i + 1]."""
        pieces = [self._floats("multi_vector", rows) for rows in vectors]
        buffers: list[Buffer] = [buffer for piece in pieces for buffer in piece.buffers]
        shape = (sum(map(len, vectors)), vectors[0].shape[1])
        return [
            _offsets("multi_vector_offsets", map(len, vectors)),
            OutputTensor("multi_vector", self._float_type, shape, buffers),
        ]

    def _floats(self, name: str, array: NDArray[np.floating]) -> OutputTensor:
        """An engine may have cast to float16 already."""
        numbers = array.astype(DTYPES[self._float_type], copy=False)
        return OutputTensor(name, self._float_type, numbers.shape, [as_buffer(numbers)])


def _offsets(name: str, lengths: Iterable[int]) -> OutputTensor:
    """Where each row begins, and where the last one ends."""
    offsets = np.fromiter(accumulate(lengths, initial=0), np.int64)
    return OutputTensor(name, "INT64", offsets.shape, [as_buffer(offsets)])
