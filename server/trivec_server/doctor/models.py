"""The model repository: its models, their configurations, and the files of the versions that would be served."""

import difflib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trivec_server.doctor.finding import Finding, Status, fails
from trivec_server.doctor.program import trivec, trivec_serve
from trivec_server.errors import CommandError, LoadError
from trivec_server.repository.manifest import Manifest, read_manifest, verify_files
from trivec_server.repository.scan import CONFIG_NAME, ModelEntry, scan_repository, select_versions
from trivec_server.repository.space import format_bytes
from trivec_server.settings import ServeSettings
from trivec_server.types import InstanceGroup, ModelSettings, ModelVersion, TensorSettings

_MINI = "m3-mini"
_LOADED_RATIO = {"float32": 1.25}
_OTHER_LOADED_RATIO = 2.5
"""Memory of a loaded version over its files; the CPU computes in float32, whatever the files hold."""


@dataclass(frozen=True, slots=True)
class RepositoryReport:
    """The findings, the bytes of memory that the versions to be served take, and the keys of those versions."""

    findings: tuple[Finding, ...]
    model_bytes: int = 0
    served: tuple[ModelVersion, ...] = ()


def check_repository(settings: ServeSettings, *, load: bool) -> RepositoryReport:
    """
    Reads the repository as `trivec serve` does, and all files of the versions that it would load; with `load` loads
    each of them and runs its self-check, too.
    """
    root = settings.model_repositories[0]
    pull = trivec("pull", _MINI, "--model-repository", root)
    try:
        entries = scan_repository(root)
    except CommandError as error:
        mend = trivec("serve", "--model-repository", "ANOTHER_DIRECTORY") if root.exists() else pull
        return RepositoryReport((Finding("repository", Status.FAIL, str(error), mend),))
    if _is_model(root, entries):
        parent = root.resolve().parent if root.name in ("", "..") else root.parent
        fact = f"{root}: this looks like a model's directory; give its parent"
        mend = trivec("serve", "--model-repository", parent)
        return RepositoryReport((Finding("repository", Status.FAIL, fact, mend),))
    if not entries:
        return RepositoryReport((Finding("repository", Status.FAIL, f"{root} holds no model", pull),))
    names = [entry.name for entry in entries]
    findings = [Finding("repository", Status.OK, f"{root}: {', '.join(names)}"), *_check_names(settings, names)]
    wanted = [entry for entry in entries if not settings.load_models or entry.name in settings.load_models]
    models = {entry.name: _check_model(entry, load=load) for entry in wanted}
    served = tuple(key for model in models.values() for key in model.served)
    of_models = [finding for model in models.values() for finding in model.findings]
    if served and fails(of_models):
        # `trivec serve` starts, and serves the others.
        of_models = [
            replace(finding, status=Status.WARN) if finding.status is Status.FAIL else finding for finding in of_models
        ]
        of_models.append(Finding("models", Status.WARN, _tell_served(models)))
    model_bytes = sum(model.model_bytes for model in models.values())
    return RepositoryReport((*findings, *of_models), model_bytes, served)


def _is_model(root: Path, entries: Sequence[ModelEntry]) -> bool:
    """Whether what was given as the repository is the directory of a model: it holds versions, or a model's config."""
    if not entries:
        return (root / CONFIG_NAME).exists()
    return all(entry.name.isdecimal() and entry.settings is None for entry in entries)


def _tell_served(models: Mapping[str, RepositoryReport]) -> str:
    """Which would be served and which not: by the model's name, or by versions where only some of a model's would."""
    served: list[str] = []
    unserved: list[str] = []
    for name, model in models.items():
        faults = dict.fromkeys(finding.check.removeprefix("model ") for finding in model.findings if fails([finding]))
        if not model.served:
            unserved.append(name)
        elif faults:
            served += map(str, model.served)
            unserved += faults
        else:
            served.append(name)
    return f"{', '.join(unserved)} would not be served; {', '.join(served)} would"


def _check_names(settings: ServeSettings, names: list[str]) -> Iterator[Finding]:
    asked = [("--load-model", name) for name in settings.load_models]
    if settings.default_model is not None:
        asked.append(("--default-model", settings.default_model))
    for flag, name in asked:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1) or names
            fact = f"{flag} {name}: the repository has no such model"
            yield Finding("repository", Status.FAIL, fact, trivec_serve(settings, {flag: close[0]}))


def _check_model(entry: ModelEntry, *, load: bool) -> RepositoryReport:
    check = f"model {entry.name}"
    findings = [Finding(check, Status.WARN, problem) for problem in entry.problems]
    settings = entry.settings
    if settings is not None:
        findings += [Finding(check, Status.WARN, warning) for warning in settings.warnings]
    if settings is None or entry.error is not None:
        findings.append(Finding(check, Status.FAIL, entry.error or "cannot be read", _mend_model(entry)))
        return RepositoryReport(tuple(findings))
    unknown = list(_check_backend(check, entry, settings))
    if unknown:
        return RepositoryReport((*findings, *unknown))
    selection = select_versions(settings.version_policy, [version.number for version in entry.versions])
    for number in selection.missing:
        fact = f"version_policy in config.pbtxt asks for version {number}, which is not there"
        key = ModelVersion(entry.name, number)
        findings.append(Finding(f"model {key}", Status.FAIL, fact, _edit_config(entry)))
    model_bytes = 0
    served: list[ModelVersion] = []
    for version in entry.versions:
        if version.number in selection.selected:
            check_version = _check_version if settings.tensors is None else _check_tensors
            checked = check_version(entry, ModelVersion(entry.name, version.number), version.path, settings, load=load)
            findings += checked.findings
            model_bytes += checked.model_bytes
            served += checked.served
    return RepositoryReport(tuple(findings), model_bytes, tuple(served))


def _check_backend(check: str, entry: ModelEntry, settings: ModelSettings) -> Iterator[Finding]:
    from trivec_server.repository.engines import AUTO, ENGINES  # noqa: PLC0415 - needs the server's packages

    if settings.backend not in (AUTO, *ENGINES):
        known = ", ".join(sorted((AUTO, *ENGINES)))
        fact = f"backend `{settings.backend}` in config.pbtxt is not known; known are {known}"
        yield Finding(check, Status.FAIL, fact, _edit_config(entry))


def _check_version(
    entry: ModelEntry, key: ModelVersion, path: Path, settings: ModelSettings, *, load: bool
) -> RepositoryReport:
    from trivec_server.serving.tokenizer import Tokenizer  # noqa: PLC0415 - needs the server's packages

    check = f"model {key}"
    manifest = None
    try:
        manifest = read_manifest(path)
        verify_files(path, manifest)
        Tokenizer(path / "tokenizer.json")
        _check_agreement(settings, manifest)
        if load:
            _load(key, path, settings)
    except LoadError as error:
        # Errors that begin so ask for another config.pbtxt, and a pull never writes over one.
        of_config = str(error).startswith(CONFIG_NAME)
        mend = _edit_config(entry) if of_config else _mend_version(entry, path, manifest)
        return RepositoryReport((Finding(check, Status.FAIL, str(error), mend),))
    size = sum(facts.bytes for facts in manifest.files.values())
    done = "loaded and self-checked" if load else "checksums right"
    fact = f"{manifest.source}, {manifest.model.precision}, {format_bytes(size)}, {done}"
    ratio = _LOADED_RATIO.get(manifest.model.precision, _OTHER_LOADED_RATIO)
    model_bytes = int(size * ratio) * sum(map(_instances, settings.instance_groups))
    return RepositoryReport((Finding(check, Status.OK, fact),), model_bytes, (key,))


def _check_tensors(
    entry: ModelEntry, key: ModelVersion, path: Path, settings: ModelSettings, *, load: bool
) -> RepositoryReport:
    """A model that takes tensors has no manifest: that its file is there is all that can be said without loading it."""
    from trivec_server.repository.tensor_loading import (  # noqa: PLC0415 - needs the server's packages
        find_model_file,
        load_tensors,
    )

    check = f"model {key}"
    try:
        model_file = find_model_file(path, settings.tensors or TensorSettings())
        if load:
            for device in load_tensors(key, path, settings).devices:
                device.close()
    except LoadError as error:
        return RepositoryReport((Finding(check, Status.FAIL, str(error), _edit_config(entry)),))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    fact = f"{model_file.name}, {format_bytes(size)}, {'loaded' if load else 'not loaded'}"
    model_bytes = int(size * _OTHER_LOADED_RATIO) * sum(map(_instances, settings.instance_groups))
    return RepositoryReport((Finding(check, Status.OK, fact),), model_bytes, (key,))


def _check_agreement(settings: ModelSettings, manifest: Manifest) -> None:
    """
    What can be said without the graph of whether `config.pbtxt` fits the model.

    Raises:
        LoadError: it does not; the message begins with the file's name.
    """
    model = manifest.model
    if settings.max_tokens is not None and settings.max_tokens > model.max_tokens:
        raise LoadError(
            f"{CONFIG_NAME}: max_tokens is {settings.max_tokens}, but the model takes at most {model.max_tokens}"
        )
    for what, said, found in (
        ("pooling", settings.pooling, model.pooling),
        ("dense dimension", settings.dense_dimension, model.dense_dimension),
        ("multi_vector dimension", settings.multi_vector_dimension, model.multi_vector_dimension),
    ):
        if said is not None and said != found:
            raise LoadError(f"{CONFIG_NAME} says {what} {said}, the model has {found}; correct {CONFIG_NAME}")
    if settings.declared_modes is not None and settings.declared_modes & ~model.modes:
        raise LoadError(f"{CONFIG_NAME} declares an output that the model does not have; correct {CONFIG_NAME}")


def _load(key: ModelVersion, path: Path, settings: ModelSettings) -> None:
    from trivec_server.repository.engines import ENGINES  # noqa: PLC0415 - the same
    from trivec_server.repository.loading import load_version  # noqa: PLC0415 - needs the server's packages

    for device in load_version(key, path, settings, ENGINES).devices:
        device.close()


def _instances(group: InstanceGroup) -> int:
    return group.count * max(1, len(group.gpus))


def _edit_config(entry: ModelEntry) -> str:
    return f"edit {shlex.quote(str(entry.path / CONFIG_NAME))}"


def _mend_model(entry: ModelEntry) -> str:
    if entry.settings is None and os.path.lexists(entry.path / CONFIG_NAME):
        return _edit_config(entry)
    if entry.name == _MINI:
        return _pull(entry, _MINI)
    return _pull(entry, "SOURCE")


def _mend_version(entry: ModelEntry, version_dir: Path, manifest: Manifest | None) -> str:
    """The pull that makes the version anew, as far as its manifest tells from what."""
    if manifest is None or manifest.source.kind == "directory":
        remove = f"rm -r {shlex.quote(str(version_dir))}"
        return f"{remove} && {_pull(entry, _MINI if entry.name == _MINI else 'SOURCE')}"
    if manifest.source.kind == "package":
        return _pull(entry, _MINI)
    precision = () if manifest.model.precision == "float32" else ("--precision", manifest.model.precision)
    return _pull(entry, manifest.source.name, "--revision", str(manifest.source.revision), *precision)


def _pull(entry: ModelEntry, source: str, *flags: str) -> str:
    name = () if source.rpartition("/")[2].lower() == entry.name else ("--name", entry.name)
    return trivec("pull", source, "--model-repository", entry.path.parent, *name, *flags)
