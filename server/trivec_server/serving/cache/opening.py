"""The store that the settings ask for."""

from collections.abc import Callable

from trivec_server.serving.cache.redis import RedisStore
from trivec_server.serving.cache.store import LocalStore, RowStore
from trivec_server.settings import CacheSettings


def open_store(settings: CacheSettings, *, on_failure: Callable[[], None] = lambda: None) -> RowStore:
    """
    Opens the store; `on_failure` is called, on any thread, for each call that a store elsewhere did not answer.

    Raises:
        LoadError: a package is missing.
    """
    if settings.kind == "redis":
        return RedisStore(settings, on_failure=on_failure)
    return LocalStore(settings.size_bytes)
