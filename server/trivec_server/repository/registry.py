"""What the server has loaded: every version's state, and the way from a request's model name to a pipeline."""

import asyncio
import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from trivec_server.backends.interface import EngineFactory
from trivec_server.errors import CommandError, InvalidRequest, LoadError, NotFound, Unavailable
from trivec_server.logs import get_logger
from trivec_server.metrics import Metrics
from trivec_server.metrics.statistics import ModelStatistics
from trivec_server.repository.engines import ENGINES
from trivec_server.repository.loading import LoadedVersion, load_version
from trivec_server.repository.manifest import read_manifest
from trivec_server.repository.scan import ModelEntry, scan_repository, select_versions
from trivec_server.repository.tensor_loading import LoadedTensors
from trivec_server.serving.engine_roster import EngineCounts
from trivec_server.serving.pipeline import Pipeline
from trivec_server.serving.tensors.pipeline import TensorPipeline
from trivec_server.settings import ServeSettings
from trivec_server.types import ModelSettings, ModelVersion

_log = get_logger(__name__)


class State(enum.Enum):
    """The lifecycle of a version, as `ModelState` in `embedding.proto`."""

    LOADING = enum.auto()
    READY = enum.auto()
    UNAVAILABLE = enum.auto()
    UNLOADING = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingVersion:
    """A version of an embedding model, to serve requests with."""

    key: ModelVersion
    loaded: LoadedVersion
    pipeline: Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorVersion:
    """A version of a model that takes tensors, to serve requests with."""

    key: ModelVersion
    loaded: LoadedTensors
    pipeline: TensorPipeline


ServedVersion: TypeAlias = EmbeddingVersion | TensorVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """
    One version and its state. `served` is there when it is READY (or UNLOADING). A model of which no version could even
    be found has one record of version 0. `interrupted`: READY, but no engine is at work until one has been built anew;
    requests wait.
    """

    key: ModelVersion
    state: State
    reason: str = ""
    served: ServedVersion | None = None
    interrupted: bool = False

    @property
    def serves(self) -> bool:
        """What health says of it."""
        return self.state is State.READY and not self.interrupted


class Registry:
    """
    The owner of all loaded versions. Lives on the event loop; loading itself runs on threads.

    `on_change(record)` is called on the event loop after every change of state.
    """

    def __init__(
        self,
        settings: ServeSettings,
        metrics: Metrics,
        engines: Mapping[str, EngineFactory] = ENGINES,
        *,
        on_change: Callable[[VersionRecord], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._engines = engines
        self._on_change = on_change
        self._records: dict[ModelVersion, VersionRecord] = {}
        self._default: str | None = None
        self._ready: dict[tuple[str, int], ServedVersion] = {}
        self._statistics: dict[ModelVersion, ModelStatistics] = {}

    def records(self) -> list[VersionRecord]:
        """All versions, ordered by name, then version."""
        return sorted(self._records.values(), key=lambda record: (record.key.name, record.key.version))

    @property
    def default_model(self) -> str | None:
        """The model of requests that name none; decided by `scan` for as long as the server runs."""
        return self._default

    @property
    def any_ready(self) -> bool:
        """Whether any version serves."""
        return any(record.serves for record in self._records.values())

    def scan(self) -> list[ModelEntry]:
        """
        Reads the repository and registers what is to be loaded as LOADING.

        Raises:
            CommandError: the repository cannot be read, is empty, or lacks a model asked for.
        """
        entries = list(scan_repository(self._settings.model_repository))
        names = [entry.name for entry in entries]
        wanted = self._settings.load_models or tuple(names)
        for name in (*wanted, *filter(None, (self._settings.default_model,))):
            if name not in names:
                known = ", ".join(names) or "none"
                raise CommandError(f"model `{name}` is not in {self._settings.model_repository}; models there: {known}")
        if not entries:
            raise CommandError(
                f"{self._settings.model_repository} holds no model; run `trivec pull m3-mini` or name another "
                "directory with --model-repository"
            )
        entries = [entry for entry in entries if entry.name in wanted]
        self._default = self._settings.default_model or _only_model(entries)
        for entry in entries:
            self._register(entry)
        return entries

    async def load(self, entries: list[ModelEntry]) -> None:
        """Loads the registered versions, one after the other. A failure is recorded and the others go on."""
        for entry in entries:
            if entry.settings is None:
                continue
            for version in entry.versions:
                key = ModelVersion(entry.name, version.number)
                record = self._records.get(key)
                if record is not None and record.state is State.LOADING:
                    await self._load_one(key, version.path, entry.settings)

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
        return self._statistics.setdefault(key, ModelStatistics())

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

    async def close(self) -> None:
        """Unloads every version: each serves its requests under way first."""
        for record in self.records():
            if record.served is not None:
                self._set(replace(record, state=State.UNLOADING))
                await record.served.pipeline.close()
                self._set(replace(record, state=State.UNAVAILABLE, reason="unloaded", served=None))

    def _register(self, entry: ModelEntry) -> None:
        log = _log.bind(model=entry.name)
        for problem in entry.problems:
            log.warning("model repository", problem=problem)
        settings = entry.settings
        if settings is None or entry.error is not None:
            self._refuse(ModelVersion(entry.name, 0), entry.error or "the model cannot be read")
            return
        for warning in settings.warnings:
            log.warning("config.pbtxt", warning=warning)
        selection = select_versions(settings.version_policy, [version.number for version in entry.versions])
        for number in selection.missing:
            self._refuse(ModelVersion(entry.name, number), "version_policy asks for it, but its directory is missing")
        for number in selection.selected:
            self._set(VersionRecord(key=ModelVersion(entry.name, number), state=State.LOADING))

    async def _load_one(self, key: ModelVersion, path: Path, settings: ModelSettings) -> None:
        started_at = time.monotonic()
        try:
            loaded = await asyncio.to_thread(load_version, key, path, settings, self._engines)
        except LoadError as error:
            self._refuse(key, str(error))
            return
        except Exception:  # noqa: BLE001 - concerns this version only; the others go on
            _log.exception("model failed to load", model=key.name, version=key.version)
            self._refuse(key, "an unexpected error; the server's log has it")
            return
        pipeline = Pipeline(
            name=str(key),
            tokenizer=loaded.tokenizer,
            devices=loaded.devices,
            info=loaded.info,
            batching=settings.batching,
            max_tokens=loaded.max_tokens,
            limits=self._settings.limits,
            metrics=self._metrics.model(key),
            statistics=self.statistics(key),
            on_change=partial(self._engines_changed, key),
        )
        pipeline.start()
        duration_s = time.monotonic() - started_at
        self._metrics.model_load_duration_s.labels(key.name, str(key.version)).set(duration_s)
        served = EmbeddingVersion(key=key, loaded=loaded, pipeline=pipeline)
        self._metrics.watch_statistics(key, self.statistics(key).snapshot)
        self._set(VersionRecord(key=key, state=State.READY, served=served))
        self._metrics.model_loaded(key, loaded.info.engine, loaded.info.device, loaded.info.precision)
        for note in loaded.info.notes:
            _log.info("engine", model=key.name, version=key.version, note=note)
        _log.info(
            "model ready",
            model=key.name,
            version=key.version,
            engine=loaded.info.engine,
            device=loaded.info.device,
            precision=loaded.info.precision,
            load_s=round(duration_s, 2),
        )

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

    def _engines_changed(self, key: ModelVersion, counts: EngineCounts) -> None:
        """
        Some engines died, or came back. While one is at work or will be, requests are taken; without any at work,
        health says so. A version whose engines are all gone serves no more; its pipeline is closed with the others.
        """
        record = self._records[key]
        if counts.running == counts.total:
            self._set(replace(record, reason="", interrupted=False))
        elif counts.running or counts.restarting:
            gone = counts.total - counts.running - counts.restarting
            reason = f"{counts.running} of {counts.total} engine instances at work, {counts.restarting} being restarted"
            reason += f", {gone} failed ({'; '.join(counts.failures)}): restart the server" if gone else ""
            self._set(replace(record, reason=reason, interrupted=not counts.running))
        else:
            reason = f"the engine has failed ({'; '.join(counts.failures)}): restart the server"
            self._set(replace(record, state=State.UNAVAILABLE, reason=reason))

    def _refuse(self, key: ModelVersion, reason: str) -> None:
        _log.error("model unavailable", model=key.name, version=key.version, reason=reason)
        # Clients see the reason: the repository's place on this machine is none of their business.
        reason = reason.replace(f"{self._settings.model_repository}/", "")
        self._set(VersionRecord(key=key, state=State.UNAVAILABLE, reason=reason))

    def _set(self, record: VersionRecord) -> None:
        self._records[record.key] = record
        self._index_ready()
        self._metrics.model_ready.labels(record.key.name, str(record.key.version)).set(record.serves)
        self._on_change(record)


def _only_model(entries: list[ModelEntry]) -> str | None:
    """
    The default model where none was chosen: the only one with a version to load; of several, the only one that was not
    made for demonstrations. None if that leaves no one, or more than one.
    """
    loadable = [entry for entry in entries if entry.error is None and entry.versions]
    if len(loadable) > 1:
        loadable = [entry for entry in loadable if not _is_demonstration(entry)]
    return loadable[0].name if len(loadable) == 1 else None


def _is_demonstration(entry: ModelEntry) -> bool:
    try:
        return read_manifest(entry.versions[-1].path).model.demonstration
    except LoadError:
        # Loading will say what is wrong with it.
        return False
