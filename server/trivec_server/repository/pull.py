"""
`trivec pull`: a model from the hub, a local directory or an installed package becomes a version of the repository.

The steps: read what the checkpoint is (`checkpoint`, `hub`), see that there is room (`space`), download, write the
graph (`backends.graph`) and the manifest in a place apart, move all of it into the repository at once (`building`).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from trivec_server.backends.graph.spec import Precision
from trivec_server.errors import CommandError, LoadError
from trivec_server.repository.building import BuildingSite, open_site
from trivec_server.repository.checkpoint import FileSource, LocalDirectory
from trivec_server.repository.hub import HubRepository
from trivec_server.repository.manifest import Manifest, ModelFacts, read_manifest, verify_files, write_manifest
from trivec_server.repository.recipes import CheckpointRecipe, MiniRecipe, Recipe, Report
from trivec_server.repository.termination import exit_on_sigterm

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""The precisions that a checkpoint's weights can be written in."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def pull(
    source: str,
    repository: Path,
    *,
    report: Report,
    name: str | None = None,
    version: int | None = None,
    revision: str | None = None,
    precision: str | None = None,
    force: bool = False,
) -> Path:
    """
    Makes a version of a model from a source, or finds that it is there already.

    Interrupted at any point (SIGINT, SIGTERM, SIGKILL), it leaves no part of a version. What was downloaded stays in
    the hub's cache and is used the next time. While another process, on this or another host, makes a version of the
    same model there, it waits: what that one has made need not be downloaded again.

    Args:
        source: `m3-mini`, a local directory, or the name of a hub repository such as `BAAI/bge-m3`.
        repository: The model repository; made if it does not exist.
        report: Called with a line for the user at each step.
        name: The model's directory; by default after the source, in lowercase.
        version: The version's number; by default one more than the newest, or 1.
        revision: A branch, tag or commit of a hub repository; by default its main branch.
        precision: Of the weights, `float32` or `float16`; by default `float32`, for `m3-mini` the only one it has.
        force: Build even what is there already, and replace the version if its number is taken.

    Returns:
        The version's directory.

    Raises:
        CommandError: the reason, on one line. Nothing is left in the repository.
    """
    with exit_on_sigterm():
        try:
            recipe = _choose_recipe(source, revision, precision, report)
            model_dir = repository / _checked_name(name or recipe.model_name)
            place = _choose_place(recipe, model_dir, version, _say_nothing, force=force)
            if place.done and not _missing(recipe, model_dir, read_manifest(place.path).model):
                report(f"{place.path} holds {recipe.source} already: nothing to do")
                return place.path
            # Before the download: a repository that cannot be written to is better known now, and so is another pull.
            with open_site(repository, model_dir.name, report) as site:
                # Whoever had the lock before may have made it meanwhile.
                place = _choose_place(recipe, model_dir, version, report, force=force)
                if place.done:
                    found = f"{place.path} holds {recipe.source} already"
                    _place_missing(recipe, place.path, read_manifest(place.path).model, site, found, report)
                    return place.path
                recipe.gather(repository, report)
                path = _build(recipe, place, site, report, keep_equal=version is None and not force)
        except LoadError as error:
            raise CommandError(f"{source}: {error}") from None
        except OSError as error:
            raise CommandError(
                f"{error.filename or repository}: {error.strerror or error}: the model repository {repository} must be "
                f"a directory that can be written to, with room for the model"
            ) from None
        return path


def _say_nothing(_: str) -> None:
    """For a first look, which comes again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """The version to make: its directory, whether it is there already and `done`, or may `replace` what is there."""

    path: Path
    done: bool = False
    replace: bool = False


def _choose_recipe(source: str, revision: str | None, precision: str | None, report: Report) -> Recipe:
    chosen = PRECISIONS[0] if precision is None else next((known for known in PRECISIONS if known == precision), None)
    if chosen is None:
        raise CommandError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if source == MiniRecipe.model_name:
        if revision is not None:
            raise CommandError(f"{source} is not on the hub and has no revisions: leave out --revision")
        if precision not in (None, MiniRecipe.precision):
            raise CommandError(f"{source} comes in {MiniRecipe.precision} only: leave out --precision {precision}")
        return MiniRecipe()
    path = Path(source).expanduser()
    is_hub_name = _HUB_NAME.fullmatch(source) is not None and not path.is_dir()
    if not is_hub_name and not path.is_dir():
        raise CommandError(
            f"{source} is not {MiniRecipe.model_name}, a directory, or the name of a hub repository such as BAAI/bge-m3"
        )
    if not is_hub_name and revision is not None:
        raise CommandError(f"{source} is a directory, which has no revisions: leave out --revision")
    files: FileSource = HubRepository(source, revision, report) if is_hub_name else LocalDirectory(path)
    model_name = (source if is_hub_name else path.resolve().name).rpartition("/")[2].lower()
    return CheckpointRecipe(files, model_name, chosen)


def _checked_name(name: str) -> str:
    if not name.isprintable() or not name or name.startswith(".") or "/" in name or len(name.encode()) > 255:
        raise CommandError(
            f"{name!a} cannot name a model: printable text of at most 255 bytes, no `/`, no dot in front"
        )
    return name


def _choose_place(recipe: Recipe, model_dir: Path, version: int | None, report: Report, *, force: bool) -> _Place:
    if version is not None and version < 1:
        raise CommandError(f"version {version} is below 1, the lowest version")
    versions = read_versions(model_dir)
    number = max(versions, default=0) + 1 if version is None else version
    if force:
        return _Place(path=versions.get(number, model_dir / str(number)), replace=True)
    for candidate in sorted(versions, reverse=True) if version is None else versions.keys() & {version}:
        path = versions[candidate]
        try:
            manifest = read_manifest(path)
        except LoadError:
            continue
        if recipe.made(manifest):
            try:
                verify_files(path, manifest)
            except LoadError as fault:
                report(f"{fault}; making {path} anew")
                return _Place(path=path, replace=True)
            return _Place(path=path, done=True)
    if number in versions:
        raise CommandError(
            f"{versions[number]} is there and holds something else: choose another version, or remove it"
        )
    return _Place(path=model_dir / str(number))


def _build(recipe: Recipe, place: _Place, site: BuildingSite, report: Report, *, keep_equal: bool) -> Path:
    model_dir = place.path.parent
    report(f"{recipe.source}: building {place.path}")
    facts = recipe.build(site.version_dir)
    report("computing the checksums for the manifest")
    names = [path.name for path in site.version_dir.iterdir()]
    manifest = write_manifest(site.version_dir, facts, recipe.source, names)
    for path in read_versions(model_dir).values() if keep_equal and not place.replace else ():
        if _holds(path, manifest):
            _place_missing(recipe, path, manifest.model, site, f"{path} has the same content already", report)
            return path
    site.publish(place.path, recipe.render_beside(model_dir.name, facts), replace=place.replace)
    report(f"{place.path} is ready: {facts.architecture}, {facts.precision}, {facts.dense_dimension} dimensions")
    return place.path


def _place_missing(
    recipe: Recipe, version_dir: Path, facts: ModelFacts, site: BuildingSite, found: str, report: Report
) -> None:
    missing = _missing(recipe, version_dir.parent, facts)
    for file_name, text in missing.items():
        draft = site.version_dir / file_name
        draft.write_text(text, encoding="utf-8")
        draft.rename(version_dir.parent / file_name)
        report(f"{version_dir.parent / file_name} was missing: written")
    report(f"{found}: {'kept as it is' if missing else 'nothing to do'}")


def _missing(recipe: Recipe, model_dir: Path, facts: ModelFacts) -> dict[str, str]:
    """The texts of the files that belong beside the model's versions and are not there, by name."""
    beside = recipe.render_beside(model_dir.name, facts)
    return {name: text for name, text in beside.items() if not os.path.lexists(model_dir / name)}


def _holds(version_dir: Path, manifest: Manifest) -> bool:
    try:
        found = read_manifest(version_dir)
        verify_files(version_dir, found)
    except LoadError:
        return False
    return found.content_digest == manifest.content_digest


def read_versions(model_dir: Path) -> dict[int, Path]:
    """The version directories of a model, whole or not, by their numbers; none if the directory is not there."""
    if not model_dir.is_dir():
        return {}
    found = (path for path in model_dir.iterdir() if re.fullmatch(r"0*[1-9][0-9]{0,17}", path.name))
    return {int(path.name): path for path in found}
