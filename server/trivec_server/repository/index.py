"""The repository's index: what is there, and what has become of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trivec_server.repository.records import State, VersionRecord
from trivec_server.repository.roots import DUPLICATE


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """
    One line of the repository's index. `state` is READY, UNAVAILABLE, LOADING or UNLOADING; `version` and `state` are
    empty for a model that was never loaded.
    """

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


def list_index(records: Iterable[VersionRecord], directories: Mapping[str, Sequence[Path]]) -> list[IndexEntry]:
    """Every version known, and every model besides that has a directory; by name, then version."""
    entries = [
        IndexEntry(
            name=record.key.name,
            version=str(record.key.version) if record.key.version else "",
            state=record.state.name,
            reason=record.reason,
        )
        for record in records
    ]
    known = {entry.name for entry in entries}
    for name, paths in directories.items():
        if name not in known and len(paths) > 1:
            entries.append(IndexEntry(name=name, state=State.UNAVAILABLE.name, reason=DUPLICATE))
        elif name not in known:
            entries.append(IndexEntry(name=name))
    return sorted(entries, key=lambda entry: entry.name)
