"""Room on disk, asked for before it is needed."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trivec_server.errors import CommandError


@dataclass(frozen=True, slots=True)
class SpaceNeed:
    """`bytes` more below `path`, which need not exist yet. `purpose` says what for, `mend` how to put it elsewhere."""

    path: Path
    bytes: int
    purpose: str
    mend: str


def check_space(needs: Iterable[SpaceNeed]) -> None:
    """
    Checks that each file system has room for all that is to be put on it.

    Raises:
        CommandError: one has not; says what is needed, for what, and what is free.
    """
    by_device: dict[int, list[SpaceNeed]] = {}
    for need in needs:
        if need.bytes > 0:
            by_device.setdefault(_existing(need.path).stat().st_dev, []).append(need)
    for shared in by_device.values():
        total = sum(need.bytes for need in shared)
        free = shutil.disk_usage(_existing(shared[0].path)).free
        if total > free:
            parts = ", ".join(f"{format_bytes(need.bytes)} for {need.purpose} in {need.path}" for need in shared)
            mends = " or ".join(need.mend for need in shared)
            raise CommandError(
                f"too little disk: {format_bytes(total)} needed, {format_bytes(free)} free ({parts}): "
                f"make room, or {mends}"
            )


def format_bytes(count: int) -> str:
    """A count of bytes for people: `2.27 GB`."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


def _existing(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
