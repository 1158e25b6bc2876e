"""The store that the settings ask for."""

from trivec_server.errors import LoadError
from trivec_server.serving.cache.store import LocalStore, RowStore
from trivec_server.settings import CacheSettings


def open_store(settings: CacheSettings) -> RowStore:
    """
    Opens the store. A Redis server that does not answer is a warning; texts are computed until it does.

    Raises:
        LoadError: a package is missing.
    """
    if settings.kind != "redis":
        return LocalStore(settings.size_bytes)
    try:
        from trivec_server.serving.cache.redis import RedisStore  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as error:
        raise LoadError("--cache-config redis needs the package redis: pip install 'trivec[redis]'") from error
    return RedisStore(settings)
