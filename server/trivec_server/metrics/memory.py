"""The memory that this process may use: what its control groups give it, or else the machine's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from trivec_server.metrics.exposition import Family, Sample

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Of one control group, or of the machine, in bytes; `used` leaves out what can be had back at once."""

    used: int
    limit: int

    @property
    def share(self) -> float:
        """How much of it is in use, 0 to 1."""
        return self.used / self.limit


@dataclass(frozen=True, slots=True)
class _Names:
    """The files of one version of control groups, and the line of `memory.stat` that can be had back at once."""

    limit: str
    used: str
    reclaimable: str


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Names("memory.max", "memory.current", "inactive_file")


def read_memory(mount: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> MemoryUse:
    """
    The control group with the least room, if any limits memory; else the machine.

    Linux, Documentation/admin-guide/cgroup-v2.rst (`memory.max`) and cgroup-v1/memory.rst. Used is what cAdvisor calls
    the working set: without the file cache that is not in active use.

    Args:
        mount: Where control groups are mounted.
        own: The file that names this process's groups, as /proc/self/cgroup.
    """
    machine = psutil.virtual_memory()
    uses = [use for use in _groups(mount, own) if use.limit < machine.total]
    return min(
        uses, key=lambda use: use.limit - use.used, default=MemoryUse(machine.total - machine.available, machine.total)
    )


def memory_families() -> Iterator[Family]:
    """`trivec_memory_*`."""
    use = read_memory()
    limit_text = "The memory that the container, or else the machine, has."
    yield Family("trivec_memory_limit_bytes", "gauge", limit_text, [Sample({}, use.limit)])
    yield Family("trivec_memory_used_bytes", "gauge", "Of that in use.", [Sample({}, use.used)])


def _groups(mount: Path, own: Path) -> Iterator[MemoryUse]:
    """The groups that limit memory: this process's own, and those above it."""
    for line in _text(own).splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            top, names = mount, _V2
        elif "memory" in controllers.split(","):
            top, names = mount / "memory", _V1
        else:
            continue
        # A container sees its own group as the mount's top, though the name may be that of the host.
        directory = top / group.strip("/")
        yield from _uses([each for each in (directory, *directory.parents) if each.is_relative_to(top)], names)


def _uses(directories: Sequence[Path], names: _Names) -> Iterator[MemoryUse]:
    for directory in directories:
        limit, used = _text(directory / names.limit), _text(directory / names.used)
        if limit.isdecimal() and used.isdecimal() and int(limit):
            statistics = dict(
                line.split(" ", 1) for line in _text(directory / "memory.stat").splitlines() if " " in line
            )
            yield MemoryUse(max(0, int(used) - int(statistics.get(names.reclaimable, "0"))), int(limit))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
