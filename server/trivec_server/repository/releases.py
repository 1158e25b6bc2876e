"""Versions that were switched off, until their last request is served and their engines are closed."""

import asyncio
from collections.abc import Callable, Sequence

from trivec_server.logs import get_logger
from trivec_server.repository.records import ServedVersion
from trivec_server.repository.registry import Registry

_log = get_logger(__name__)


class Releases:
    """The owner of all releases under way. Lives on the event loop. `after_each` runs on a thread."""

    def __init__(self, registry: Registry, after_each: Callable[[], None]) -> None:
        self._registry = registry
        self._after_each = after_each
        self._tasks: dict[asyncio.Task[None], str] = {}

    def begin(self, name: str, versions: Sequence[ServedVersion], then: Callable[[], None] | None = None) -> None:
        """Begins to release versions of a model; `then` runs on a thread, once all of them are closed."""
        if versions or then is not None:
            task = asyncio.get_running_loop().create_task(self._release(name, versions, then))
            self._tasks[task] = name
            task.add_done_callback(self._tasks.pop)

    async def over(self, name: str, timeout_s: float) -> None:
        """Waits until nothing of a model is being released, but no longer than the timeout."""
        tasks = [task for task, model in self._tasks.items() if model == name]
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=timeout_s)
            if pending:
                _log.warning("earlier versions still have requests under way", model=name, waited_s=timeout_s)

    async def all_over(self) -> None:
        """Waits until nothing is being released."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _release(self, name: str, versions: Sequence[ServedVersion], then: Callable[[], None] | None) -> None:
        try:
            await asyncio.gather(*(self._registry.release(served) for served in versions))
            if then is not None:
                await asyncio.to_thread(then)
        except Exception:  # noqa: BLE001 - nobody awaits a release; the next ones go on
            _log.exception("a version was not released in good order", model=name)
        del versions
        await asyncio.to_thread(self._after_each)
