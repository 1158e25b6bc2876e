"""Linux's control groups: those that this process is in, by which a container is limited. A leaf of the program."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Where they are mounted."""
OWN_CGROUP = Path("/proc/self/cgroup")
"""The file that names this process's groups."""


def groups_of(controller: str, mount: Path = CGROUPS, own: Path = OWN_CGROUP) -> Iterator[tuple[Path, bool]]:
    """
    The groups with this controller (`cpu`, `memory`), the process's own first and then those above it, and whether each
    is of version 2. None where there are no control groups.

    Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1.
    """
    for line in read_value(own).splitlines():
        _, controllers, group = line.split(":", 2)
        is_v2 = not controllers
        if not is_v2 and controller not in controllers.split(","):
            continue
        top = mount if is_v2 else mount / controller
        # A container sees its own group as the mount's top, though the name may be that of the host.
        directory = top / group.strip("/")
        for each in (directory, *directory.parents):
            if each.is_relative_to(top):
                yield each, is_v2


def read_value(path: Path) -> str:
    """What a file of a group says; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
