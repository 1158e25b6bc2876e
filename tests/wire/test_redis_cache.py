"""Two servers share what they compute through a real Redis, and serve on without it."""

import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.command_line import trivec
from tests.scraped import read_scrape
from tests.serving_process import ServingProcess, serve
from tests.wire.redis_server import RedisProcess, redis_server, until

PASSWORD = "right,or=not"  # noqa: S105 - of the server in these tests
LOST = re.compile("Redis cannot be (read from|written to), texts are computed")


@pytest.fixture(scope="module")
def repository(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m3-mini with a response cache."""
    original = mini_repository / "m3-mini"
    model = tmp_path_factory.mktemp("cached") / "repository" / "m3-mini"
    model.mkdir(parents=True)
    (model / "1").symlink_to((original / "1").resolve())
    config = (original / "config.pbtxt").read_text(encoding="utf-8")
    (model / "config.pbtxt").write_text(f"{config}\nresponse_cache {{ enable: true }}\n", encoding="utf-8")
    return model.parent


@pytest.fixture(scope="module")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with redis_server(tmp_path_factory.mktemp("redis"), password=PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def servers(repository: Path, redis_process: RedisProcess) -> Iterator[tuple[ServingProcess, ServingProcess]]:
    """Two servers; the second got the password by a variable."""
    flags = ("--cache-config", "redis,host=localhost", "--cache-config", f"redis,port={redis_process.port}")
    given = ("--cache-config", f"redis,password={PASSWORD}")
    folder = repository.parent
    with serve(repository, *flags, *given, log_path=folder / "one.log") as one, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TRITONCACHE_REDIS_PASSWORD", PASSWORD)
        with serve(repository, *flags, log_path=folder / "two.log") as two:
            yield one, two


def embed(server: ServingProcess, *texts: str) -> list[Message]:
    """The embeddings of some texts, hybrid."""
    with grpc.insecure_channel(server.target) as channel:
        request = pb.EmbedRequest(texts=texts, modes=[pb.MODE_HYBRID], encoding=pb.VECTOR_ENCODING_FLOAT32)
        return list(EmbeddingServiceStub(channel).Embed(request, timeout=60).embeddings)


def metric(server: ServingProcess, name: str, **labels: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=60) as response:
        return read_scrape(response.read().decode())(name, **labels)


def computed(server: ServingProcess) -> float:
    """How many texts the engine has computed."""
    return metric(server, "nv_inference_count", model="m3-mini", version="1")


def entries(server: RedisProcess) -> int:
    """How many Redis holds."""
    with server.client as client:
        return int(client.dbsize())


def test_a_server_answers_with_what_another_one_has_computed(
    servers: tuple[ServingProcess, ServingProcess], redis_process: RedisProcess
) -> None:
    one, two = servers
    texts = ["the capital of Portugal", "Lisbon", "a text", "Lisbon"]
    first = embed(one, *texts)
    until(lambda: entries(redis_process) == 3, "the texts were not written")
    before = computed(two)
    assert embed(two, *texts) == first
    assert computed(two) == before
    assert metric(two, "trivec_cache_hits_total") == 4
    assert metric(two, "nv_cache_num_hits_per_model", model="m3-mini", version="1") == 4
    assert metric(two, "trivec_cache_failures_total") == 0


def test_without_redis_requests_go_on_and_it_is_used_again_once_it_is_back(
    servers: tuple[ServingProcess, ServingProcess], redis_process: RedisProcess
) -> None:
    one, two = servers
    embed(one, "a text that was known")
    redis_process.kill()
    assert len(embed(one, "a text that was known", "another text")) == 2
    until(lambda: metric(one, "trivec_cache_failures_total") > 0, "no failure was counted")
    assert LOST.search(one.log)
    redis_process.start()

    def is_written() -> bool:
        # Redis came back empty: a server that uses it again writes what it computes.
        embed(one, "a text that was known")
        return entries(redis_process) == 1

    until(is_written, "the first server does not use it again")

    def is_read() -> bool:
        before = computed(two)
        embed(two, "a text that was known")
        return computed(two) == before

    until(is_read, "the second server does not use it again")


def test_a_wrong_password_is_said_and_costs_nothing_but_time(
    repository: Path, redis_process: RedisProcess, tmp_path: Path
) -> None:
    flags = ("--cache-config", f"redis,port={redis_process.port}", "--cache-config", "redis,password=wrong-one")
    with serve(repository, *flags, log_path=tmp_path / "server.log") as server:
        assert len(embed(server, "a text", "a text")) == 2
        assert metric(server, "trivec_cache_failures_total") > 0
        assert "Redis cannot be reached, texts are computed" in server.log
        assert "invalid username-password pair" in server.log
        assert "wrong-one" not in server.log
        assert server.stop() == 0


def test_a_server_starts_without_its_redis_and_stops(repository: Path, tmp_path: Path) -> None:
    # Nothing listens there.
    with serve(repository, "--cache-config", "redis,port=1", log_path=tmp_path / "server.log") as server:
        assert len(embed(server, "a text")) == 1
        assert "Redis cannot be reached, texts are computed" in server.log
        assert server.stop() == 0


def test_a_cache_that_is_not_known_is_said(repository: Path) -> None:
    done = trivec("serve", "--model-repository", repository, "--cache-config", "memcached,host=x")
    assert done.code != 0
    assert "`memcached` is not a cache; use local or redis" in done.err
