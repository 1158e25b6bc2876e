"""
`trivec export`: a new version of a model with files made for one engine and precision, and a report of how near its
numbers come to those of the version that it was made from.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from trivec_server.backends.interface import EngineFactory, EngineRequest
from trivec_server.backends.weights.stored_model import StoredModel, open_stored_model, write_stored_model
from trivec_server.errors import CommandError, LoadError
from trivec_server.repository.building import BuildingSite, open_site
from trivec_server.repository.engines import ENGINES, needs
from trivec_server.repository.manifest import Export, Manifest, Parity, read_manifest, verify_files, write_manifest
from trivec_server.repository.parity import measure_parity
from trivec_server.repository.pull import read_versions
from trivec_server.repository.space import SpaceNeed, check_space
from trivec_server.repository.termination import exit_on_sigterm
from trivec_server.serving.tokenizer import Tokenizer
from trivec_server.types import InstanceKind

Exporter: TypeAlias = Callable[[StoredModel, Path, str], None]
"""Writes an engine's files of a model, in a precision, into a directory that exists."""

_TOKENIZER_FILE = "tokenizer.json"
_REFERENCE_ENGINE = "onnxruntime"


def _export_onnxruntime(model: StoredModel, directory: Path, precision: str) -> None:
    with needs("onnxruntime", "server"):
        from trivec_server.backends.onnxruntime.export import export_onnxruntime  # noqa: PLC0415 - imports its library
    export_onnxruntime(model, directory, precision)


def _export_openvino(model: StoredModel, directory: Path, precision: str) -> None:
    with needs("openvino", "openvino"):
        from trivec_server.backends.openvino.export import export_openvino  # noqa: PLC0415 - imports its library
    export_openvino(model, directory, precision)


def _export_pytorch(model: StoredModel, directory: Path, precision: str) -> None:
    write_stored_model(directory, model, "float16" if precision == "float16" else "float32")


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """An engine to export for: its exporter, and the precisions it can write."""

    exporter: Exporter
    precisions: tuple[str, ...]


EXPORT_TARGETS: Mapping[str, ExportTarget] = {
    "onnxruntime": ExportTarget(_export_onnxruntime, ("float32", "float16", "int8")),
    "openvino": ExportTarget(_export_openvino, ("bfloat16", "float32", "int8")),
    "pytorch": ExportTarget(_export_pytorch, ("float32", "float16")),
}


def export_version(
    repository: Path,
    model_name: str,
    engine: str,
    *,
    report: Callable[[str], None],
    precision: str | None = None,
    base_version: int | None = None,
    engines: Mapping[str, EngineFactory] = ENGINES,
) -> Path:
    """
    Makes a version of a model for one engine, or finds that it is there already.

    Interrupted at any point, it leaves no part of a version. While another process, on this or another host, makes a
    version of the same model there, it waits.

    Args:
        repository: The model repository.
        model_name: A model in it.
        engine: One of EXPORT_TARGETS.
        report: Called with a line for the user at each step.
        precision: One of the engine's; None: its first.
        base_version: The version to make it from; None: the newest that was not exported itself.
        engines: Factories by name.

    Returns:
        The new version's directory, or that of an equal one.

    Raises:
        CommandError: the reason, on one line. Nothing is left in the repository.
    """
    target = EXPORT_TARGETS.get(engine)
    if target is None:
        raise CommandError(f"cannot export for the engine `{engine}`; use one of: {', '.join(EXPORT_TARGETS)}")
    chosen = precision or target.precisions[0]
    if chosen not in target.precisions:
        raise CommandError(f"{engine} versions come in {', '.join(target.precisions)}, not in {chosen}")
    with exit_on_sigterm():
        try:
            base = _find_base(repository, model_name, base_version)
            done = _find_done(base, engine, chosen)
            if done is None:
                with open_site(repository, model_name, report) as site:
                    # Whoever had the lock before may have made it meanwhile, or another version.
                    base = _find_base(repository, model_name, base_version)
                    done = _find_done(base, engine, chosen)
                    if done is None:
                        exporting = _Exporting(repository, base, engine, chosen, target.exporter, engines, report)
                        return exporting.run(site)
        except LoadError as error:
            raise CommandError(f"{model_name}: {error}") from None
        except OSError as error:
            raise CommandError(f"{error.filename or repository}: {error.strerror or error}") from None
    report(f"{done} holds {model_name} for {engine} in {chosen} already: nothing to do")
    return done


@dataclass(frozen=True, slots=True)
class _Base:
    """The version to export from, and all versions of its model."""

    path: Path
    manifest: Manifest
    versions: Mapping[int, Path]

    @property
    def bytes(self) -> int:
        return sum(facts.bytes for facts in self.manifest.files.values())


@dataclass(frozen=True, slots=True)
class _Exporting:
    """One export on its way."""

    repository: Path
    base: _Base
    engine: str
    precision: str
    exporter: Exporter
    engines: Mapping[str, EngineFactory]
    report: Callable[[str], None]

    def run(self, site: BuildingSite) -> Path:
        base = self.base
        check_space([SpaceNeed(self.repository, base.bytes, "the version", "choose a repository on another disk")])
        verify_files(base.path, base.manifest)
        target = base.path.parent / str(max(base.versions) + 1)
        self.report(f"{base.path}: exporting for {self.engine} in {self.precision}")
        self.exporter(open_stored_model(base.path), site.version_dir, self.precision)
        shutil.copyfile(base.path / _TOKENIZER_FILE, site.version_dir / _TOKENIZER_FILE)
        self.report("comparing it with the version that it was made from")
        parity = self._measure(site.version_dir)
        model = replace(base.manifest.model, precision=self.precision)
        export = Export(engine=self.engine, base_digest=base.manifest.content_digest, parity=parity)
        names = [path.name for path in site.version_dir.iterdir()]
        write_manifest(site.version_dir, model, base.manifest.source, names, export)
        site.publish(target, {}, replace=False)
        self.report(
            f"{target} is ready: dense cosine {parity.dense_cosine_min:.5f} at least, {parity.dense_cosine_mean:.5f} "
            f"in the mean, over {parity.texts} texts"
        )
        return target

    def _measure(self, version_dir: Path) -> Parity:
        """The new files run by their engine, beside the base in float32."""
        max_tokens = self.base.manifest.model.max_tokens
        exported = EngineRequest(
            version_dir=version_dir, precision=self.precision, max_tokens=max_tokens, comparing=True
        )
        if self.engine == "pytorch":
            # What was written is how the weights are stored: what that costs shows best in float32.
            exported = replace(exported, kind=InstanceKind.CPU, precision="float32")
        reference = EngineRequest(version_dir=self.base.path, kind=InstanceKind.CPU, max_tokens=max_tokens)
        return measure_parity(
            Tokenizer(self.base.path / _TOKENIZER_FILE),
            lambda: self.engines[_REFERENCE_ENGINE](reference),
            lambda: self.engines[self.engine](exported),
            max_tokens,
        )


def _find_base(repository: Path, model_name: str, number: int | None) -> _Base:
    versions = read_versions(repository / model_name)
    if not versions:
        raise CommandError(
            f"{repository / model_name} holds no version of a model; `trivec models` lists what is served"
        )
    if number is not None and number not in versions:
        known = ", ".join(map(str, sorted(versions)))
        raise CommandError(f"{repository / model_name} has no version {number}; there are {known}")
    for candidate in [number] if number is not None else sorted(versions, reverse=True):
        manifest = read_manifest(versions[candidate])
        if manifest.export is None:
            return _Base(versions[candidate], manifest, versions)
        if number is not None:
            raise CommandError(
                f"{versions[candidate]} was itself exported, for {manifest.export.engine}: name the version that "
                "`trivec pull` made"
            )
    raise CommandError(f"{repository / model_name}: every version was exported; pull the model again")


def _find_done(base: _Base, engine: str, precision: str) -> Path | None:
    """A whole version that this export would only repeat."""
    for path in base.versions.values():
        try:
            manifest = read_manifest(path)
            export = manifest.export
            if export is None or (export.engine, manifest.model.precision) != (engine, precision):
                continue
            if export.base_digest == base.manifest.content_digest:
                verify_files(path, manifest)
                return path
        except LoadError:
            # A damaged version is not done.
            continue
    return None
