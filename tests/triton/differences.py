"""
Where this server answers otherwise than Triton, on purpose: every case, with its reason. What is not named here is to
be the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """
    `expected` makes of Triton's record of a call what this server's is to be. `calls`: names, or beginnings of names
    that end with `*`.
    """

    reason: str
    calls: tuple[str, ...]
    expected: Callable[[Record], Record]

    def applies(self, name: str) -> bool:
        return any(name.startswith(call[:-1]) if call.endswith("*") else name == call for call in self.calls)


DIFFERENCES: tuple[Difference, ...] = ()


def expected(record: Record) -> Record:
    """What this server's record of a call is to be, from Triton's."""
    for difference in DIFFERENCES:
        if difference.applies(record["name"]):
            record = difference.expected(record)
    return record
