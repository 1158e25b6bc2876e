"""What a model looks up by a token's id: word embeddings, and the token weights of a `table` head."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.graph.spec import QUANTIZATION_BLOCK, EncoderSpec, HeadsSpec, TensorSource
from trivec_server.errors import LoadError

_WORDS = "embeddings.word_embeddings"
_SPARSE = "sparse_table.weight"

TableShapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and NumPy's letter for the kind of type, `f` or `u`, of each table."""


def table_shapes(encoder: EncoderSpec, heads: HeadsSpec) -> TableShapes:
    """The tables that a model has, by the names of TensorSource."""
    rows, hidden = encoder.vocabulary_size, encoder.hidden
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    if encoder.word_embeddings == "blocks4":
        shapes[f"{_WORDS}.blocks"] = ((rows, hidden // 2), "u")
        shapes[f"{_WORDS}.scales"] = ((rows, hidden // QUANTIZATION_BLOCK), "f")
    else:
        shapes[f"{_WORDS}.weight"] = ((rows, hidden), "f")
    if heads.sparse == "table":
        shapes[_SPARSE] = ((rows,), "f")
    return shapes


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one model, mapped from their files, and their look-ups."""

    arrays: Mapping[str, NDArray[np.generic]]

    @classmethod
    def of(cls, encoder: EncoderSpec, heads: HeadsSpec, tensors: TensorSource) -> "Tables":
        """
        Takes the tables out of a model's tensors.

        Raises:
            LoadError: one is missing, or not of the shape that the specs say.
        """
        arrays = {}
        for name, (shape, kind) in table_shapes(encoder, heads).items():
            array = tensors.get(name)
            if array.shape != shape or array.dtype.kind != kind:
                raise LoadError(f"tensor {name} is {array.dtype} {list(array.shape)}, expected {kind} {list(shape)}")
            arrays[name] = array
        return cls(arrays)

    def word_rows(self, ids: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Writes the word embeddings of N tokens to `out` [N, hidden]."""
        full = self.arrays.get(f"{_WORDS}.weight")
        if full is not None:
            out[:] = full[ids]
            return
        packed = self.arrays[f"{_WORDS}.blocks"][ids].astype(np.uint8, copy=False)  # [N, hidden / 2]
        scales = self.arrays[f"{_WORDS}.scales"][ids].astype(np.float32)  # [N, blocks]
        packed = packed.reshape(*scales.shape, QUANTIZATION_BLOCK // 2)
        halves = np.concatenate((packed & np.uint8(15), packed >> np.uint8(4)), axis=2)  # [N, blocks, 32]
        values = (halves.astype(np.float32) - 8) * scales[:, :, None]
        out[:] = values.reshape(len(ids), -1)

    def token_weights(self, ids: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """The fixed weights of N tokens, float32 [N]; None: the model computes them."""
        table = self.arrays.get(_SPARSE)
        return None if table is None else table[ids].astype(np.float32)
