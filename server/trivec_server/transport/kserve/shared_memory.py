"""
System shared memory that clients register, and tensors in it.

A region is read and written through its file descriptor, not through a mapping: a client that shortens its file would
otherwise end this process with SIGBUS.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from inference import grpc_service_pb2 as pb

from trivec_server.errors import (
    InvalidTensor,
    NotFound,
    SharedMemoryExists,
    SharedMemoryUnusable,
    Unsupported,
)
from trivec_server.transport.kserve.datatypes import Buffer

_DIRECTORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies on Linux
_SEMAPHORE = "sem."
"""How the names of POSIX semaphores begin, which lie in the same place and are nobody's tensors."""
_MAX_KEY_BYTES = 255
_MAX_REGIONS = 1024
DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
_REGION, _OFFSET, _SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"


class Placement(NamedTuple):
    """Where a tensor lies: so many bytes at an offset of a region."""

    region: str
    offset: int
    size: int


class Region:
    """A piece of a POSIX shared memory object. The object stays open until nobody uses the region any more."""

    def __init__(self, key: str, offset: int, size: int, descriptor: int) -> None:
        self.key = key
        self.offset = offset
        self.size = size
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, placement: Placement) -> bytes:
        """
        A copy of a tensor's bytes.

        Raises:
            SharedMemoryUnusable: the client has shortened the object.
        """
        pieces: list[bytes] = []
        at, left = self.offset + placement.offset, placement.size
        # One call gives at most 2 GiB.
        while left:
            piece = os.pread(self._descriptor, left, at)
            if not piece:
                raise SharedMemoryUnusable(f"Invalid shared memory region: '{self.key}'")
            pieces.append(piece)
            at += len(piece)
            left -= len(piece)
        return b"".join(pieces)

    def write(self, placement: Placement, buffers: Sequence[Buffer]) -> None:
        """
        Writes a tensor's bytes, which fit into the placement.

        Raises:
            SharedMemoryUnusable: the client has shortened the object.
        """
        at = self.offset + placement.offset
        if os.fstat(self._descriptor).st_size < at + sum(map(len, buffers)):
            raise SharedMemoryUnusable(f"Invalid shared memory region: '{self.key}'")
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                written = os.pwrite(self._descriptor, rest, at)
                at += written
                rest = rest[written:]


class SharedData(NamedTuple):
    """A tensor's bytes that lie in a region and have not been read."""

    region: Region
    placement: Placement

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.placement.size

    def read(self) -> bytes:
        """A copy; raises as `Region.read` does."""
        return self.region.read(self.placement)


class Regions:
    """The registered regions by name. Owned by the event loop."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._regions: dict[str, Region] = {}

    @property
    def allowed(self) -> bool:
        """Whether clients may register regions at all."""
        return self._allowed

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """
        Registers `size` bytes at `offset` of the POSIX shared memory object `key`.

        Raises:
            Unsupported: the server does not allow it.
            SharedMemoryExists: the name is taken.
            SharedMemoryUnusable: there is no such object, or it is smaller, or there are too many regions.
        """
        self._check_allowed()
        if name in self._regions:
            raise SharedMemoryExists(f"shared memory region '{name}' already in manager")
        if len(self._regions) >= _MAX_REGIONS:
            raise SharedMemoryUnusable(
                f"{_MAX_REGIONS} shared memory regions are registered, and no more may be; unregister some"
            )
        descriptor = _open(key)
        status = os.fstat(descriptor)
        fits = size > 0 and offset + size <= status.st_size
        if not (name and fits and stat.S_ISREG(status.st_mode)):
            os.close(descriptor)
            raise SharedMemoryUnusable(f"Invalid shared memory region: '{key}'")
        self._regions[name] = Region(key, offset, size, descriptor)

    def unregister(self, name: str) -> None:
        """
        Forgets a region, or all where no name is given. An unknown name is no error.

        Raises:
            Unsupported: the server does not allow it.
        """
        self._check_allowed()
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str) -> Mapping[str, Region]:
        """
        One region, or all where no name is given.

        Raises:
            NotFound: there is no region of that name.
        """
        if not name:
            return self._regions
        if name not in self._regions:
            raise NotFound(f"Unable to find system shared memory region: '{name}'")
        return {name: self._regions[name]}

    def find(self, placement: Placement) -> Region:
        """
        The region of a tensor.

        Raises:
            NotFound: it is not registered.
            InvalidTensor: the tensor does not lie within it.
        """
        region = self._regions.get(placement.region)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{placement.region}'")
        if not 0 <= placement.offset < region.size:
            raise InvalidTensor(f"Invalid offset for shared memory region: '{placement.region}'")
        if not 0 <= placement.size <= region.size - placement.offset:
            raise InvalidTensor(f"Invalid offset + byte size for shared memory region: '{placement.region}'")
        return region

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise Unsupported(DISABLED)


def parse_placement(parameters: Mapping[str, pb.InferParameter], tensor: str) -> Placement | None:
    """
    Where a tensor's parameters say that it lies; None: in the message.

    Raises:
        InvalidTensor: one of the parameters is missing or of the wrong type.
    """
    for key in (_OFFSET, _SIZE):
        if key in parameters and _REGION not in parameters:
            raise InvalidTensor(f"'{key}' can not be specified without '{_REGION}' parameter for tensor '{tensor}'")
    if _REGION not in parameters:
        return None
    kinds = ((_REGION, "string_param"), (_OFFSET, "int64_param"), (_SIZE, "int64_param"))
    for key, kind in kinds:
        if key in parameters and parameters[key].WhichOneof("parameter_choice") != kind:
            raise InvalidTensor(f"invalid value type for '{key}' parameter for tensor '{tensor}', expected {kind}.")
    if _SIZE not in parameters:
        raise InvalidTensor(f"'{_SIZE}' must be specified along with '{_REGION}' parameter for tensor '{tensor}'")
    offset = parameters[_OFFSET].int64_param if _OFFSET in parameters else 0
    return Placement(parameters[_REGION].string_param, offset, parameters[_SIZE].int64_param)


def _open(key: str) -> int:
    """
    Opens a POSIX shared memory object, whose name may have slashes before it and none in it.

    Raises:
        SharedMemoryUnusable: there is none, or the name is none.
    """
    name = key.lstrip("/")
    is_name = 0 < len(name.encode()) <= _MAX_KEY_BYTES and "/" not in name and "\0" not in name
    try:
        if is_name and name not in {".", ".."} and not name.startswith(_SEMAPHORE):
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(_DIRECTORY / name, flags)
    except OSError as error:
        raise SharedMemoryUnusable(f"Unable to open shared memory region: '{key}'") from error
    raise SharedMemoryUnusable(f"Unable to open shared memory region: '{key}'")
