"""Files that are taken up anew when they change."""

from collections.abc import Sequence
from pathlib import Path

_Look = tuple[tuple[int, int, int, int] | None, ...]


class WatchedFiles:
    """
    Tells of a change once: when a look finds the files as the look before did, so that several files that belong
    together, or a file that is being written, are not read halfway. What was refused is told of again at each look: the
    reason may pass by itself, as with a clock that is behind, or a disk.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """What is there now counts as known: make it before the files are read."""
        self._paths = tuple(paths)
        self._known = self._seen = self._look()
        self._is_refused = False
        self._reason = ""

    def have_changed(self) -> bool:
        """One look. For one thread at a time."""
        now = self._look()
        at_rest = now == self._seen
        self._seen = now
        if not at_rest or (now == self._known and not self._is_refused):
            return False
        if now != self._known:
            self._reason = ""
        self._known = now
        self._is_refused = False
        return True

    def refuse(self, reason: str) -> bool:
        """What `have_changed` told of cannot be used. Returns whether that is news."""
        self._is_refused = True
        is_news = reason != self._reason
        self._reason = reason
        return is_news

    def _look(self) -> _Look:
        return tuple(map(_identity, self._paths))


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    """What changes when a file does, links followed; None where there is none to be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
