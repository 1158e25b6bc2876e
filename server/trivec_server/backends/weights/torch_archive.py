"""
Tensors out of a file that `torch.save` wrote, without torch and without running what its pickle says.

Such a file is a zip archive of uncompressed entries: `<name>/data.pkl`, a pickle of the names, shapes and strides, and
`<name>/data/<key>`, the raw numbers of each storage. A pickle can call any function it names. This reader knows the
few names that tensors need, gives harmless values in their place, and refuses every other name.
"""

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from trivec_server.errors import LoadError

_STORAGE_TYPES: Final[Mapping[str, str]] = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_LARGEST_PICKLE_BYTES = 64 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_CHECK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class RawArray:
    """
    Numbers as a file stores them: `array` is read-only and mapped from the file; `dtype` is the name of their type.

    NumPy has no bfloat16: such numbers are uint16 in `array`, with `dtype` "bfloat16".
    """

    array: NDArray[np.generic]
    dtype: str


class TorchArchive:
    """
    The state dictionary in one file that `torch.save` wrote (the zip format, of torch 1.6 and later).

    Opening reads the names only. Numbers stay on disk until `read` maps them.

    Raises:
        LoadError: the file is missing, truncated, damaged, in the older format, or its pickle names something that
            tensors do not need. Nothing from the pickle was run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checked: set[str] = set()
        try:
            with zipfile.ZipFile(path) as archive:
                self._entries = {entry.filename: entry for entry in archive.infolist()}
                self._folder, pickled = self._read_pickle(archive)
        except OSError as error:
            raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from None
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise LoadError(
                f"{path}: not a whole file of torch.save's zip format ({error}): it is truncated, damaged, or from "
                f"torch before 1.6. Download it again, or save it as model.safetensors"
            ) from None
        self._tensors = _load_tensors(path, pickled)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor, by name."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> RawArray:
        """
        Maps one tensor. The numbers are checked against the archive's CRC-32 first.

        Raises:
            KeyError: there is no such tensor.
            LoadError: its numbers are missing, damaged, or outside the file.
        """
        tensor = self._tensors[name]
        storage = tensor.storage
        stored = np.dtype("<u2" if storage.dtype == "bfloat16" else storage.dtype).newbyteorder("<")
        last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
        if math.prod(tensor.shape) == 0:
            return RawArray(np.zeros(tensor.shape, stored), storage.dtype)
        if last >= storage.numbers:
            self._refuse(f"tensor {name!r} reaches to number {last} of a storage of {storage.numbers}")
        content = self._map_storage(storage, stored.itemsize)
        strides = tuple(step * stored.itemsize for step in tensor.strides)
        array: NDArray[np.generic] = np.ndarray(
            tensor.shape, stored, content.data, tensor.offset * stored.itemsize, strides
        )
        return RawArray(array, storage.dtype)

    def _read_pickle(self, archive: zipfile.ZipFile) -> tuple[str, bytes]:
        found = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            self._refuse(f"a zip archive, but not torch.save's: it holds {len(found)} data.pkl, not one")
        if self._entries[found[0]].file_size > _LARGEST_PICKLE_BYTES:
            self._refuse(f"{found[0]} is over {_LARGEST_PICKLE_BYTES} bytes, too long for a list of tensors")
        folder = found[0].removesuffix("data.pkl")
        order = f"{folder}byteorder"
        if order in self._entries and archive.read(order).strip() != b"little":
            self._refuse("its numbers are big-endian; only little-endian files are read")
        return folder, archive.read(found[0])

    def _map_storage(self, storage: "_Storage", number_bytes: int) -> NDArray[np.uint8]:
        entry = self._entries.get(f"{self._folder}data/{storage.key}")
        if entry is None:
            self._refuse(f"the numbers data/{storage.key} are missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            self._refuse(f"data/{storage.key} is compressed or encrypted, which torch.save never does")
        if entry.file_size != storage.numbers * number_bytes:
            self._refuse(
                f"data/{storage.key} is truncated or damaged: {entry.file_size} bytes, "
                f"not {storage.numbers * number_bytes}"
            )
        try:
            with self._path.open("rb") as file:
                start = _find_content(file, entry)
            content: NDArray[np.uint8] = np.memmap(self._path, np.uint8, "r", start, (entry.file_size,))
        except (OSError, ValueError, struct.error) as error:
            self._refuse(f"data/{storage.key} cannot be read ({error}): the file is truncated or damaged")
        if storage.key not in self._checked and _crc32(content) != entry.CRC:
            self._refuse(f"data/{storage.key} is damaged: its CRC-32 is not the archive's. Download the file again")
        self._checked.add(storage.key)
        return content

    def _refuse(self, fault: str) -> NoReturn:
        raise LoadError(f"{self._path}: {fault}")


class _Storage(NamedTuple):
    """A run of `numbers` numbers of one type, in the archive's entry `data/<key>`."""

    dtype: str
    key: str
    numbers: int


class _Tensor(NamedTuple):
    """A view of a storage. `offset` and `strides` count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _load_tensors(path: Path, pickled: bytes) -> dict[str, _Tensor]:
    try:
        loaded = _TensorUnpickler(path, io.BytesIO(pickled)).load()
    except LoadError:
        raise
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise LoadError(f"{path}: its pickle is damaged or holds more than tensors: {error}") from None
    if not isinstance(loaded, dict):
        raise LoadError(f"{path}: holds a {type(loaded).__name__}, not a dictionary of tensors by name")
    return {name: value for name, value in dict.items(loaded) if isinstance(name, str) and isinstance(value, _Tensor)}


class _TensorUnpickler(pickle.Unpickler):
    """
    An unpickler that finds no real function or class, only this file's stand-ins.

    They are made anew for each file: a pickle can set attributes of what it was given, and must not reach the next.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(file)
        self._path = path
        self._stand_ins = _make_stand_ins()

    def find_class(self, module: str, name: str) -> object:
        """The stand-in for a name of the pickle; refuses a name that tensors do not need."""
        stand_in = self._stand_ins.get((module, name))
        if stand_in is None:
            raise LoadError(
                f"{self._path}: refused: its pickle names {module}.{name}, which tensors do not need and which could "
                f"run code. Nothing was run. Use a model.safetensors of this model"
            )
        return stand_in

    def persistent_load(self, pid: object) -> _Storage:
        """A reference to a storage: ("storage", type, key, device, count of numbers)."""
        match pid:
            case ("storage", str() as dtype, str() as key, str(), int() as numbers) if numbers >= 0:
                if dtype in _STORAGE_TYPES.values():
                    return _Storage(dtype, key, numbers)
        raise pickle.UnpicklingError(f"not a reference to a storage: {pid!r}")


def _make_stand_ins() -> dict[tuple[str, str], object]:
    class StateDict(dict[object, object]):
        """In place of OrderedDict. Whatever attributes the pickle wants to set are dropped."""

        def __setstate__(self, state: object) -> None:
            pass

    def rebuild_tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        (start,) = _natural_numbers((offset,))
        tensor = _Tensor(storage, start, _natural_numbers(shape), _natural_numbers(strides))
        if len(tensor.shape) != len(tensor.strides):
            raise pickle.UnpicklingError(f"a tensor of shape {tensor.shape} with strides {tensor.strides}")
        return tensor

    def rebuild_parameter(tensor: object, *_: object) -> object:
        return tensor

    functions: dict[tuple[str, str], Callable[..., object] | str] = {
        ("collections", "OrderedDict"): StateDict,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    }
    return {**functions, **{("torch", name): dtype for name, dtype in _STORAGE_TYPES.items()}}


def _natural_numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(value) is int and 0 <= value < 1 << 48 for value in values):
        raise pickle.UnpicklingError(f"a tensor's offset, shape or strides are not whole numbers: {values!r}")
    return values


def _find_content(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the entry's bytes start: after its local header, whose length the directory does not tell."""
    file.seek(entry.header_offset)
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ValueError("no zip header where the archive's directory points to")
    return entry.header_offset + _LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)


def _crc32(content: NDArray[np.uint8]) -> int:
    crc = 0
    for start in range(0, len(content), _CHECK_BYTES):
        crc = zlib.crc32(content[start : start + _CHECK_BYTES].data, crc)
    return crc
