"""One look at a model's directory: what config.pbtxt says, which versions there are, and how their files look."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from trivec_server.errors import LoadError
from trivec_server.repository.identity import (
    FileMark,
    Marks,
    VersionLook,
    content_digest,
    look_at_version,
    mark_file,
    verify_content,
)
from trivec_server.repository.manifest import MANIFEST_NAME
from trivec_server.repository.scan import CONFIG_NAME, ModelEntry, VersionSelection, scan_model, select_versions
from trivec_server.types import ModelSettings, VersionPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLook:
    """
    A model's directory at a glance. `config` is None where a configuration came with a load, or there is no file.
    `versions` are those that `entry` has, by number. `fault`: why none of them can be loaded, whatever it holds.
    """

    entry: ModelEntry
    config: FileMark | None
    versions: Mapping[int, VersionLook] = field(default_factory=dict)
    fault: str = ""

    @property
    def signature(self) -> object:
        """Equal for two looks between which nothing changed, versions apart that are not whole yet."""
        whole = tuple((number, look.marks) for number, look in self.versions.items() if not look.missing)
        return self.entry.error, self.config, whole

    @property
    def error(self) -> str | None:
        """Why the model cannot be served, for clients."""
        return None if self.entry.error is None else self.public(self.entry.error)

    def public(self, reason: str) -> str:
        """
        A reason without the repository's place on this machine, which is none of the clients' business. What is no
        text in a file's name is escaped.
        """
        said = reason.replace(f"{self.entry.path.parent}/", "")
        return said.encode(errors="backslashreplace").decode()

    @property
    def settings(self) -> ModelSettings:
        """What the configuration says; only of a model that can be read."""
        if self.entry.settings is None:
            raise LoadError(self.error or "the model cannot be read")
        return self.entry.settings

    @property
    def has_manifests(self) -> bool:
        """Whether the versions are of a kind that has one."""
        return self.entry.settings is not None and self.entry.settings.tensors is None and not self.fault

    def unfinished(self) -> dict[int, str]:
        """The versions that are not whole yet, with what is missing."""
        return {number: look.missing for number, look in self.versions.items() if look.missing}

    def select(self, available: Iterable[int]) -> VersionSelection:
        """What the version policy makes of some of the versions; empty if the model cannot be read."""
        settings = self.entry.settings
        if settings is None or self.entry.error is not None:
            return VersionSelection(())
        return select_versions(settings.version_policy, available)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionContent:
    """What a version was loaded from, and its settings. Two of them are equal whatever their files' times."""

    path: Path
    digest: str
    settings: ModelSettings
    marks: Marks = field(compare=False)


def look_at_model(
    path: Path, find_fault: Callable[[ModelSettings], str], *, config_json: str | None = None
) -> ModelLook:
    """
    Looks at a model's directory. Reads no file of a version but its manifest.

    Args:
        path: The directory.
        find_fault: Says what else keeps a model with these settings from being loaded.
        config_json: A configuration in place of config.pbtxt.
    """
    # Before the file is read: should it change meanwhile, the next look differs.
    config = None if config_json is not None else mark_file(path / CONFIG_NAME, CONFIG_NAME)
    entry = scan_model(path, config_json=config_json)
    settings = entry.settings
    fault = find_fault(settings) if settings is not None else ""
    is_of_texts = settings is not None and settings.tensors is None and not fault
    versions = {
        version.number: look_at_version(
            version.path,
            has_manifest=is_of_texts or (settings is None and (version.path / MANIFEST_NAME).exists()),
        )
        for version in entry.versions
    }
    return ModelLook(entry=entry, config=config, versions=versions, fault=fault)


def read_content(look: ModelLook, number: int, known: VersionContent | None) -> VersionContent:
    """
    What a version is. Equal to `known` if it is still that: of a version that looks different, its digest decides.

    Raises:
        LoadError: its manifest is wrong, a file cannot be read, or, while the manifest is the same, differs from it.
    """
    if look.fault:
        raise LoadError(look.fault)
    path, marks, _ = look.versions[number]
    # What only says which versions there are, or what the log was told, does not concern a version.
    settings = replace(look.settings, version_policy=VersionPolicy(), warnings=())
    if known is not None and (known.path, known.marks, known.settings) == (path, marks, settings):
        return known
    content = VersionContent(
        path=path, digest=content_digest(path, has_manifest=look.has_manifests), settings=settings, marks=marks
    )
    if content == known:
        verify_content(path, has_manifest=look.has_manifests)
    return content
