"""Tensors' elements as they travel: raw buffers, and BYTES, each element with its length before it."""

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trivec_server.errors import InvalidTensor
from trivec_server.transport.kserve.subject import Subject

Buffer: TypeAlias = bytes | memoryview

BYTES = "BYTES"

LENGTH = struct.Struct("<I")
"""What stands before each element of raw BYTES."""


def split_elements(raw: bytes, count: int, name: str, subject: Subject) -> list[bytes]:
    """
    The elements of a raw BYTES tensor: each is its length, uint32 little-endian, and so many bytes.

    Args:
        raw: The bytes.
        count: How many elements the tensor's shape asks for; no more than one beyond them is read.
        name: The input's name, for errors.
        subject: What errors are about.

    Raises:
        InvalidTensor: the bytes are not so many elements.
    """
    elements: list[bytes] = []
    at, end, start = 0, len(raw), 0
    # One element too many is enough to know.
    while at < end and len(elements) <= count:
        start = at + LENGTH.size
        if start > end:
            raise subject.refuse(
                f"incomplete string length indicator for inference input '{name}' for model '{subject.model}', "
                f"expecting 4 bytes but only {end - at} bytes available. Please make sure the string length indicator "
                "is in one buffer."
            )
        at = start + LENGTH.unpack_from(raw, at)[0]
        elements.append(raw[start:at])
    check_element_count(len(elements), count, name, subject)
    if at > end:
        raise InvalidTensor(
            f"incomplete string data for inference input '{name}', expecting string of length {at - start} but only "
            f"{end - start} bytes available"
        )
    return elements


def check_element_count(given: int, count: int, name: str, subject: Subject) -> None:
    """
    Checks the number of elements of a BYTES tensor.

    Raises:
        InvalidTensor: it is not what the tensor's shape asks for.
    """
    if given == count:
        return
    about = f"for inference input '{name}' for model '{subject.model}'"
    if given > count:
        raise subject.refuse(f"unexpected number of string elements {count + 1} {about}, expecting {count}")
    raise subject.refuse(f"expected {count} string elements {about}, got {given}")


def join_elements(elements: Sequence[bytes]) -> bytes:
    """Raw BYTES, as `split_elements` reads them."""
    pieces: list[bytes] = []
    for element in elements:
        pieces.append(LENGTH.pack(len(element)))
        pieces.append(element)
    return b"".join(pieces)


def as_buffer(array: NDArray[Any]) -> Buffer:
    """The array's memory, row by row; a copy only where it does not lie so."""
    if array.dtype == np.object_:
        return join_elements(array.reshape(-1).tolist())
    if array.size and array.flags.c_contiguous:
        return array.data.cast("B")
    return array.tobytes()
