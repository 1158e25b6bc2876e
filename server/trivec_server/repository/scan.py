"""What a model repository holds: its models and versions, read from the directory tree. Loads nothing."""

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trivec_server.errors import CommandError, ConfigError
from trivec_server.repository.model_config import read_model_config, read_model_config_json
from trivec_server.types import ModelSettings, VersionPolicy

CONFIG_NAME = "config.pbtxt"

_MAX_NAME_BYTES = 255
_MAX_VERSION = 2**63 - 1
_OTHER_DIRECTORIES = frozenset({"configs", "warmup", "initial_state"})
"""Directories of a Triton model that are not versions."""

_MEND = "`trivec pull m3-mini` makes a repository with a small model"


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One version directory."""

    number: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """
    One model directory.

    `error` says why the model cannot be served, on one line; without it `settings` is set and `versions` is not empty.
    `versions` ascend, whatever the version policy says. `problems` are lines for the log that stop nothing.
    `name` is that of the directory, as `shown_name` gives it. `is_unreadable`: the directory is there, but what it
    holds cannot be told, which may be so for a moment only.
    """

    name: str
    path: Path
    settings: ModelSettings | None = None
    error: str | None = None
    versions: tuple[VersionEntry, ...] = ()
    problems: tuple[str, ...] = ()
    is_unreadable: bool = False


@dataclass(frozen=True, slots=True)
class VersionSelection:
    """The versions to serve, and those that the policy names but the model does not have; both ascend."""

    selected: tuple[int, ...]
    missing: tuple[int, ...] = ()


def scan_repository(root: Path) -> tuple[ModelEntry, ...]:
    """
    Reads every model directory of a repository, by name. Directories whose name begins with a dot are left out.

    Raises:
        CommandError: the repository itself is missing, not a directory, or cannot be read.
    """
    return tuple(scan_model(path) for path in list_models(root))


def list_models(root: Path) -> tuple[Path, ...]:
    """
    The model directories of a repository, by name. Reads nothing in them.

    Raises:
        CommandError: as for `scan_repository`.
    """
    try:
        children = sorted(root.iterdir(), key=lambda child: child.name)
    except FileNotFoundError:
        raise CommandError(f"model repository {root} does not exist; {_MEND}") from None
    except NotADirectoryError:
        raise CommandError(f"model repository {root} is not a directory; {_MEND}") from None
    except OSError as error:
        raise CommandError(f"model repository {root} cannot be read: {error.strerror}") from None
    # A link that leads nowhere is a model that is lost, not a stray file.
    return tuple(
        child for child in children if not child.name.startswith(".") and (_is_directory(child) or child.is_symlink())
    )


def is_model_name(name: str) -> bool:
    """Whether a directory of this name is a model's: nothing else that is put after a path, such as `..` or `a/b`."""
    if "/" in name or name.startswith(".") or not name.isprintable():
        return False
    return 0 < len(name.encode()) <= _MAX_NAME_BYTES


def shown_name(name: str) -> str:
    """What a directory is called where only text can stand: its name, or what `ascii` makes of one that is no text."""
    return name if name.isprintable() else ascii(name)


def select_versions(policy: VersionPolicy, available: Iterable[int]) -> VersionSelection:
    """Applies a version policy to the versions that a model has."""
    versions = sorted(set(available))
    if policy.specific is not None:
        wanted = sorted(set(policy.specific))
        return VersionSelection(
            tuple(version for version in wanted if version in versions),
            tuple(version for version in wanted if version not in versions),
        )
    if policy.latest is not None:
        return VersionSelection(tuple(versions[-policy.latest :]))
    return VersionSelection(tuple(versions))


def scan_model(path: Path, *, config_json: str | None = None) -> ModelEntry:
    """
    Reads one model directory. `config_json`: a ModelConfig in JSON, in place of config.pbtxt.
    """
    name = shown_name(path.name)
    if not is_model_name(path.name):
        error = f"{path.name!a}: not a model name: printable text of at most {_MAX_NAME_BYTES} bytes in UTF-8"
        return ModelEntry(name=name, path=path, error=error)
    try:
        children = sorted(path.iterdir(), key=lambda child: child.name)
    except FileNotFoundError:
        return ModelEntry(name=name, path=path, error=f"{path}: a link to a directory that does not exist")
    except OSError as error:
        reason = f"{path}: cannot be read: {error.strerror}"
        return ModelEntry(name=name, path=path, error=reason, is_unreadable=True)
    settings, config_error = _read_settings(path, {child.name for child in children}, config_json)
    problems: list[str] = []
    versions: dict[int, VersionEntry] = {}
    version_error = None
    for child in children:
        number = _version_number(child, problems)
        if number is None:
            continue
        if number in versions:
            both = f"{versions[number].path.name} and {child.name}"
            version_error = f"{path}: {both} are the same version; remove one of them"
        versions[number] = VersionEntry(number, child)
    if not versions:
        version_error = f"{path}: no version: it needs a directory named by a positive integer, such as {path / '1'}"
    return ModelEntry(
        name=name,
        path=path,
        settings=settings,
        error=config_error or version_error,
        versions=tuple(versions[number] for number in sorted(versions)),
        problems=tuple(problems),
    )


def _read_settings(
    model_dir: Path, children: set[str], config_json: str | None
) -> tuple[ModelSettings | None, str | None]:
    """A model that takes tensors may do without a configuration: its file says what it is."""
    config = model_dir / CONFIG_NAME
    is_missing = config_json is None and CONFIG_NAME not in children
    text = "{}" if config_json is None else config_json
    try:
        if config_json is None and not is_missing:
            return read_model_config(config, model_dir.name), None
        return read_model_config_json(text, model_dir.name, model_dir=model_dir), None
    except ConfigError as error:
        if is_missing:
            return (
                None,
                f"{config}: not found; an embedding model needs one, docs/model-repository.md says what is in it",
            )
        return None, str(error)


def _version_number(path: Path, problems: list[str]) -> int | None:
    """The version that a child of a model directory is, or None; what looks like one and is not becomes a problem."""
    name = path.name
    numeric = re.fullmatch(r"[0-9]+", name) is not None
    if name.startswith(".") or name in _OTHER_DIRECTORIES or not (numeric or _is_directory(path)):
        return None
    shown_path = f"{path.parent}/{shown_name(name)}"
    if not numeric:
        problems.append(f"{shown_path}: ignored: {name!a} is not a version, a positive integer")
    elif not _is_directory(path):
        problems.append(f"{shown_path}: ignored: a version must be a directory")
    elif len(name.lstrip("0")) > len(str(_MAX_VERSION)) or not 1 <= int(name) <= _MAX_VERSION:
        problems.append(f"{shown_path}: ignored: a version is an integer from 1 to {_MAX_VERSION}")
    else:
        if name.startswith("0"):
            problems.append(f"{shown_path}: leading zeros are left out: this is version {int(name)}")
        return int(name)
    return None


def _is_directory(path: Path) -> bool:
    """Whether a path leads to a directory. One that cannot be asked just now is not taken for gone."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
