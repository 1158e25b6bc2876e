"""From a version that was loaded to one that serves: its pipeline, its statistics, its series."""

from collections.abc import Callable
from importlib.metadata import version

from trivec_server.logs import get_logger
from trivec_server.metrics import Metrics
from trivec_server.metrics.statistics import ModelStatistics
from trivec_server.repository.loading import LoadedVersion
from trivec_server.repository.records import EmbeddingVersion, ServedVersion, TensorVersion
from trivec_server.repository.staging import StagedVersion
from trivec_server.repository.tensor_loading import LoadedTensors
from trivec_server.serving.cache.model_cache import ModelCache
from trivec_server.serving.cache.store import RowStore
from trivec_server.serving.engine_roster import EngineCounts
from trivec_server.serving.pipeline import Pipeline
from trivec_server.serving.tensors.pipeline import TensorPipeline
from trivec_server.settings import Limits
from trivec_server.types import ModelVersion

_log = get_logger(__name__)


class VersionStarter:
    """Starts versions. Their statistics are kept by name and number, whatever is loaded under them."""

    def __init__(self, limits: Limits, metrics: Metrics, store: RowStore) -> None:
        self._limits = limits
        self._metrics = metrics
        self._store = store
        self._statistics: dict[ModelVersion, ModelStatistics] = {}

    def statistics(self, key: ModelVersion) -> ModelStatistics:
        """The counts of a version, from its first load on."""
        return self._statistics.setdefault(key, ModelStatistics())

    def forget(self, key: ModelVersion) -> None:
        """Drops all that was counted of a version that is gone."""
        self._statistics.pop(key, None)
        self._metrics.model_forgotten(key)

    def start(self, staged: StagedVersion, on_change: Callable[[EngineCounts], None]) -> ServedVersion:
        """Lets a version take requests. `on_change` hears of its engines' deaths and returns, on the event loop."""
        key, info = staged.key, staged.loaded.info
        self._metrics.model_load_duration_s.labels(key.name, str(key.version)).set(staged.duration_s)
        self._metrics.watch_statistics(key, self.statistics(key).snapshot)
        served = self._serve(staged.loaded, on_change)
        precision = served.loaded.info.precision if isinstance(served, EmbeddingVersion) else ""
        self._metrics.model_loaded(key, info.engine, info.device, precision)
        served.pipeline.start()
        for note in info.notes:
            _log.info("engine", model=key.name, version=key.version, note=note)
        _log.info(
            "model ready",
            model=key.name,
            version=key.version,
            engine=info.engine,
            device=info.device,
            precision=precision or "of the model",
            load_s=round(staged.duration_s, 2),
        )
        return served

    def _serve(self, loaded: LoadedVersion | LoadedTensors, on_change: Callable[[EngineCounts], None]) -> ServedVersion:
        key, statistics, metrics = loaded.key, self.statistics(loaded.key), self._metrics.model(loaded.key)
        if isinstance(loaded, LoadedTensors):
            tensor_pipeline = TensorPipeline(
                name=str(key),
                devices=loaded.devices,
                info=loaded.info,
                inputs=loaded.inputs,
                outputs=loaded.outputs,
                batching=loaded.settings.batching,
                limits=self._limits,
                metrics=metrics,
                statistics=statistics,
                on_change=on_change,
            )
            return TensorVersion(key=key, loaded=loaded, pipeline=tensor_pipeline)
        pipeline = Pipeline(
            name=str(key),
            tokenizer=loaded.tokenizer,
            devices=loaded.devices,
            info=loaded.info,
            batching=loaded.settings.batching,
            max_tokens=loaded.max_tokens,
            limits=self._limits,
            metrics=metrics,
            statistics=statistics,
            cache=self._cache(loaded, statistics),
            on_change=on_change,
        )
        return EmbeddingVersion(key=key, loaded=loaded, pipeline=pipeline)

    def _cache(self, loaded: LoadedVersion, statistics: ModelStatistics) -> ModelCache | None:
        if not loaded.settings.response_cache:
            return None
        _log.info("response cache on", model=loaded.key.name, version=loaded.key.version)
        digest = loaded.manifest.content_digest
        return ModelCache(self._store, digest, version("trivec"), loaded.info, statistics)
