"""Which models are loaded: at the start, on request, or as the repository's directories change."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trivec_server.errors import ControlDisabled
from trivec_server.repository.registry import Registry
from trivec_server.settings import ControlMode, ServeSettings

_DISABLED = "explicit model load / unload is not allowed if polling is enabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """
    One line of the repository's index. `state` is READY, UNAVAILABLE, LOADING or UNLOADING; `version` and `state` are
    empty for a model that was never loaded.
    """

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOverride:
    """
    What a load brings along in place of what the repository holds: config.pbtxt as JSON, and files by their paths in
    the model's directory, such as `1/model.onnx`.
    """

    config_json: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


class ModelControl:
    """The owner of scanning, loading, unloading and polling. Lives on the event loop."""

    def __init__(self, settings: ServeSettings, registry: Registry) -> None:
        self._settings = settings
        self._registry = registry

    @property
    def mode(self) -> ControlMode:
        """Who decides what is loaded."""
        return self._settings.model_control_mode

    @property
    def server_ready(self) -> bool:
        """
        Whether the server is ready: the first loading is over and, with strict readiness, each model that is to be
        served has a version that serves.
        """
        return self._registry.any_ready

    async def index(self) -> list[IndexEntry]:
        """Every model in the repositories and every version known, by name and version."""
        return [
            IndexEntry(
                name=record.key.name,
                version=str(record.key.version) if record.key.version else "",
                state=record.state.name,
                reason=record.reason,
            )
            for record in self._registry.records()
        ]

    async def load_model(self, name: str, override: LoadOverride | None = None) -> None:
        """
        Loads or reloads a model; returns once it serves. What serves already goes on until then. A model whose content
        has not changed is left as it is.

        Raises:
            ControlDisabled: the control mode is not EXPLICIT.
            ModelNotInRepository: no repository holds the model.
            InvalidTensor: the override is wrong.
            LoadFailed: a version cannot be served; the message says why.
        """
        raise ControlDisabled(_DISABLED)

    async def unload_model(self, name: str) -> None:
        """
        Stops serving a model; returns once no new request reaches it. Requests under way are served. A name that is not
        known is no error.

        Raises:
            ControlDisabled: the control mode is not EXPLICIT.
        """
        raise ControlDisabled(_DISABLED)
