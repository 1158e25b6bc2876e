"""All models that a server has to do with, by name."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from trivec_server.logs import get_logger
from trivec_server.repository.default_model import default_of_served
from trivec_server.repository.live_model import LiveModel, Workshop
from trivec_server.repository.look import ModelLook
from trivec_server.settings import ServeSettings

_log = get_logger(__name__)


class Models:
    """Makes each model when it is first named. Lives on the event loop."""

    def __init__(self, settings: ServeSettings, workshop: Workshop) -> None:
        self._settings = settings
        self._workshop = workshop
        self._models: dict[str, LiveModel] = {}
        self._wanted: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[LiveModel]:
        """All of them, by name."""
        return iter([self._models[name] for name in sorted(self._models)])

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def get(self, name: str) -> LiveModel:
        """One of them."""
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = LiveModel(name, self._workshop)
        return model

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[LiveModel]:
        """One of them, to change it; it may have been dropped and made anew while others had their turn."""
        while True:
            model = self.get(name)
            async with model.turn:
                if self._models.get(name) is model:
                    yield model
                    return

    def drop(self, name: str) -> None:
        """Forgets a model of which nothing serves."""
        self._models.pop(name, None)
        self._workshop.registry.forget(name, ())

    @property
    def wanted(self) -> frozenset[str]:
        """The models that are to be served. For any thread."""
        return self._wanted

    def want(self, name: str, wanted: bool = True) -> None:
        """Says whether a model is to be served."""
        self._wanted = self._wanted | {name} if wanted else self._wanted - {name}

    def choose_default(self) -> None:
        """Looks for another default model where there is none any more, unless one was set for good."""
        registry = self._workshop.registry
        if self._settings.default_model is None and registry.default_model not in self._wanted:
            registry.choose_default(default_of_served(registry.records()))


def tell_problems(look: ModelLook) -> None:
    """Writes to the log what a look has shown that stops nothing."""
    entry = look.entry
    for problem in entry.problems:
        _log.warning("model repository", model=entry.name, problem=problem)
    for warning in entry.settings.warnings if entry.settings is not None else ():
        _log.warning("config.pbtxt", model=entry.name, warning=warning)
