"""Loads and unloads that calls ask for."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path

from trivec_server.errors import CommandError, ControlDisabled, LoadError, LoadFailed, ModelNotInRepository, Unavailable
from trivec_server.repository.live_model import LiveModel, Source, Workshop
from trivec_server.repository.load_override import LoadOverride, OverrideDirectory
from trivec_server.repository.look import ModelLook
from trivec_server.repository.models import Models, tell_problems
from trivec_server.repository.registry import UNLOADED
from trivec_server.repository.roots import DUPLICATE, Roots
from trivec_server.settings import ControlMode

_DISABLED = "explicit model load / unload is not allowed if polling is enabled"
_RELEASE_WAIT_S = 30.0
"""How long a load waits for the versions that earlier ones have replaced, so that no more than two are in memory."""


class Orders:
    """Carries them out, those of one model one after the other. Lives on the event loop."""

    def __init__(self, mode: ControlMode, roots: Roots, models: Models, workshop: Workshop) -> None:
        self._mode = mode
        self._roots = roots
        self._models = models
        self._workshop = workshop
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    async def load(self, name: str, override: LoadOverride) -> None:
        """See `ModelControl.load_model`."""
        self._check_mode()
        override.check(name)
        await self._carry_out(self._load(name, override))

    async def unload(self, name: str) -> None:
        """See `ModelControl.unload_model`."""
        self._check_mode()
        await self._carry_out(self._unload(name))

    async def close(self) -> None:
        """Takes no more of them, and waits for those under way."""
        self._is_closing = True
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    def _check_mode(self) -> None:
        if self._mode is not ControlMode.EXPLICIT:
            raise ControlDisabled(_DISABLED)
        if self._is_closing:
            raise Unavailable("the server is shutting down")

    async def _carry_out(self, order: Coroutine[None, None, None]) -> None:
        """In a task of its own: a caller that leaves half-way does not leave a model half-way."""
        task = asyncio.ensure_future(order)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        await asyncio.shield(task)

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # The caller may have left; what went wrong is in the log and the index.
            task.exception()

    async def _load(self, name: str, override: LoadOverride) -> None:
        if name not in self._models and not override.files:
            # Nothing is kept of a name that is not there.
            await self._find(name)
        async with self._models.turn(name) as model:
            await self._workshop.releases.over(name, _RELEASE_WAIT_S)
            directory = None
            try:
                if override.files:
                    directory = await self._workshop.run(OverrideDirectory, name, override.files)
                source = Source(config_json=_config_json(model, override), directory=directory)
                look = await self._look(model, source, is_ordered=override.config_json is not None)
                await model.load(look, source, patient=False, together=True)
                self._models.want(name)
            except LoadError as error:
                raise _unreadable(name, str(error)) from None
            finally:
                if directory is not None and model.source.directory is not directory:
                    await self._workshop.run(directory.remove)
                if override.files and not self._workshop.registry.held(name):
                    await self._drop_unless_found(name)
                self._models.choose_default()

    async def _drop_unless_found(self, name: str) -> None:
        """Keeps nothing of a model that does not serve and is in no repository: there is no end of such names."""
        try:
            is_found = bool(await self._workshop.run(self._roots.find, name))
        except CommandError:
            is_found = name in self._models.wanted
        if not is_found:
            self._models.want(name, wanted=False)
            self._models.drop(name)

    async def _look(self, model: LiveModel, source: Source, *, is_ordered: bool) -> ModelLook:
        """
        Looks at what is to be loaded. What is wrong with a configuration that was ordered concerns the caller alone.

        Raises:
            ModelNotInRepository: it is in no repository or in several, or cannot be read.
            LoadFailed: there is no version to serve.
        """
        paths = [source.directory.path] if source.directory is not None else await self._find(model.name)
        if len(paths) > 1:
            model.refuse(DUPLICATE)
            raise _unreadable(model.name, DUPLICATE)
        look = await self._workshop.look(paths[0], config_json=source.config_json)
        tell_problems(look)
        if look.error is not None and not is_ordered:
            model.refuse(look.error)
        if look.entry.settings is None or (look.entry.versions and look.error is not None):
            raise _unreadable(model.name, look.error or "")
        if not look.select(look.versions).selected:
            rule = f"at least one version must be available under the version policy of model '{model.name}'"
            raise LoadFailed(f"load failed for model '{model.name}': {rule}{f': {look.error}' if look.error else ''}")
        return look

    async def _find(self, name: str) -> list[Path]:
        """
        The model's directories in the repositories.

        Raises:
            ModelNotInRepository: there is none, or a repository cannot be read.
        """
        try:
            paths = await self._workshop.run(self._roots.find, name)
        except CommandError as error:
            raise _unreadable(name, str(error)) from None
        if not paths:
            raise _unreadable(name)
        return paths

    async def _unload(self, name: str) -> None:
        if name not in self._models:
            return
        async with self._models.turn(name) as model:
            self._models.want(name, wanted=False)
            model.unload(UNLOADED)
            self._models.choose_default()


def _config_json(model: LiveModel, override: LoadOverride) -> str | None:
    """A configuration that a load brought along is kept by plain loads; one that came with files, as in Triton, not."""
    if override.config_json is not None:
        return override.config_json
    return model.source.config_json if model.source.directory is None else None


def _unreadable(name: str, reason: str = "") -> ModelNotInRepository:
    """Triton's words, and why."""
    said = f"failed to load '{name[:255]}', failed to poll from model repository"
    return ModelNotInRepository(f"{said}: {reason}" if reason else said)
