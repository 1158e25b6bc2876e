"""Rows in a real Redis server: found by others, and never needed."""

import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from trivec_server.errors import LoadError
from trivec_server.serving.cache.opening import open_store
from trivec_server.serving.cache.row import CachedRow
from trivec_server.serving.cache.store import RowStore
from trivec_server.settings import CacheSettings

from tests.cached_rows import DIMENSION, assert_same, dense_row, key_of, rows
from tests.rpc.credentials import Authority
from tests.wire.redis_server import RedisProcess, redis_address, redis_server, until

PASSWORD = "right"  # noqa: S105 - of servers in these tests
Said = list[MutableMapping[str, Any]]


@pytest.fixture
def redis_process(tmp_path: Path) -> Iterator[RedisProcess]:
    with redis_server(tmp_path) as server:
        yield server


@contextmanager
def opened(server: RedisProcess, **changes: Any) -> Iterator[RowStore]:
    """A store in this Redis."""
    given: dict[str, Any] = {"port": server.port, "password": server.password} | changes
    store = open_store(CacheSettings(kind="redis", **given))
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def said() -> Iterator[Said]:
    """What the log says."""
    with structlog.testing.capture_logs() as logs:
        yield logs


def warnings(said: Said) -> list[str]:
    return [str(line["event"]) for line in said if line["log_level"] == "warning"]


def get(store: RowStore, *numbers: int) -> list[CachedRow | None]:
    return store.get_many([key_of(number) for number in numbers], DIMENSION)


def put(store: RowStore, *numbers: int) -> None:
    """Puts rows, and waits until they are in Redis."""
    store.put_many([(key_of(number), dense_row(number)) for number in numbers])
    until(lambda: None not in get(store, *numbers), "the rows were not written")


# --- what is put is found


def test_what_one_server_puts_another_finds(redis_process: RedisProcess) -> None:
    with opened(redis_process) as one, opened(redis_process) as other:
        put(one, 1, 2)
        found = get(other, 1, 3, 2)
        assert_same(found[0], dense_row(1))
        assert found[1] is None
        assert_same(found[2], dense_row(2))
        usage = other.usage()
        assert (usage.hits, usage.misses, usage.failures, usage.entries, usage.size_bytes) == (2, 1, 0, 0, 0)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=rows())
def test_rows_of_any_kind_come_back_as_they_were(redis_process: RedisProcess, row: CachedRow) -> None:
    with opened(redis_process) as store:
        store.put_many([(key_of(0), row)])
    with opened(redis_process) as store:
        assert_same(get(store, 0)[0], row)


def test_many_rows_are_found_in_their_order(redis_process: RedisProcess) -> None:
    numbers = list(range(0, 1000, 3))
    with opened(redis_process) as store:
        put(store, *numbers)
        for number, row in enumerate(get(store, *range(1000))):
            assert (row is not None) == (number % 3 == 0)
            if row is not None:
                assert_same(row, dense_row(number))


def test_rows_of_many_megabytes_are_found(redis_process: RedisProcess) -> None:
    large = [(key_of(number), dense_row(number, 500_000)) for number in range(8)]
    with opened(redis_process) as store:
        store.put_many(large)
    with opened(redis_process) as store:
        for (key, row), found in zip(large, get(store, *range(8)), strict=True):
            assert_same(found, row)
            assert key


def test_rows_expire(redis_process: RedisProcess) -> None:
    with opened(redis_process, ttl_s=1234) as store:
        put(store, 1)
    (name,) = redis_process.client.keys()
    assert 0 < redis_process.client.ttl(name) <= 1234


def test_rows_have_names_of_trivec(redis_process: RedisProcess) -> None:
    with opened(redis_process) as store:
        put(store, 1)
    assert redis_process.client.keys() == [b"trivec:" + key_of(1)]


def test_databases_are_apart(redis_process: RedisProcess) -> None:
    with opened(redis_process) as store, opened(redis_process, database=3) as other:
        put(store, 1)
        assert get(other, 1) == [None]


def test_what_waits_is_written_when_the_store_is_closed(redis_process: RedisProcess) -> None:
    with opened(redis_process) as store:
        for number in range(50):
            store.put_many([(key_of(number), dense_row(number))])
    with opened(redis_process) as store:
        assert None not in get(store, *range(50))


def test_threads_share_a_store(redis_process: RedisProcess) -> None:
    wrong: list[int] = []
    with opened(redis_process) as store:
        put(store, *range(20))

        def work(seed: int) -> None:
            for number in np.random.default_rng(seed).integers(0, 20, 100).tolist():
                (row,) = get(store, number)
                if row is None or row.dense is None or row.dense[0] != number:
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


# --- values that are wrong


@pytest.mark.parametrize("value", [b"", b"of somebody else", dense_row(1).to_bytes(key_of(1))[:-1]])
def test_a_damaged_value_is_a_miss_and_is_said(redis_process: RedisProcess, said: Said, value: bytes) -> None:
    with opened(redis_process) as store:
        redis_process.client.set(b"trivec:" + key_of(1), value)
        assert get(store, 1) == [None]
        assert store.usage().failures == 1
        assert warnings(said) == ["response cache: a row in Redis is damaged and computed again"]
        put(store, 1)


def test_a_value_of_another_kind_is_a_miss(redis_process: RedisProcess) -> None:
    with opened(redis_process) as store:
        redis_process.client.rpush(b"trivec:" + key_of(1), b"a list")
        assert get(store, 1) == [None]


def test_a_row_under_a_wrong_key_is_a_miss(redis_process: RedisProcess) -> None:
    with opened(redis_process) as store:
        put(store, 1)
        redis_process.client.rename(b"trivec:" + key_of(1), b"trivec:" + key_of(2))
        assert get(store, 2) == [None]


# --- a server that refuses


@pytest.mark.parametrize("password", ["wrong", None])
def test_with_a_wrong_password_nothing_is_found_and_it_is_said_once(
    tmp_path: Path, said: Said, password: str | None
) -> None:
    with redis_server(tmp_path, password=PASSWORD) as server, opened(server, password=password) as store:
        store.put_many([(key_of(1), dense_row(1))])
        until(lambda: store.usage().failures > 1, "it did not try again")
        assert get(store, 1) == [None]
        assert warnings(said) == ["response cache: Redis cannot be reached, texts are computed"]
        assert "wrong" not in str(said).replace("WRONGPASS", "")


def test_a_password_lets_in(tmp_path: Path) -> None:
    with redis_server(tmp_path, password=PASSWORD) as server, opened(server) as store:
        put(store, 1)


def test_a_user_may_have_a_name(redis_process: RedisProcess) -> None:
    redis_process.client.acl_setuser(
        "trivec", enabled=True, passwords=[f"+{PASSWORD}"], keys=["trivec:*"], categories=["+@all"]
    )
    with opened(redis_process, username="trivec", password=PASSWORD) as store:
        put(store, 1)


def test_a_server_that_takes_no_rows_is_still_read(redis_process: RedisProcess, said: Said) -> None:
    with opened(redis_process) as store:
        put(store, 1)
        redis_process.client.config_set("maxmemory", "1")
        store.put_many([(key_of(2), dense_row(2))])
        until(lambda: store.usage().failures == 1, "the failure was not counted")
        assert get(store, 1) != [None]
        assert warnings(said) == ["response cache: Redis cannot be written to, texts are computed"]
        redis_process.client.config_set("maxmemory", "0")
        put(store, 2)


def test_a_user_who_may_not_read_still_writes(redis_process: RedisProcess, said: Said) -> None:
    redis_process.client.acl_setuser(
        "trivec", enabled=True, nopass=True, keys=["trivec:*"], categories=["+@all"], commands=["-mget"]
    )
    with opened(redis_process, username="trivec", password=PASSWORD) as store:
        store.put_many([(key_of(1), dense_row(1))])
        assert get(store, 1) == [None]
        assert warnings(said) == ["response cache: Redis cannot be read from, texts are computed"]
    with opened(redis_process) as store:
        assert get(store, 1) != [None]


# --- a server that is away


def test_a_server_that_is_not_there_at_the_start_is_used_once_it_is(tmp_path: Path, said: Said) -> None:
    server = redis_address(tmp_path)
    with opened(server) as store:
        assert get(store, 1) == [None]
        assert warnings(said) == ["response cache: Redis cannot be reached, texts are computed"]
        server.start()
        try:
            until(lambda: any(line["event"] == "response cache: Redis answers" for line in said), "not connected")
            put(store, 1)
        finally:
            server.kill()


def test_a_server_that_dies_is_said_once_and_used_again_when_it_is_back(
    redis_process: RedisProcess, said: Said
) -> None:
    with opened(redis_process) as store:
        put(store, 1)
        redis_process.kill()
        assert get(store, 1) == [None]
        store.put_many([(key_of(2), dense_row(2))])
        until(lambda: store.usage().failures > 2, "it did not try again")
        assert len(warnings(said)) == 2, "that it was lost, and that it is not there"
        redis_process.start()

        def is_back() -> bool:
            store.put_many([(key_of(1), dense_row(1))])
            return get(store, 1) != [None]

        until(is_back, "it was not used again")


def test_a_server_that_hangs_is_a_miss_and_used_again_when_it_goes_on(redis_process: RedisProcess, said: Said) -> None:
    with opened(redis_process) as store:
        put(store, 1)
        redis_process.freeze()
        assert get(store, 1) == [None]
        assert get(store, 1) == [None]
        assert warnings(said)[0] == "response cache: Redis cannot be read from, texts are computed"
        redis_process.thaw()
        until(lambda: get(store, 1) != [None], "it was not used again")


def test_a_store_closes_although_its_server_hangs(redis_process: RedisProcess) -> None:
    with opened(redis_process) as store:
        put(store, 1)
        redis_process.freeze()
        store.put_many([(key_of(2), dense_row(2))])


def test_rows_that_cannot_be_written_in_time_are_dropped_and_counted(redis_process: RedisProcess) -> None:
    with opened(redis_process) as store:
        put(store, 1)
        redis_process.freeze()
        large = dense_row(1, 10_000_000)
        for number in range(3):
            store.put_many([(key_of(number), large)])
        assert store.usage().failures > 0


def test_a_name_that_cannot_be_looked_up_is_a_server_that_is_away(tmp_path: Path, said: Said) -> None:
    with opened(redis_address(tmp_path), host="not..a.name") as store:
        assert get(store, 1) == [None]
        assert warnings(said) == ["response cache: Redis cannot be reached, texts are computed"]


def test_a_port_where_something_else_answers_is_a_server_that_is_away(tmp_path: Path, said: Said) -> None:
    server = redis_address(tmp_path)
    listening = threading.Event()

    def answer_rubbish() -> None:
        import socket  # noqa: PLC0415

        with socket.create_server(("127.0.0.1", server.port)) as port:
            listening.set()
            connection, _ = port.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=answer_rubbish)
    thread.start()
    listening.wait()
    with opened(server) as store:
        assert get(store, 1) == [None]
        assert store.usage().failures > 0
    thread.join()
    assert warnings(said)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_rows_go_over_tls_to_a_server_of_the_authority_by_its_name(tmp_path: Path, authority: Authority) -> None:
    tls = authority.server(client_ca=authority.file)
    with redis_server(tmp_path, tls=tls) as server:
        for host in ("127.0.0.1", "localhost"):
            with opened(server, host=host, has_tls=True, ca_file=authority.file) as store:
                put(store, 1, 2)
                assert_same(get(store, 2)[0], dense_row(2))


def test_a_server_of_another_authority_is_given_nothing(tmp_path: Path, authority: Authority, said: Said) -> None:
    other = Authority(tmp_path, "other")
    with (
        redis_server(tmp_path, tls=authority.server(client_ca=authority.file)) as server,
        opened(server, has_tls=True, ca_file=other.file) as store,
    ):
        assert get(store, 1) == [None]
    assert "Redis cannot be reached" in warnings(said)[0]


def test_a_server_whose_certificate_is_for_another_name_is_given_nothing(
    tmp_path: Path, authority: Authority, said: Said
) -> None:
    tls = authority.server(client_ca=authority.file)
    elsewhere = authority.pair("127.0.0.1")
    tls.certificate.write_bytes(elsewhere.certificate)
    tls.private_key.write_bytes(elsewhere.key)
    with (
        redis_server(tmp_path, tls=tls) as server,
        opened(server, host="localhost", has_tls=True, ca_file=authority.file) as store,
    ):
        assert get(store, 1) == [None]
    assert "Redis cannot be reached" in warnings(said)[0]


def test_a_file_of_authorities_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"redis,ca=.*nowhere\.pem: cannot be used"):
        open_store(CacheSettings(kind="redis", has_tls=True, ca_file=tmp_path / "nowhere.pem"))
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing")
    with pytest.raises(LoadError, match=r"redis,ca=.*wrong\.pem: cannot be used"):
        open_store(CacheSettings(kind="redis", has_tls=True, ca_file=wrong))
