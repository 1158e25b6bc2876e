"""The memory that this process may use: what its control groups give it, or else the machine's."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from trivec_server.control_groups import CGROUPS, OWN_CGROUP, groups_of, read_value
from trivec_server.metrics.exposition import Family, Sample


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


def read_memory(mount: Path = CGROUPS, own: Path = OWN_CGROUP) -> MemoryUse:
    """
    The control group with the least room, if any limits memory; else the machine.

    Linux, Documentation/admin-guide/cgroup-v2.rst (`memory.max`) and cgroup-v1/memory.rst. Used is what cAdvisor calls
    the working set: without the file cache that is not in active use.

    Args:
        mount: Where control groups are mounted.
        own: The file that names this process's groups, as /proc/self/cgroup.
    """
    machine = psutil.virtual_memory()
    uses = [use for use in _group_uses(mount, own) if use.limit < machine.total]
    return min(
        uses, key=lambda use: use.limit - use.used, default=MemoryUse(machine.total - machine.available, machine.total)
    )


def memory_families() -> Iterator[Family]:
    """`trivec_memory_*`."""
    use = read_memory()
    limit_text = "The memory that the container, or else the machine, has."
    yield Family("trivec_memory_limit_bytes", "gauge", limit_text, [Sample({}, use.limit)])
    yield Family("trivec_memory_used_bytes", "gauge", "Of that in use.", [Sample({}, use.used)])


def _group_uses(mount: Path, own: Path) -> Iterator[MemoryUse]:
    for group, is_v2 in groups_of("memory", mount, own):
        names = _V2 if is_v2 else _V1
        limit, used = read_value(group / names.limit), read_value(group / names.used)
        if limit.isdecimal() and used.isdecimal() and int(limit):
            lines = read_value(group / "memory.stat").splitlines()
            statistics = dict(line.split(" ", 1) for line in lines if " " in line)
            yield MemoryUse(max(0, int(used) - int(statistics.get(names.reclaimable, "0"))), int(limit))
