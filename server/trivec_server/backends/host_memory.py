"""The memory of the host that the C library holds."""

import ctypes

_LIBC = ctypes.CDLL(None)


def give_memory_back() -> None:
    """Lets glibc return freed memory to the system, which it otherwise keeps; other C libraries have no such call."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)
