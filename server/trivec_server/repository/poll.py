"""Polling: what changes in the repository is served, once it is at rest."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trivec_server.errors import CommandError, LoadFailed
from trivec_server.logs import get_logger
from trivec_server.metrics import Metrics
from trivec_server.repository.live_model import GONE, LiveModel, Source, Workshop
from trivec_server.repository.look import ModelLook
from trivec_server.repository.models import Models, tell_problems
from trivec_server.repository.records import BEING_WRITTEN
from trivec_server.repository.roots import DUPLICATE, Roots
from trivec_server.repository.watch import ChangeWatch
from trivec_server.settings import EVERY_MODEL, ServeSettings

_log = get_logger(__name__)

_FORGET_S = 3600.0
"""How long a model whose directory is gone stays in the index."""

_EMPTIED = "its repository is empty; served from memory"
_EMPTIED_MEND = "mount it again; to unload its last model, remove the versions and leave the model's directory"


class Poller:
    """Looks at the repository again and again. Lives on the event loop; whoever owns it says when."""

    def __init__(
        self,
        settings: ServeSettings,
        roots: Roots,
        models: Models,
        workshop: Workshop,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._roots = roots
        self._models = models
        self._workshop = workshop
        self._registry = workshop.registry
        self._metrics = metrics
        self._clock = clock
        self._watches: dict[str, ChangeWatch] = {}

    def seen(self, look: ModelLook) -> None:
        """A look before the first poll."""
        self._watch(look.entry.name).see(look.signature, self._clock())

    async def poll(self) -> float:
        """Looks at all models once, and loads or unloads what is to be; gives the seconds until the next look."""
        period_s = self._settings.repository_poll_s
        try:
            directories = await self._workshop.run(self._roots.models)
        except CommandError as error:
            # What serves goes on: a folder that cannot be reached for a moment is not one without models.
            _log.error("the repository cannot be polled", reason=str(error))
            self._metrics.repository_poll_failed()
            return period_s
        away = self._keep_emptied(directories)
        only = self._settings.load_models if EVERY_MODEL not in self._settings.load_models else ()
        names = {*directories, *(model.name for model in self._models if model.name not in away)}
        # All at a time: none waits for another one that loads.
        polls = [
            self._poll_safely(self._models.get(name), directories.get(name, ()))
            for name in sorted(names)
            if not only or name in only
        ]
        next_looks = await asyncio.gather(*polls)
        self._models.choose_default()
        return max(0.0, min([period_s, *(instant - self._clock() for instant in next_looks if instant is not None)]))

    def _keep_emptied(self, directories: Mapping[str, Sequence[Path]]) -> frozenset[str]:
        """Says which repositories are empty all at once; gives the models that were in them, which serve on."""
        away: frozenset[str] = frozenset()
        for root, names in self._roots.emptied(directories).items():
            _log.error("a repository is empty now; its models serve on", repository=str(root), mend=_EMPTIED_MEND)
            self._metrics.repository_poll_failed()
            away |= names
        for name in away - directories.keys():
            self._registry.note(name, _EMPTIED)
        return away - directories.keys()

    async def _poll_safely(self, model: LiveModel, paths: Sequence[Path]) -> float | None:
        try:
            return await self._poll_model(model, paths)
        except Exception:  # noqa: BLE001 - concerns this model only; the others go on
            _log.exception("a look at a model failed", model=model.name)
            model.refuse("an unexpected error; the server's log has it")
            return None

    async def _poll_model(self, model: LiveModel, paths: Sequence[Path]) -> float | None:
        """Looks at one model; gives the instant of the next look if that is not to be the next poll's."""
        async with model.turn:
            watch, now = self._watch(model.name), self._clock()
            look = await self._workshop.look(paths[0]) if len(paths) == 1 else None
            watch.see(len(paths) if look is None else look.signature, self._clock())
            if look is not None and model.is_current(look):
                model.confirm(look, patient=True)
                return None
            if now < watch.at_rest_from:
                self._tell_unrest(model, look)
                return watch.at_rest_from
            if look is None:
                self._lose(model, watch, is_duplicate=bool(paths), now=now)
                return None
            if look.error is not None and (look.entry.versions or look.entry.is_unreadable):
                model.refuse(look.error)
                return None
            if now >= watch.next_try:
                await self._load(model, look, watch)
            return watch.next_try if watch.next_try > now else None

    async def _load(self, model: LiveModel, look: ModelLook, watch: ChangeWatch) -> None:
        tell_problems(look)
        if look.error is not None and not self._registry.held(model.name):
            # There is no version.
            model.refuse(look.error)
            return
        try:
            await model.load(look, Source(), patient=True, together=False)
        except LoadFailed:
            # The log and the index have the reason.
            watch.failed(self._clock())
        else:
            watch.succeeded()
        if self._registry.serving(model.name):
            self._models.want(model.name)
        elif not look.entry.versions:
            self._models.want(model.name, wanted=False)

    def _tell_unrest(self, model: LiveModel, look: ModelLook | None) -> None:
        """Enters what is not loaded yet because it is still changing."""
        if look is None:
            return
        model.select(look, patient=True)
        if not self._registry.records(model.name):
            model.wait(f"{BEING_WRITTEN}: it has changed a moment ago")

    def _lose(self, model: LiveModel, watch: ChangeWatch, *, is_duplicate: bool, now: float) -> None:
        """Of a model whose directory is gone, or one of several, nothing is loaded any more."""
        if is_duplicate:
            model.refuse(DUPLICATE)
        elif self._registry.held(model.name):
            self._models.want(model.name, wanted=False)
            model.unload(GONE)
        elif not self._is_remembered(model) or now > watch.at_rest_from + _FORGET_S:
            self._watches.pop(model.name)
            self._models.want(model.name, wanted=False)
            self._models.drop(model.name)

    def _is_remembered(self, model: LiveModel) -> bool:
        """Whether the index shall tell for a while that the model has served."""
        return any(record.cause == GONE for record in self._registry.records(model.name))

    def _watch(self, name: str) -> ChangeWatch:
        watch = self._watches.get(name)
        if watch is None:
            stability_s, retry_s = self._settings.repository_stability_s, self._settings.repository_poll_s
            watch = self._watches[name] = ChangeWatch(stability_s, retry_s)
        return watch
