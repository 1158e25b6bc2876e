"""`--cache-config`: Triton's syntax, one pair each time."""

from pathlib import Path

import click
import pytest
from trivec_server.cli_cache import cache_settings, parse_cache_config
from trivec_server.settings import MIB, CacheSettings

SECRET = "a,b=c"  # noqa: S105 - of no server


def parse(*values: str, username: str | None = None, password: str | None = None) -> CacheSettings:
    return parse_cache_config(values, username, password)


def test_without_a_value_it_is_in_memory_with_128_mib() -> None:
    assert parse() == CacheSettings(kind="local", size_bytes=128 * MIB)


@pytest.mark.parametrize("values", [["local"], ["local", "local"]])
def test_the_name_alone_takes_the_defaults(values: list[str]) -> None:
    assert parse(*values) == CacheSettings()


def test_a_size_is_in_bytes() -> None:
    assert parse("local,size=1048576").size_bytes == 1048576


def test_a_redis_server_is_named_with_one_pair_each_time() -> None:
    settings = parse("redis,host=cache", "redis,port=6380", "redis,db=3", "redis,ttl=60")
    assert settings == CacheSettings(kind="redis", host="cache", port=6380, database=3, ttl_s=60)


def test_tls_to_redis_is_a_switch_and_a_file_of_authorities() -> None:
    settings = parse("redis,tls=true", "redis,ca=ca.pem")
    assert (settings.has_tls, settings.ca_file) == (True, Path("ca.pem"))
    assert not parse("redis,tls=false").has_tls


def test_a_redis_server_is_by_default_that_of_the_machine() -> None:
    assert parse("redis") == CacheSettings(kind="redis", host="127.0.0.1", port=6379)


def test_a_password_may_have_commas_and_equals_signs() -> None:
    assert parse("redis,user=trivec", f"redis,password={SECRET}").password == SECRET


def test_username_and_password_come_from_the_environment() -> None:
    settings = parse("redis,host=cache", username="trivec", password=SECRET)
    assert (settings.username, settings.password) == ("trivec", SECRET)


@pytest.mark.parametrize("prefix", ["TRIVEC_CACHE", "TRITONCACHE"])
def test_the_variables_are_trivec_s_or_triton_s(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setenv(f"{prefix}_REDIS_USERNAME", "trivec")
    monkeypatch.setenv(f"{prefix}_REDIS_PASSWORD", "secret")
    settings = cache_settings(["redis,host=cache"])
    assert (settings.username, settings.password) == ("trivec", "secret")


def test_trivec_s_variables_win_over_triton_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVEC_CACHE_REDIS_PASSWORD", SECRET)
    monkeypatch.setenv("TRITONCACHE_REDIS_PASSWORD", "other")
    assert cache_settings(["redis"]).password == SECRET


def test_the_variables_do_not_choose_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONCACHE_REDIS_PASSWORD", "secret")
    assert cache_settings([]) == CacheSettings()


def test_a_value_given_wins_over_the_environment() -> None:
    assert parse(f"redis,password={SECRET}", password="other").password == SECRET  # noqa: S106


def test_empty_variables_are_as_none() -> None:
    settings = parse("redis", username="", password="")
    assert (settings.username, settings.password) == (None, None)


def test_a_password_does_not_show_in_the_settings_text() -> None:
    assert "secret" not in repr(parse("redis,password=secret"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["memcached,host=x"], "`memcached` is not a cache; use local or redis"),
        (["local,size=1", "redis,host=x"], "one cache at a time, not local and redis"),
        (["local,host=x"], "`host=...` is not known; local takes one pair each time, of size=..."),
        (["redis,tls_enabled=true"], "`tls_enabled=...` is not known; redis takes one pair each time, of host=..."),
        (["local,size=1", "local,size=2"], "`size` is given twice"),
        (["local,size=1,size=2"], "size=1,size=2 is not a whole number from 1"),
        (["local,"], "what follows the comma is not KEY=VALUE"),
        (["local,size=0"], "size=0 is not a whole number from 1"),
        (["local,size=1e6"], "size=1e6 is not a whole number"),
        (["local,size=-1"], "size=-1 is not a whole number"),
        (["local,size=²"], "size=² is not a whole number"),
        (["local,size=" + "9" * 5000], "is not a whole number"),
        (["redis,port=65536"], "port=65536 is not a whole number from 1 to 65535"),
        (["redis,ttl=0"], "ttl=0 is not a whole number from 1"),
        (["redis,host="], "host= has no value"),
        (["redis,tls=yes"], "tls=yes is neither true nor false"),
        (["redis,tls=true", "redis,ca="], "ca= has no value"),
        (["redis,ca=ca.pem"], "ca=... is of no use without redis,tls=true"),
        ([""], "`` is not a cache"),
    ],
)
def test_what_is_wrong_is_said(values: list[str], message: str) -> None:
    with pytest.raises(click.BadParameter) as raised:
        parse(*values)
    assert message in raised.value.message
    assert raised.value.param_hint == "--cache-config"


def test_a_password_without_its_key_is_not_shown() -> None:
    with pytest.raises(click.BadParameter) as raised:
        parse("redis,hunter2")
    assert "hunter2" not in raised.value.message
