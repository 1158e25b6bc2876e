"""Files that are taken up anew when they change."""

from collections.abc import Sequence
from pathlib import Path

_Look = tuple[tuple[int, int, int, int] | None, ...]


class WatchedFiles:
    """
    Tells of a change once: when a look finds the files as the look before did, so that several files that belong
    together, or a file that is being written, are not read halfway.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """What is there now counts as known: make it before the files are read."""
        self._paths = tuple(paths)
        self._known = self._seen = self._look()

    def have_changed(self) -> bool:
        """One look. For one thread at a time."""
        now = self._look()
        at_rest = now == self._seen
        self._seen = now
        if not at_rest or now == self._known:
            return False
        self._known = now
        return True

    def _look(self) -> _Look:
        return tuple(map(_identity, self._paths))


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    """What changes when a file does, links followed; None where there is none to be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
