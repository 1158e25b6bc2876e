"""A version on its way: loaded and checked, not yet serving."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trivec_server.backends.interface import EngineFactory
from trivec_server.errors import LoadError
from trivec_server.logs import get_logger
from trivec_server.repository.loading import LoadedVersion, load_version
from trivec_server.repository.tensor_loading import LoadedTensors, load_tensors
from trivec_server.types import ModelSettings, ModelVersion

_log = get_logger(__name__)


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


def stage_version(
    key: ModelVersion, path: Path, settings: ModelSettings, engines: Mapping[str, EngineFactory]
) -> StagedVersion:
    """
    Loads and checks a version, whatever it takes. Blocks; nothing stays open if it fails.

    Raises:
        LoadError: the reason, for the user.
    """
    started_at = time.monotonic()
    try:
        loaded: LoadedVersion | LoadedTensors
        if settings.tensors is not None:
            loaded = load_tensors(key, path, settings)
        else:
            loaded = load_version(key, path, settings, engines)
    except LoadError:
        raise
    except Exception as error:
        _log.exception("model failed to load", model=key.name, version=key.version)
        raise LoadError("an unexpected error; the server's log has it") from error
    return StagedVersion(loaded=loaded, duration_s=time.monotonic() - started_at)
