"""
Writes a state dict in the archive format of `torch.save` without torch, so that tests make `.pt` files anywhere.

The format is a ZIP file of stored (not compressed) members below one folder: `data.pkl` describes the tensors,
`data/<n>` holds the bytes of storage n, `byteorder` and `version` are one word each. The pickle is a program for a
stack machine; the few instructions that a state dict needs are written out below.
"""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_STORAGE_CLASSES = {np.dtype("<f4"): "FloatStorage", np.dtype("<f2"): "HalfStorage"}
_ARCHIVE_VERSION = b"3\n"


def write_torch_archive(path: Path, tensors: Mapping[str, NDArray[np.float16] | NDArray[np.float32]]) -> None:
    """
    Writes `tensors` as `torch.save(OrderedDict(...), path)` would.

    Args:
        path: The file to write; its stem names the folder inside the archive.
        tensors: Name to array, float16 or float32, in the order to be kept.
    """
    folder = path.stem
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{folder}/data.pkl", _state_dict_pickle(tensors))
        archive.writestr(f"{folder}/byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            little_endian = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
            archive.writestr(f"{folder}/data/{key}", little_endian.tobytes())
        archive.writestr(f"{folder}/version", _ARCHIVE_VERSION)


def _state_dict_pickle(tensors: Mapping[str, NDArray[np.float16] | NDArray[np.float32]]) -> bytes:
    program = [pickle.PROTO, b"\x02", _empty_ordered_dict(), pickle.MARK]
    for key, (name, tensor) in enumerate(tensors.items()):
        program += [_text(name), _tensor(str(key), tensor)]
    program += [pickle.SETITEMS, pickle.STOP]
    return b"".join(program)


def _tensor(key: str, tensor: NDArray[np.float16] | NDArray[np.float32]) -> bytes:
    """The call `torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, requires_grad=False, hooks={})`."""
    storage_class = _STORAGE_CLASSES[tensor.dtype.newbyteorder("<")]
    strides = [int(np.prod(tensor.shape[axis + 1 :])) for axis in range(tensor.ndim)]
    storage = _tuple(_text("storage"), _global("torch", storage_class), _text(key), _text("cpu"), _integer(tensor.size))
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _integer(0),
        _tuple(*map(_integer, tensor.shape)),
        _tuple(*map(_integer, strides)),
        pickle.NEWFALSE,
        _empty_ordered_dict(),
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _empty_ordered_dict() -> bytes:
    return _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
