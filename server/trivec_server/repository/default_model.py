"""The model of requests that name none."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from trivec_server.errors import LoadError
from trivec_server.repository.manifest import read_manifest
from trivec_server.repository.records import EmbeddingVersion, State, VersionRecord
from trivec_server.repository.scan import ModelEntry

_T = TypeVar("_T")


def default_of_entries(entries: Iterable[ModelEntry]) -> str | None:
    """
    The default where none was chosen: the only embedding model with a version to load; of several, the only one that
    was not made for demonstrations. None if that leaves no one, or more than one.
    """
    loadable = [
        entry for entry in entries if entry.error is None and entry.settings is not None and not entry.settings.tensors
    ]
    return _only(loadable, _is_demonstration, lambda entry: entry.name)


def default_of_served(records: Iterable[VersionRecord]) -> str | None:
    """The same, of the models that serve."""
    served = {
        record.key.name: record.served
        for record in records
        if record.state is State.READY and isinstance(record.served, EmbeddingVersion)
    }
    return _only(
        list(served.values()),
        lambda version: version.loaded.manifest.model.demonstration,
        lambda version: version.key.name,
    )


def _only(models: Sequence[_T], is_demonstration: Callable[[_T], bool], name: Callable[[_T], str]) -> str | None:
    if len(models) > 1:
        models = [model for model in models if not is_demonstration(model)]
    return name(models[0]) if len(models) == 1 else None


def _is_demonstration(entry: ModelEntry) -> bool:
    try:
        return read_manifest(entry.versions[-1].path).model.demonstration
    except LoadError:
        # Loading will say what is wrong with it.
        return False
