"""What the server has loaded: every version's state, and the way from a request's model name to a pipeline."""

from collections.abc import Callable, Container, Hashable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from trivec_server.errors import InvalidRequest, NotFound, Unavailable
from trivec_server.logs import get_logger
from trivec_server.metrics import Metrics
from trivec_server.metrics.statistics import ModelStatistics
from trivec_server.repository.loading import LoadedVersion
from trivec_server.repository.records import EmbeddingVersion, ServedVersion, State, TensorVersion, VersionRecord
from trivec_server.repository.staging import StagedVersion
from trivec_server.repository.starting import VersionStarter
from trivec_server.repository.tensor_loading import LoadedTensors
from trivec_server.serving.cache.store import RowStore
from trivec_server.serving.engine_roster import EngineCounts
from trivec_server.serving.spine import Load
from trivec_server.settings import ControlMode, ServeSettings
from trivec_server.types import ModelVersion, VersionPolicy

__all__ = ["EmbeddingVersion", "Registry", "ServedVersion", "State", "TensorVersion", "VersionRecord"]

_log = get_logger(__name__)

UNLOADED = "unloaded"
"""Why a version is unavailable that was asked to be so; Triton's word, which its clients look for."""

_MENDS = {
    ControlMode.NONE: "restart the server",
    ControlMode.POLL: "it will be loaded again",
    ControlMode.EXPLICIT: "load the model again",
}


class Registry:
    """
    The table of all versions. Lives on the event loop; `ModelControl` decides what is in it.

    `on_change(record)` is called on the event loop after every change of state.
    """

    def __init__(
        self,
        settings: ServeSettings,
        metrics: Metrics,
        store: RowStore,
        *,
        on_change: Callable[[VersionRecord], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._on_change = on_change
        self._records: dict[ModelVersion, VersionRecord] = {}
        self._default: str | None = None
        self._ready: dict[tuple[str, int], ServedVersion] = {}
        self._starter = VersionStarter(settings.limits, metrics, store)

    def records(self, name: str | None = None) -> list[VersionRecord]:
        """All versions, or those of one model, ordered by name, then version."""
        found = (record for record in self._records.values() if name is None or record.key.name == name)
        return sorted(found, key=lambda record: (record.key.name, record.key.version))

    @property
    def default_model(self) -> str | None:
        """The model of requests that name none."""
        return self._default

    @property
    def any_ready(self) -> bool:
        """Whether any version serves."""
        return any(record.serves for record in self._records.values())

    def resolve(self, name: str, version: int) -> EmbeddingVersion:
        """
        Finds the version that a request for embeddings is for: `name` "" is the default model, `version` 0 the newest
        ready one.

        Raises:
            InvalidRequest: no name was given and there is no default, or the model takes tensors.
            NotFound: the model or version is not known.
            Unavailable: it is known and not ready.
        """
        served = self.resolve_any(name, version)
        if isinstance(served, TensorVersion):
            raise InvalidRequest("model", f"`{served.key.name}` takes tensors, not texts: call ModelInfer")
        return served

    def resolve_any(self, name: str, version: int) -> ServedVersion:
        """As `resolve`, whatever the model takes."""
        served = self._ready.get((name, version))
        if served is not None:
            return served
        record = self.find(name, version)
        if record.state is not State.READY or record.served is None:
            reason = f": {record.reason}" if record.reason else ""
            raise Unavailable(f"model `{record.key.name}` version {record.key.version} is {record.state.name}{reason}")
        return record.served

    def statistics(self, key: ModelVersion) -> ModelStatistics:
        """The counts of a version, from its first load on."""
        return self._starter.statistics(key)

    def find(self, name: str, version: int) -> VersionRecord:
        """As `resolve`, whatever the version's state; of versions not ready the newest."""
        name = name or self._default_name()
        if version < 0:
            raise InvalidRequest("version", f"is {version}; must be positive, or 0 for the newest")
        versions = [record for record in self._records.values() if record.key.name == name]
        if not versions:
            known = ", ".join(sorted({key.name for key in self._records})) or "none"
            raise NotFound(f"model `{name[:255]}` is not known; known models: {known}")
        if version:
            for record in versions:
                if record.key.version == version:
                    return record
            known = ", ".join(str(record.key.version) for record in versions)
            raise NotFound(f"model `{name}` has no version {version}; known versions: {known}")
        return max(versions, key=lambda record: (record.state is State.READY, record.key.version))

    def choose_default(self, name: str | None) -> None:
        """Sets the model of requests that name none."""
        self._default = name
        self._index_ready()

    def serving(self, name: str) -> frozenset[int]:
        """The numbers of a model's versions that are READY."""
        return frozenset(record.key.version for record in self.records(name) if record.state is State.READY)

    def held(self, name: str) -> frozenset[int]:
        """The numbers of a model's versions that hold engines and are not being released, even if those have failed."""
        return frozenset(
            record.key.version
            for record in self.records(name)
            if record.served is not None and record.state is not State.UNLOADING
        )

    def loading(self, name: str) -> frozenset[int]:
        """The numbers of a model's versions that are to be loaded, or are being."""
        return frozenset(record.key.version for record in self.records(name) if record.state is State.LOADING)

    def loads(self) -> dict[Hashable, Load]:
        """How busy each version that holds engines is; a version that is loaded anew has another key."""
        held = [record.served for record in self._records.values() if record.served is not None]
        return {(served.key, id(served.pipeline)): served.pipeline.load() for served in held}

    def serving_models(self) -> frozenset[str]:
        """The models of which a version serves. For any thread."""
        return frozenset(record.key.name for record in list(self._records.values()) if record.serves)

    def expect(self, key: ModelVersion) -> None:
        """A version is about to be loaded; one that serves goes on."""
        self._set_unless_ready(VersionRecord(key=key, state=State.LOADING))

    def refuse(self, key: ModelVersion, reason: str, *, is_fault: bool = True) -> None:
        """A version cannot be loaded; one that serves goes on. Without `is_fault` it is only not there yet."""
        record = VersionRecord(key=key, state=State.UNAVAILABLE, cause=reason)
        before = self._records.get(key)
        if before is None or (before.state, before.cause) != (record.state, record.cause):
            level = _log.error if is_fault else _log.info
            level("model unavailable", model=key.name, version=key.version, reason=reason)
            self._set_unless_ready(record)

    def note(self, name: str, note: str) -> None:
        """What there is to know of all versions of a model that serve, beside that; "": nothing."""
        for number in self.serving(name):
            self.note_version(ModelVersion(name, number), note)

    def note_version(self, key: ModelVersion, note: str) -> None:
        """The same of one version."""
        record = self._records[key]
        if record.note != note:
            self._set(replace(record, note=note))

    def note_of(self, key: ModelVersion) -> str:
        """What is noted of a version."""
        return self._records[key].note

    def start(self, staged: StagedVersion) -> ServedVersion:
        """Starts a version that passed its self-check: for `switch`, or `release` if it shall not serve after all."""
        return self._starter.start(staged, partial(self._engines_changed, staged.loaded))

    def switch(self, started: Iterable[ServedVersion], retired: Mapping[ModelVersion, str]) -> list[ServedVersion]:
        """
        From one request to the next, the started versions serve and the retired ones do not.

        Args:
            started: Versions that take requests; they may take the place of ones that serve.
            retired: Versions that hold engines, with the reason why they will serve no longer.

        Returns:
            What served until now: for `release`.
        """
        changed = [VersionRecord(key=served.key, state=State.READY, served=served) for served in started]
        keys = [*(record.key for record in changed), *retired]
        replaced = [self._records[key].served for key in keys if key in self._records]
        changed += [
            replace(self._records[key], state=State.UNLOADING, cause=reason, note="", interrupted=False)
            for key, reason in retired.items()
        ]
        self._set(*changed)
        return [served for served in replaced if served is not None]

    def follow_policy(self, key: ModelVersion, policy: VersionPolicy) -> None:
        """The version policy has changed: no reason to load a version again, but part of the config that is shown."""
        record = self._records[key]
        match record.served:
            case EmbeddingVersion(loaded=loaded) as served if loaded.settings.version_policy != policy:
                settings = replace(loaded.settings, version_policy=policy)
                self._set(replace(record, served=replace(served, loaded=replace(loaded, settings=settings))))
            case TensorVersion(loaded=tensors) as served if tensors.settings.version_policy != policy:
                settings = replace(tensors.settings, version_policy=policy)
                self._set(replace(record, served=replace(served, loaded=replace(tensors, settings=settings))))

    async def release(self, served: ServedVersion) -> None:
        """Lets a version that was switched off serve its requests under way, and closes its engines."""
        await served.pipeline.close()
        record = self._records.get(served.key)
        if record is not None and record.served is served and record.state is State.UNLOADING:
            self._set(replace(record, state=State.UNAVAILABLE, cause=record.cause or UNLOADED, served=None))
            record = None
        if record is None or record.served is None:
            self._metrics.model_unloaded(served.key)
        _log.info("model unloaded", model=served.key.name, version=served.key.version)

    def forget(self, name: str, known: Container[int]) -> None:
        """Drops a model's versions that hold no engines, but for those with these numbers."""
        for record in self.records(name):
            if record.served is None and record.key.version not in known:
                del self._records[record.key]
                self._starter.forget(record.key)

    def forget_unnumbered(self, name: str) -> None:
        """Drops what was said of a model while none of its versions was known."""
        self.forget(name, {record.key.version for record in self.records(name)} - {0})

    def reloaded(self, name: str, *, succeeded: bool) -> None:
        """Counts a load of a model that was served already."""
        self._metrics.model_reloaded(name, succeeded=succeeded)

    def _index_ready(self) -> None:
        """Makes the table of what `resolve` can answer at once: by name or as default, by version or as newest."""
        self._ready.clear()
        for record in self.records():
            if record.state is State.READY and record.served is not None:
                for name in {record.key.name, "" if record.key.name == self._default else record.key.name}:
                    # Versions come in ascending order: the newest stays as version 0.
                    self._ready[name, record.key.version] = self._ready[name, 0] = record.served

    def _default_name(self) -> str:
        if self._default is not None:
            return self._default
        names = sorted({key.name for key in self._records})
        known = ", ".join(names) or "none"
        raise InvalidRequest("model", f"must be given: there is no default model; known models: {known}")

    def _engines_changed(self, loaded: LoadedVersion | LoadedTensors, counts: EngineCounts) -> None:
        """
        Some engines died, or came back. While one is at work or will be, requests are taken; without any at work,
        health says so. A version whose engines are all gone serves no more; its pipeline is closed with the others.
        """
        record = self._records.get(loaded.key)
        if record is None or record.served is None or record.served.loaded.devices is not loaded.devices:
            # It was replaced: of no concern to those who ask for the version now.
            return
        if record.state is State.UNLOADING:
            return
        if counts.running == counts.total:
            self._set(replace(record, cause="", interrupted=False))
        elif counts.running or counts.restarting:
            gone = counts.total - counts.running - counts.restarting
            cause = f"{counts.running} of {counts.total} engine instances at work, {counts.restarting} being restarted"
            cause += f", {gone} failed ({'; '.join(counts.failures)}): restart the server" if gone else ""
            self._set(replace(record, cause=cause, interrupted=not counts.running))
        else:
            cause = f"the engine has failed ({'; '.join(counts.failures)}): {_MENDS[self._settings.model_control_mode]}"
            self._set(replace(record, state=State.UNAVAILABLE, cause=cause))

    def _set_unless_ready(self, record: VersionRecord) -> None:
        """Changes a version that does not serve. Engines that have failed stay with it until they are released."""
        before = self._records.get(record.key)
        if before is None or before.state is not State.READY:
            failed = before is not None and before.state is not State.UNLOADING
            self._set(replace(record, served=before.served if before is not None and failed else None))

    def _set(self, *records: VersionRecord) -> None:
        """Changes all of them before anyone hears of it."""
        self._records.update({record.key: record for record in records})
        self._index_ready()
        for record in records:
            labels = record.key.name, str(record.key.version)
            self._metrics.model_ready.labels(*labels).set(record.serves)
            self._metrics.version_unfinished.labels(*labels).set(record.is_unfinished)
            self._on_change(record)
