"""Which models are loaded: at the start, on request, or as the repository's directories change."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trivec_server.errors import CommandError, LoadFailed
from trivec_server.logs import get_logger
from trivec_server.metrics import Metrics
from trivec_server.repository.default_model import default_of_entries
from trivec_server.repository.index import IndexEntry, list_index
from trivec_server.repository.live_model import Source, Workshop
from trivec_server.repository.load_override import LoadOverride, remove_leftovers
from trivec_server.repository.look import ModelLook, look_at_model
from trivec_server.repository.models import Models, tell_problems
from trivec_server.repository.orders import Orders
from trivec_server.repository.poll import Poller
from trivec_server.repository.registry import UNLOADED, Registry
from trivec_server.repository.releases import Releases
from trivec_server.repository.roots import DUPLICATE, Roots
from trivec_server.repository.staging import Engines
from trivec_server.settings import EVERY_MODEL, ControlMode, ServeSettings

__all__ = ["ControlMode", "IndexEntry", "LoadOverride", "ModelControl"]

_log = get_logger(__name__)

_FROM_MEMORY = "its directory is gone; served from memory"
_THREADS = 4
_LOADERS = 2
"""How many versions are loaded at a time: each needs memory beside what serves."""


class ModelControl:
    """
    The owner of scanning, loading, unloading and polling. Lives on the event loop.

    `after_release` is called on a thread whenever versions were released.
    """

    def __init__(
        self,
        settings: ServeSettings,
        registry: Registry,
        metrics: Metrics,
        engines: Engines,
        *,
        after_release: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._roots = Roots(settings.model_repositories)
        self._threads = ThreadPoolExecutor(_THREADS, "repository")
        self._releases = Releases(registry, after_release)
        self._loaders = ThreadPoolExecutor(_LOADERS, "loading")
        self._workshop = Workshop(
            registry=registry,
            releases=self._releases,
            engines=engines,
            threads=self._threads,
            loaders=self._loaders,
        )
        self._models = Models(settings, self._workshop)
        self._poller = Poller(settings, self._roots, self._models, self._workshop, metrics, clock=clock)
        self._orders = Orders(self.mode, self._roots, self._models, self._workshop)
        self._first: dict[str, ModelLook] = {}
        self._is_started = False

    @property
    def mode(self) -> ControlMode:
        """Who decides what is loaded."""
        return self._settings.model_control_mode

    @property
    def server_ready(self) -> bool:
        """
        Whether the server is ready: the first loading is over and, with strict readiness, each model that is to be
        served has a version that serves. For any thread.
        """
        return self._is_started and (
            not self._settings.strict_readiness or self._models.wanted <= self._registry.serving_models()
        )

    @property
    def is_loading(self) -> bool:
        """Whether a version is being loaded just now: on a thread, which nothing can interrupt."""
        return bool(self._workshop.staging)

    def scan(self) -> None:
        """
        Reads the repositories and enters what is to be loaded first. Blocks.

        Raises:
            CommandError: a repository cannot be read, is empty, or lacks a model asked for.
        """
        if self.mode is ControlMode.EXPLICIT:
            remove_leftovers()
        found = self._roots.models()
        names = self._names_of_start(found)
        for name in names:
            self._models.want(name)
            self._enter(name, found.get(name, ()))
        default = self._settings.default_model
        fit = (look.entry for look in self._first.values() if not look.fault)
        self._registry.choose_default(default or default_of_entries(fit))

    async def load_first(self) -> None:
        """Loads what `scan` has entered, one version after the other. A failure is recorded and the others go on."""
        is_polling = self.mode is ControlMode.POLL
        for name, look in self._first.items():
            if is_polling and not look.has_manifests:
                # Only a second look tells whether it is whole.
                continue
            model = self._models.get(name)
            async with model.turn:
                try:
                    await model.load(look, Source(), patient=is_polling, together=False)
                except LoadFailed as error:
                    _log.error("not all of a model serves", reason=str(error))
        if is_polling and not all(look.has_manifests for look in self._first.values()):
            await asyncio.sleep(self._settings.repository_stability_s)
            await self._poller.poll()
        self._first.clear()
        self._is_started = True

    def failures(self) -> list[str]:
        """What does not serve of the models that are to, with the reasons."""
        return [
            f"{record.key if record.key.version else record.key.name}: {record.reason}"
            for record in self._registry.records()
            if record.key.name in self._models.wanted and not record.serves
        ]

    async def look_again(self) -> float:
        """Polls, or finds out whether what serves is still there; gives the seconds until the next look."""
        if self.mode is ControlMode.POLL:
            return await self._poller.poll()
        await self._note_gone()
        return self._settings.repository_poll_s

    async def run(self) -> None:
        """Looks again for as long as the server runs."""
        while True:
            try:
                delay_s = await self.look_again()
            except Exception:  # noqa: BLE001 - whatever it was, the next look may go well
                _log.exception("a look at the repository failed")
                delay_s = self._settings.repository_poll_s
            await asyncio.sleep(delay_s)

    async def index(self) -> list[IndexEntry]:
        """Every model in the repositories and every version known, by name and version."""
        try:
            found = await self._workshop.run(self._roots.models)
        except CommandError as error:
            _log.error("the repository cannot be listed", reason=str(error))
            found = {}
        if self.mode is not ControlMode.POLL:
            await self._note_gone()
        return list_index(self._registry.records(), found)

    async def load_model(self, name: str, override: LoadOverride | None = None) -> None:
        """
        Loads or reloads a model; returns once it serves. What serves already goes on until then. A model whose content
        has not changed is left as it is. Who no longer waits for it does not stop it.

        Raises:
            ControlDisabled: the control mode is not EXPLICIT.
            ModelNotInRepository: no repository holds the model, or it cannot be read there.
            InvalidTensor: the override is wrong.
            LoadFailed: a version cannot be served; the message says why.
            Unavailable: the server is stopping.
        """
        await self._orders.load(name, override or LoadOverride())

    async def unload_model(self, name: str) -> None:
        """
        Stops serving a model; returns once no new request reaches it. Requests under way are served. A name that is not
        known is no error.

        Raises:
            ControlDisabled: the control mode is not EXPLICIT.
            Unavailable: the server is stopping.
        """
        await self._orders.unload(name)

    async def close(self) -> None:
        """Unloads every version: each serves its requests under way first."""
        await self._orders.close()
        for model in self._models:
            async with model.turn:
                model.unload(UNLOADED)
        await self._releases.all_over()
        self._threads.shutdown(wait=False)
        self._loaders.shutdown(wait=False)

    def _names_of_start(self, found: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
        """
        The models to load first.

        Raises:
            CommandError: one of them, or the default model, is not there, or none is at all and none will come.
        """
        asked = self._settings.load_models
        is_fixed = self.mode is ControlMode.NONE
        default = self._settings.default_model
        for name in (*asked, *((default,) if default is not None and is_fixed else ())):
            if name != EVERY_MODEL and name not in found and self.mode is not ControlMode.POLL:
                known = ", ".join(found) or "none"
                raise CommandError(f"model `{name}` is not in {self._roots}; models there: {known}")
        if not found and is_fixed:
            raise CommandError(
                f"{self._roots} holds no model; run `trivec pull m3-mini` or name another directory with "
                "--model-repository"
            )
        if EVERY_MODEL in asked or (not asked and self.mode is not ControlMode.EXPLICIT):
            return tuple(found)
        return asked

    def _enter(self, name: str, paths: Sequence[Path]) -> None:
        """Enters what is known of a model before the first load."""
        model = self._models.get(name)
        if len(paths) != 1:
            model.refuse(DUPLICATE) if paths else model.wait("not in the repository yet")
            return
        look = look_at_model(paths[0], self._workshop.engines.fault)
        tell_problems(look)
        self._poller.seen(look)
        if look.error is not None:
            model.refuse(look.error)
        else:
            model.expect(model.select(look, patient=self.mode is ControlMode.POLL).selected)
            self._first[name] = look

    async def _note_gone(self) -> None:
        """Says of versions whose directories are gone that they serve on all the same."""
        for model in self._models:
            for number, content in dict(model.contents).items():
                is_there = await self._workshop.run(content.path.is_dir)
                model.note_absence(number, _FROM_MEMORY, is_absent=not is_there)
