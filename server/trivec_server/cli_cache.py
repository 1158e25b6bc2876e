"""`--cache-config` of `trivec serve`, in Triton's syntax: `local,size=BYTES`, or `redis,KEY=VALUE` once per key."""

import os
from collections.abc import Sequence
from pathlib import Path
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
_SWITCHES = {"true": True, "false": False}
_KEYS = {"local": ("size",), "redis": ("host", "port", "user", "password", "db", "ttl", "tls", "ca")}
USERNAME_VARIABLES = ("TRIVEC_CACHE_REDIS_USERNAME", "TRITONCACHE_REDIS_USERNAME")
PASSWORD_VARIABLES = ("TRIVEC_CACHE_REDIS_PASSWORD", "TRITONCACHE_REDIS_PASSWORD")
"""Trivec's own variables, and Triton's. What is in a variable is in no list of processes."""


def cache_settings(values: Sequence[str]) -> CacheSettings:
    """The settings of `--cache-config` and of the variables that hold secrets."""
    username, password = (
        next(filter(None, map(os.environ.get, names)), None) for names in (USERNAME_VARIABLES, PASSWORD_VARIABLES)
    )
    return parse_cache_config(values, username, password)


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
        raise click.BadParameter(f"`{kind}` is not a cache; use {' or '.join(_KEYS)}", param_hint=_HINT)
    fields: dict[str, Any] = {}
    for value in values:
        # All that follows the first comma is one pair: a password may have commas.
        _, has_pair, pair = value.partition(",")
        if has_pair:
            field, parsed = _parse(kind, pair)
            if field in fields:
                raise click.BadParameter(f"`{pair.partition('=')[0]}` is given twice", param_hint=_HINT)
            fields[field] = parsed
    if "ca_file" in fields and not fields.get("has_tls"):
        raise click.BadParameter("ca=... is of no use without redis,tls=true", param_hint=_HINT)
    if kind == "redis":
        fields = {"username": username or None, "password": password or None} | fields
    return CacheSettings(kind=kind, **fields)


def _parse(kind: str, pair: str) -> tuple[str, int | str | bool | Path]:
    """A field of CacheSettings and its value."""
    key, is_pair, text = pair.partition("=")
    if key not in _KEYS[kind] or not is_pair:
        known = ", ".join(f"{name}=..." for name in _KEYS[kind])
        # Without `=` it may be anything, a password too.
        what = f"`{key}=...` is not known" if is_pair else "what follows the comma is not KEY=VALUE"
        raise click.BadParameter(f"{what}; {kind} takes one pair each time, of {known}", param_hint=_HINT)
    if key == "tls":
        if text not in _SWITCHES:
            raise click.BadParameter(f"tls={text} is neither true nor false", param_hint=_HINT)
        return "has_tls", _SWITCHES[text]
    if key in _TEXTS or key == "ca":
        if not text:
            raise click.BadParameter(f"{key}= has no value", param_hint=_HINT)
        return ("ca_file", Path(text)) if key == "ca" else (_TEXTS[key], text)
    field, least, most = _NUMBERS[key]
    # int() refuses numbers of thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise click.BadParameter(f"{key}={text} is not a whole number from {least} to {most}", param_hint=_HINT)
    return field, int(text)
