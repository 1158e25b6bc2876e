"""`--cache-config` of `trivec serve`, in Triton's syntax: `local,size=BYTES`, or `redis,KEY=VALUE` once per key."""

from collections.abc import Sequence
from typing import Any

import click

from trivec_server.settings import CacheSettings

_HINT = "--cache-config"
_NUMBERS = {
    "size": ("size_bytes", 1, 2**63),
    "port": ("port", 1, 65535),
    "db": ("database", 0, 2**31),
    "ttl": ("ttl_s", 1, 2**31),
}
_TEXTS = {"host": "host", "user": "username", "password": "password"}
_KEYS = {"local": ("size",), "redis": ("host", "port", "user", "password", "db", "ttl")}


def parse_cache_config(values: Sequence[str], username: str | None, password: str | None) -> CacheSettings:
    """
    The settings of one cache. `username` and `password` count where the values name none.

    Raises:
        click.BadParameter: the values name several caches, an unknown one, or what it does not have.
    """
    kinds = dict.fromkeys(value.partition(",")[0] for value in values)
    if len(kinds) > 1:
        raise click.BadParameter(f"one cache at a time, not {' and '.join(kinds)}", param_hint=_HINT)
    kind = next(iter(kinds), CacheSettings().kind)
    if kind not in _KEYS:
        raise click.BadParameter(f"`{kind}` is not {' or '.join(_KEYS)}", param_hint=_HINT)
    fields: dict[str, Any] = {"kind": kind}
    if kind == "redis":
        fields.update(username=username, password=password)
    for value in values:
        for pair in filter(None, value.split(",")[1:]):
            key, separator, text = pair.partition("=")
            if key not in _KEYS[kind] or not separator:
                known = ", ".join(f"{name}=..." for name in _KEYS[kind])
                raise click.BadParameter(f"`{key}` is not known; {kind} takes {known}", param_hint=_HINT)
            field, parsed = _parse(key, text)
            fields[field] = parsed
    return CacheSettings(**fields)


def _parse(key: str, text: str) -> tuple[str, int | str]:
    if key in _TEXTS:
        return _TEXTS[key], text
    field, least, most = _NUMBERS[key]
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise click.BadParameter(f"{key}={text} is not a whole number from {least} to {most}", param_hint=_HINT)
    return field, int(text)
