"""
The files of an export for OpenVINO: `openvino.xml`, the graph and what it is, and `openvino.bin`.

The latter holds the graph's constants, then the tables that are looked up by token ids, then a list of the tables in
JSON, the list's length as 8 bytes, little-endian, and 8 bytes that mark the end.
"""

import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, get_args

import numpy as np
import openvino
from numpy.typing import NDArray

from trivec_server.backends.graph.spec import EncoderSpec, HeadsSpec, parse_specs, render_specs
from trivec_server.backends.openvino.graph import WeightType
from trivec_server.backends.openvino.tables import Tables, table_shapes
from trivec_server.errors import LoadError

XML_FILE = "openvino.xml"
BIN_FILE = "openvino.bin"

_SECTION = "trivec"
_ALIGNMENT = 64
_COPIED_ROWS = 4096
_END = b"trivec.1"


class _TablePlace(TypedDict):
    dtype: str
    shape: list[int]
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFiles:
    """A model that lies in memory or in mapped files, ready to be compiled. `release` lets go of the files' pages."""

    model: openvino.Model
    encoder: EncoderSpec
    heads: HeadsSpec
    weights: WeightType
    precision: str
    tables: Tables
    mapping: mmap.mmap | None = None

    def release(self) -> None:
        """Gives the pages of the mapped file back; those that are used again are read again."""
        if self.mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)


def write_files(target_dir: Path, opened: OpenedFiles) -> None:
    """
    Writes both files.

    Raises:
        OSError: they cannot be written.
    """
    xml, binary = target_dir / XML_FILE, target_dir / BIN_FILE
    facts = {
        **render_specs(opened.encoder, opened.heads),
        "weights": opened.weights,
        "precision": opened.precision,
    }
    for key, value in facts.items():
        opened.model.set_rt_info(value, [_SECTION, key.removeprefix(f"{_SECTION}.")])
    try:
        openvino.serialize(opened.model, str(xml), str(binary))
    except RuntimeError as error:
        raise OSError(f"{xml} cannot be written ({_first_line(error)})") from error
    places: dict[str, _TablePlace] = {}
    with binary.open("ab") as file:
        for name, array in opened.tables.arrays.items():
            start = -(-file.seek(0, os.SEEK_END) // _ALIGNMENT) * _ALIGNMENT
            file.truncate(start)
            file.seek(start)
            places[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "start": start}
            for row in range(0, len(array), _COPIED_ROWS):
                file.write(np.ascontiguousarray(array[row : row + _COPIED_ROWS]).data)
        listed = json.dumps(places).encode()
        file.write(listed + len(listed).to_bytes(8, "little") + _END)


def read_files(version_dir: Path, core: openvino.Core) -> OpenedFiles:
    """
    Reads what `write_files` wrote. The constants stay in the mapped file.

    Raises:
        LoadError: a file is missing or damaged, or from another exporter.
    """
    xml, binary = version_dir / XML_FILE, version_dir / BIN_FILE
    if not binary.is_file():
        raise LoadError(f"{BIN_FILE} is missing beside {XML_FILE} in {version_dir}; {_MEND}")
    try:
        with binary.open("rb") as file:
            # Writable only because OpenVINO asks for it: nothing is written, and a change would not reach the file.
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        data = np.frombuffer(mapping, np.uint8)
        model = core.read_model(xml.read_bytes(), openvino.Tensor(data, shared_memory=True))
    except (OSError, ValueError, RuntimeError) as error:
        raise LoadError(f"{XML_FILE} cannot be read by OpenVINO ({_first_line(error)}); {_MEND}") from error
    facts = _facts(model)
    try:
        encoder, heads = parse_specs({f"{_SECTION}.{key}": value for key, value in facts.items()})
        weights = next(each for each in get_args(WeightType) if each == facts["weights"])
        tables = _read_tables(data)
        precision = facts["precision"]
    except (KeyError, ValueError, TypeError, StopIteration, LoadError) as error:
        raise LoadError(
            f"{XML_FILE} is not a graph written by `trivec export`, or is damaged ({_first_line(error)}); {_MEND}"
        ) from error
    if {name: (array.shape, array.dtype.kind) for name, array in tables.items()} != table_shapes(encoder, heads):
        raise LoadError(f"{BIN_FILE} does not hold the tables of the model in {XML_FILE}; {_MEND}")
    return OpenedFiles(
        model=model,
        encoder=encoder,
        heads=heads,
        weights=weights,
        precision=precision,
        tables=Tables(tables),
        mapping=mapping,
    )


_MEND = "run `trivec export` again"


def _facts(model: openvino.Model) -> dict[str, str]:
    """What `write_files` noted in the graph; nothing if it is another's."""
    if not model.has_rt_info([_SECTION]):
        return {}
    return {key: str(value.astype(str)) for key, value in model.get_rt_info([_SECTION]).astype(dict).items()}


def _read_tables(data: NDArray[np.uint8]) -> dict[str, NDArray[np.generic]]:
    """
    The tables at the end of the file.

    Raises:
        KeyError, TypeError, ValueError: the file was cut off or changed.
    """
    if data[-len(_END) :].tobytes() != _END:
        raise ValueError(f"{BIN_FILE} has no end")
    list_end = len(data) - len(_END) - 8
    list_bytes = int.from_bytes(data[list_end : list_end + 8].tobytes(), "little")
    places: dict[str, _TablePlace] = json.loads(data[max(0, list_end - list_bytes) : list_end].tobytes())
    return {
        name: np.ndarray(tuple(place["shape"]), np.dtype(place["dtype"]), data.data, place["start"])
        for name, place in places.items()
    }


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
