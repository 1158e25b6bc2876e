"""The exporter for the OpenVINO engine."""

import tempfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.openvino.files import OpenedFiles, write_files
from trivec_server.backends.openvino.graph import WeightType, write_openvino
from trivec_server.backends.openvino.tables import Tables
from trivec_server.backends.weights.stored_model import StoredModel
from trivec_server.errors import LoadError

_COPIED_ROWS = 4096


def export_openvino(model: StoredModel, target_dir: Path, precision: str) -> None:
    """
    Writes `openvino.xml` and `openvino.bin` into a directory that exists.

    What is converted on the way lies in a nameless file in that directory, not in memory, so the disk must have room
    for the weights twice.

    Args:
        model: The weights to take.
        target_dir: Where to write.
        precision: What the engine will compute in: `bfloat16` or `float32`, both with weights stored as float16, or
            `int8`, with weights stored as int8.

    Raises:
        LoadError: a tensor is missing, damaged or too large for float16, or the precision is none of these.
        OSError: a file cannot be written.
    """
    if precision not in {"bfloat16", "float32", "int8"}:
        raise LoadError(f"OpenVINO versions come in bfloat16, float32 and int8, not in {precision}")
    weights: WeightType = "int8" if precision == "int8" else "float16"
    with tempfile.TemporaryFile(dir=target_dir) as file:
        scratch = _Scratch(file)
        tables = Tables.of(model.encoder, model.heads, model.tensors)
        halves = {name: scratch.halves(name, array) for name, array in tables.arrays.items()}
        opened = OpenedFiles(
            model=write_openvino(model, weights, scratch.keep),
            encoder=model.encoder,
            heads=model.heads,
            weights=weights,
            precision=precision,
            tables=Tables(halves),
        )
        write_files(target_dir, opened)


class _Scratch:
    """Arrays that lie in a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def keep(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Puts an array into the file and gives it mapped from there."""
        mapped = self._place(array.shape, array.dtype)
        mapped[...] = array
        return mapped

    def halves(self, name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """
        A table with its numbers as float16, unless it is integers or a vector.

        Raises:
            LoadError: a number is not finite as float16.
        """
        if array.ndim == 1 or array.dtype.kind != "f" or array.dtype == np.float16:
            return array
        mapped = self._place(array.shape, np.dtype(np.float16))
        for start in range(0, len(array), _COPIED_ROWS):
            with np.errstate(over="ignore"):
                rows = array[start : start + _COPIED_ROWS].astype(np.float16)
            if not np.isfinite(rows).all():
                raise LoadError(f"tensor {name}: a value is not finite or too large for float16")
            mapped[start : start + _COPIED_ROWS] = rows
        return mapped

    def _place(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        offset = self._file.seek(0, 2)
        self._file.truncate(offset + int(np.prod(shape)) * dtype.itemsize)
        return np.memmap(self._file, dtype, "r+", offset, shape)
