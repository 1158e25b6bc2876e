"""Ports for what has to be told its own."""

import random
import socket

_FIRST, _LAST = 20_000, 31_999
"""Below the ports of outgoing connections, of which one could take a server's before it starts, or while it is down."""


def free_ports(count: int) -> list[int]:
    """
    So many different ports of 127.0.0.1 on which nothing listens.

    Raises:
        RuntimeError: there are not so many.
    """
    found: list[int] = []
    candidates = random.sample(range(_FIRST, _LAST + 1), _LAST + 1 - _FIRST)
    for port in candidates:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} ports are free between {_FIRST} and {_LAST} of 127.0.0.1")


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    return free_ports(1)[0]
