"""A version on its way: loaded and checked, not yet serving."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trivec_server.backends.interface import EngineFactory
from trivec_server.backends.tensor_interface import TensorEngineFactory
from trivec_server.errors import LoadError
from trivec_server.logs import get_logger
from trivec_server.repository.engines import AUTO, ENGINES, TENSOR_ENGINES
from trivec_server.repository.loading import LoadedVersion, load_version
from trivec_server.repository.tensor_loading import LoadedTensors, load_tensors
from trivec_server.types import ModelSettings, ModelVersion

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """The factories of engines, by the names that `backend` gives them, for embedding models and for others."""

    of_texts: Mapping[str, EngineFactory] = field(default_factory=lambda: ENGINES)
    of_tensors: Mapping[str, TensorEngineFactory] = field(default_factory=lambda: TENSOR_ENGINES)

    def fault(self, settings: ModelSettings) -> str:
        """Why there is no engine for a model; "" if there is one."""
        if settings.tensors is not None or settings.backend in (AUTO, *self.of_texts):
            return ""
        return f"backend `{settings.backend}` is not known; use one of: {', '.join(sorted((AUTO, *self.of_texts)))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedVersion:
    """A version that is fit to serve, with its engines, and how long that took."""

    loaded: LoadedVersion | LoadedTensors
    duration_s: float

    @property
    def key(self) -> ModelVersion:
        """Which version it is."""
        return self.loaded.key

    def discard(self) -> None:
        """Closes its engines: it will not serve. Blocks."""
        for device in self.loaded.devices:
            device.close()


def stage_version(key: ModelVersion, path: Path, settings: ModelSettings, engines: Engines) -> StagedVersion:
    """
    Loads and checks a version, whatever it takes. Blocks; nothing stays open if it fails.

    Raises:
        LoadError: the reason, for the user.
    """
    started_at = time.monotonic()
    try:
        loaded: LoadedVersion | LoadedTensors
        if settings.tensors is not None:
            loaded = load_tensors(key, path, settings, engines.of_tensors)
        else:
            loaded = load_version(key, path, settings, engines.of_texts)
    except LoadError:
        raise
    except Exception as error:
        _log.exception("model failed to load", model=key.name, version=key.version)
        raise LoadError("an unexpected error; the server's log has it") from error
    return StagedVersion(loaded=loaded, duration_s=time.monotonic() - started_at)
