"""One model: how its versions come to serve, change under load, and go."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from trivec_server.errors import LoadError, LoadFailed
from trivec_server.logs import get_logger
from trivec_server.repository.load_override import OverrideDirectory
from trivec_server.repository.look import ModelLook, VersionContent, look_at_model, read_content
from trivec_server.repository.records import BEING_WRITTEN, ServedVersion
from trivec_server.repository.registry import UNLOADED, Registry
from trivec_server.repository.releases import Releases
from trivec_server.repository.scan import VersionSelection
from trivec_server.repository.staging import Engines, StagedVersion, stage_version
from trivec_server.types import ModelSettings, ModelVersion

_log = get_logger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

GONE = "unloaded: its directory is gone"
_MISSING = "version_policy asks for it, but its directory is missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """
    What all models share: where versions are entered, who releases old ones, the engines, threads for what blocks, and
    others for loading, which takes long; and the versions that are being loaded just now.
    """

    registry: Registry
    releases: Releases
    engines: Engines
    threads: Executor
    loaders: Executor
    staging: list[ModelVersion] = field(default_factory=list)

    async def look(self, path: Path, *, config_json: str | None = None) -> ModelLook:
        """Looks at a model's directory."""
        return await self.run(look_at_model, path, self.engines.fault, config_json=config_json)

    async def stage(self, key: ModelVersion, path: Path, settings: ModelSettings) -> StagedVersion:
        """
        Loads and checks a version. A thread cannot be interrupted: if nobody waits for it any more, what it has loaded
        is discarded.

        Raises:
            LoadError: the reason, for the user.
        """
        load = partial(stage_version, key, path, settings, self.engines)
        loading = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self.loaders, load))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(partial(self._discard, key.name))
            raise

    def _discard(self, name: str, loading: "asyncio.Future[StagedVersion]") -> None:
        if not loading.cancelled() and loading.exception() is None:
            self.releases.begin(name, (), loading.result().discard)

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Calls a function that blocks, on a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, partial(function, *args, **kwargs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model is read from, if not as it stands in the repository. `directory` is ours to remove."""

    config_json: str | None = None
    directory: OverrideDirectory | None = None


@dataclass(slots=True)
class _Attempt:
    """One load: what the versions to serve are, which of them have to be loaded, and what went wrong."""

    look: ModelLook
    serving: frozenset[int]
    contents: dict[int, VersionContent] = field(default_factory=dict)
    changed: list[int] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)


class LiveModel:
    """
    One model. Its coroutines are called one at a time, by whoever holds `turn`.

    `wanted`: it is to be served, and readiness asks for it. `source` is that of what serves.
    """

    def __init__(self, name: str, workshop: Workshop) -> None:
        self.name = name
        self.turn = asyncio.Lock()
        self.wanted = False
        self.source = Source()
        self._workshop = workshop
        self._registry = workshop.registry
        self._contents: dict[int, VersionContent] = {}
        self._signature: object = None

    @property
    def contents(self) -> Mapping[int, VersionContent]:
        """What the versions that serve were loaded from."""
        return self._contents

    def is_current(self, look: ModelLook) -> bool:
        """Whether what serves is what the look has shown, so that there is nothing to load."""
        return self._signature == look.signature and self._contents.keys() == self._registry.serving(self.name)

    def refuse(self, reason: str) -> None:
        """The model as a whole cannot be loaded. What serves goes on, with the reason beside it."""
        serving = self._registry.serving(self.name)
        if not serving:
            for number in self._registry.loading(self.name):
                self._registry.refuse(self._key(number), reason)
            self._registry.refuse(self._key(0), reason)
            return
        note = f"reload failed: {reason}"
        if any(self._registry.note_of(self._key(number)) != note for number in serving):
            _log.error("reload failed; what served goes on", model=self.name, reason=reason)
            self._registry.reloaded(self.name, succeeded=False)
            self._registry.note(self.name, note)

    def wait(self, reason: str) -> None:
        """The model as a whole is not loaded yet, which is no fault."""
        self._registry.refuse(self._key(0), reason, is_fault=False)

    def note_absence(self, number: int, note: str, *, is_absent: bool) -> None:
        """Says of a version that serves that its directory is gone, or that it is not; unless there is worse to say."""
        if number in self._registry.serving(self.name) and self._registry.note_of(self._key(number)) in ("", note):
            self._registry.note_version(self._key(number), note if is_absent else "")

    def select(self, look: ModelLook, *, patient: bool) -> VersionSelection:
        """
        The versions to serve; enters why others are not. With `patient` a version that is not whole yet is left alone,
        and one that serves and is being written anew goes on.
        """
        serving = self._registry.serving(self.name)
        unfinished = look.unfinished() if patient else {}
        selection = look.select(number for number in look.versions if number not in unfinished or number in serving)
        reasons = dict.fromkeys(selection.missing, _MISSING)
        reasons |= {number: look.public(f"{BEING_WRITTEN}: {missing}") for number, missing in unfinished.items()}
        for number, reason in reasons.items():
            if number in serving:
                self._registry.note_version(self._key(number), reason)
            else:
                self._registry.refuse(self._key(number), reason, is_fault=number not in unfinished)
        return selection

    def confirm(self, look: ModelLook, *, patient: bool) -> None:
        """What serves is what the look has shown: nothing is left to be said of it, but of what is being written."""
        self.select(look, patient=patient)
        unfinished = look.unfinished().keys() if patient else frozenset()
        for number in self._registry.serving(self.name) - unfinished:
            self._registry.note_version(self._key(number), "")

    def expect(self, numbers: Iterable[int]) -> None:
        """Enters versions that are about to be loaded."""
        for number in numbers:
            self._registry.expect(self._key(number))

    async def load(self, look: ModelLook, source: Source, *, patient: bool, together: bool) -> None:
        """
        Loads what the look has shown and what does not serve yet, then lets it serve in place of what did.

        Args:
            look: A look at the model's directory.
            source: What was looked at.
            patient: See `select`.
            together: Whether all versions serve or none; so it is in any case while an older one serves.

        Raises:
            LoadFailed: a version cannot be served. What served before goes on, with the reason beside it.
        """
        selection = self.select(look, patient=patient)
        if selection.selected:
            self._registry.forget_unnumbered(self.name)
        attempt = await self._read(look, selection.selected, patient=patient)
        self.expect(attempt.changed)
        retired = self._retire(look, selection.selected)
        if together or attempt.serving:
            staged = () if attempt.failures else await self._stage(attempt, attempt.changed)
            if attempt.failures:
                self._give_up(attempt)
            self._switch(staged, retired, source)
        else:
            for number in attempt.changed:
                self._switch(await self._stage(attempt, [number]), {}, source)
            self._switch((), retired, source)
        self._contents = attempt.contents
        self._signature = None if attempt.failures else look.signature
        if attempt.serving and (attempt.changed or retired):
            self._registry.reloaded(self.name, succeeded=True)
        if attempt.failures:
            raise LoadFailed(_failed(self.name, attempt.failures))
        for number in attempt.contents.keys() - set(attempt.changed):
            self._registry.follow_policy(self._key(number), look.settings.version_policy)
        self.confirm(look, patient=patient)
        known = {*look.versions, *selection.selected, *selection.missing, *(key.version for key in retired)}
        self._registry.forget(self.name, known)

    def unload(self, reason: str) -> None:
        """Lets the model serve no more."""
        retired = dict.fromkeys(map(self._key, self._registry.held(self.name)), reason)
        self._contents, self._signature = {}, None
        self._switch((), retired, Source())
        for record in self._registry.records(self.name):
            if record.served is None and record.key.version and reason == UNLOADED:
                # Why it once could not be loaded is of no concern any more.
                self._registry.refuse(record.key, reason, is_fault=False)
        numbers = {record.key.version for record in self._registry.records(self.name)}
        self._registry.forget(self.name, numbers - {0})

    async def _read(self, look: ModelLook, selected: Sequence[int], *, patient: bool) -> _Attempt:
        """Finds out which of the versions to serve are other ones than those that do."""
        attempt = _Attempt(look, self._registry.serving(self.name))
        unfinished = look.unfinished() if patient else {}
        for number in selected:
            known = self._contents.get(number) if number in attempt.serving else None
            if known is not None and number in unfinished:
                attempt.contents[number] = known
                continue
            try:
                content = await self._workshop.run(read_content, look, number, known)
            except LoadError as error:
                self._fail(attempt, number, error)
            except Exception:  # noqa: BLE001 - concerns this version only; the others go on
                _log.exception("a version cannot be read", model=self.name, version=number)
                self._fail(attempt, number, LoadError("an unexpected error; the server's log has it"))
            else:
                attempt.contents[number] = content
                if content != known:
                    attempt.changed.append(number)
        return attempt

    def _retire(self, look: ModelLook, selected: Sequence[int]) -> dict[ModelVersion, str]:
        """The versions that serve and shall not, with the reason."""
        retired = {}
        for number in self._registry.held(self.name) - set(selected):
            content = self._contents.get(number)
            is_gone = number not in look.versions and content is not None and content.path.parent == look.entry.path
            retired[self._key(number)] = GONE if is_gone else UNLOADED
        return retired

    async def _stage(self, attempt: _Attempt, numbers: Sequence[int]) -> Sequence[StagedVersion]:
        """Loads these versions, all or none."""
        staged: list[StagedVersion] = []
        for number in numbers:
            key, path = self._key(number), attempt.contents[number].path
            self._workshop.staging.append(key)
            try:
                version = await self._workshop.stage(key, path, attempt.look.settings)
            except LoadError as error:
                self._fail(attempt, number, error)
                await self._workshop.run(_discard, staged)
                return ()
            except BaseException:
                self._workshop.releases.begin(self.name, (), partial(_discard, staged))
                raise
            finally:
                self._workshop.staging.remove(key)
            staged.append(version)
        return staged

    def _fail(self, attempt: _Attempt, number: int, error: LoadError) -> None:
        reason = attempt.failures[number] = attempt.look.public(str(error))
        attempt.contents.pop(number, None)
        self._registry.refuse(self._key(number), reason)

    def _give_up(self, attempt: _Attempt) -> None:
        """
        Nothing is switched, because a version failed.

        Raises:
            LoadFailed: always.
        """
        failed, reason = next(iter(attempt.failures.items()))
        for number in attempt.changed:
            if number not in attempt.failures:
                self._registry.refuse(self._key(number), f"not loaded, because version {failed} could not be")
        for number in attempt.serving:
            own = attempt.failures.get(number)
            self._registry.note_version(self._key(number), f"reload failed: {own or f'version {failed}: {reason}'}")
        if attempt.serving:
            self._registry.reloaded(self.name, succeeded=False)
        raise LoadFailed(_failed(self.name, attempt.failures))

    def _switch(self, staged: Sequence[StagedVersion], retired: Mapping[ModelVersion, str], source: Source) -> None:
        """From one request to the next."""
        started: list[ServedVersion] = []
        try:
            started.extend(map(self._registry.start, staged))
        except BaseException:
            # All or none: what takes requests already is closed as if it had served.
            self._workshop.releases.begin(self.name, started, partial(_discard, staged[len(started) :]))
            raise
        released = self._registry.switch(started, retired)
        before, self.source = self.source, source
        leftover = before.directory if before.directory is not source.directory else None
        self._workshop.releases.begin(self.name, released, leftover.remove if leftover is not None else None)

    def _key(self, number: int) -> ModelVersion:
        return ModelVersion(self.name, number)


def _discard(staged: Sequence[StagedVersion]) -> None:
    for version in staged:
        version.discard()


def _failed(name: str, failures: Mapping[int, str]) -> str:
    versions = " ".join(f"version {number} is at UNAVAILABLE state: {why};" for number, why in failures.items())
    return f"load failed for model '{name}': {versions}"
