"""
The weights of an encoder, by name, from the files that the hub keeps them in: safetensors, sharded or not, or
`pytorch_model.bin`. All are mapped from the file, never read into memory whole.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from trivec_server.backends.weights.torch_archive import RawArray, TorchArchive
from trivec_server.errors import LoadError

_SAFETENSORS_TYPES: Final[Mapping[str, str]] = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "U8": "uint8",
}
_STORED_TYPES: Final[Mapping[str, str]] = {
    "float32": "<f4",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float64": "<f8",
    "uint8": "u1",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a file; `read` maps its numbers."""

    path: Path
    shape: tuple[int, ...]
    read: Callable[[], RawArray]


class WeightFiles:
    """
    Tensors by name out of one or more files. A TensorSource of the graph writer.

    A prefix that all encoders of a kind may have or lack (`roberta.`, `bert.`, `model.`) is not part of the names.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], prefixes: Sequence[str] = ()) -> None:
        prefix = next((found for found in prefixes if any(name.startswith(found) for name in tensors)), "")
        self.tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

    @classmethod
    def joined(cls, parts: "Mapping[str, WeightFiles]") -> "WeightFiles":
        """The tensors of all parts, each part's names with its key put before them."""
        return cls({f"{key}{name}": tensor for key, part in parts.items() for name, tensor in part.tensors.items()})

    def names(self) -> tuple[str, ...]:
        """Every name, as the files have them, less the prefix."""
        return tuple(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """
        The shape of a tensor; reads no numbers.

        Raises:
            LoadError: the files hold no such tensor.
        """
        return self._find(name).shape

    def path(self, name: str) -> Path:
        """
        The file that holds a tensor.

        Raises:
            LoadError: the files hold no such tensor.
        """
        return self._find(name).path

    def get(self, name: str) -> NDArray[np.generic]:
        """
        A tensor, read-only and mapped from the file: float32, float16, float64 or uint8 as stored. NumPy has no
        bfloat16: that is widened to float32 in memory, which is exact.

        Raises:
            LoadError: the files hold no such tensor, or it is damaged or of another type.
        """
        tensor = self._find(name)
        raw = tensor.read()
        if raw.dtype not in _STORED_TYPES:
            raise LoadError(f"{tensor.path}: tensor {name!r} is {raw.dtype}; weights are {', '.join(_STORED_TYPES)}")
        if raw.dtype != "bfloat16":
            return raw.array
        widened = np.empty(raw.array.shape, np.uint32)
        np.left_shift(cast("NDArray[np.uint16]", raw.array), 16, out=widened, dtype=np.uint32)
        return widened.view(np.float32)

    def _find(self, name: str) -> StoredTensor:
        try:
            return self.tensors[name]
        except KeyError:
            paths = sorted({str(tensor.path) for tensor in self.tensors.values()})
            raise LoadError(f"{', '.join(paths) or 'the weight files'}: no tensor {name!r}") from None


def open_torch(path: Path, prefixes: Sequence[str] = ()) -> WeightFiles:
    """
    Opens `pytorch_model.bin` or a head's `.pt` file.

    Raises:
        LoadError: as TorchArchive.
    """
    archive = TorchArchive(path)

    def reader(name: str) -> Callable[[], RawArray]:
        return lambda: archive.read(name)

    return WeightFiles(
        {name: StoredTensor(path, shape, reader(name)) for name, shape in archive.shapes().items()}, prefixes
    )


def open_safetensors(path: Path, prefixes: Sequence[str] = ()) -> WeightFiles:
    """
    Opens one safetensors file.

    Raises:
        LoadError: the file is missing, truncated or damaged.
    """
    return WeightFiles(_scan_safetensors(path), prefixes)


def open_sharded_safetensors(index_path: Path, prefixes: Sequence[str] = ()) -> WeightFiles:
    """
    Opens the safetensors files that a `model.safetensors.index.json` lists; they lie beside it.

    Raises:
        LoadError: the index or a file is missing, truncated or damaged, or a file lacks a tensor it should have.
    """
    places = read_shard_index(index_path)
    tensors: dict[str, StoredTensor] = {}
    for file_name in sorted(set(places.values())):
        held = _scan_safetensors(index_path.parent / file_name)
        for name, place in places.items():
            if place == file_name and name not in held:
                raise LoadError(
                    f"{index_path.parent / file_name}: no tensor {name!r}, though {index_path.name} says so"
                )
        tensors |= held
    return WeightFiles(tensors, prefixes)


def read_shard_index(index_path: Path) -> dict[str, str]:
    """
    The file name of each tensor, from a `model.safetensors.index.json`.

    Raises:
        LoadError: the index is missing or damaged, or names a file outside its own directory.
    """
    try:
        document = json.loads(index_path.read_bytes())
    except OSError as error:
        raise LoadError(f"{index_path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise LoadError(f"{index_path}: is not JSON: {error}") from None
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not places:
        raise LoadError(f"{index_path}: has no weight_map of tensor names to file names")
    for name, place in places.items():
        if not isinstance(place, str) or Path(place).name != place:
            raise LoadError(f"{index_path}: weight_map of {name!r} must be a plain file name, not {place!r}")
    return cast("dict[str, str]", places)


def _scan_safetensors(path: Path) -> dict[str, StoredTensor]:
    # The library checks the header against itself and the file's size; it cannot map, nor read bfloat16 for NumPy.
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            header = cast("dict[str, dict[str, object]]", json.loads(file.read(header_bytes)))
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, struct.error) as error:
        raise LoadError(f"{path}: truncated or damaged: {error}. Download it again") from None
    header.pop("__metadata__", None)
    return {name: _locate(path, 8 + header_bytes, entry) for name, entry in header.items()}


def _locate(path: Path, start: int, entry: dict[str, object]) -> StoredTensor:
    shape = tuple(cast("list[int]", entry["shape"]))
    first, end = cast("list[int]", entry["data_offsets"])
    dtype = _SAFETENSORS_TYPES.get(str(entry["dtype"]), str(entry["dtype"]))

    def read() -> RawArray:
        if dtype not in _STORED_TYPES:
            return RawArray(np.zeros(0, np.uint8), dtype)
        stored = np.dtype(_STORED_TYPES[dtype])
        if first == end:
            return RawArray(np.zeros(shape, stored), dtype)
        content: NDArray[np.uint8] = np.memmap(path, np.uint8, "r", start + first, (end - first,))
        return RawArray(content.view(stored).reshape(shape), dtype)

    return StoredTensor(path, shape, read)
