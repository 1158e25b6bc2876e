"""grpcurl, the real program, against the real server: reflection, health and the three embeddings of m3-mini."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving_process import ServingProcess, serve

GRPCURL = Path(sys.executable).parent / "grpcurl"
SERVICE = "trivec.v1.EmbeddingService"
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def server(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    with serve(mini_repository, log_path=tmp_path_factory.mktemp("grpcurl") / "server.log") as server:
        yield server


def grpcurl(server: ServingProcess, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Flags, then the target, then the symbol: the last argument, if it is no flag."""
    *flags, symbol = arguments
    return subprocess.run(
        [str(GRPCURL), "-plaintext", *flags, server.target, *symbol.split()],
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=False,
    )


def ask(server: ServingProcess, method: str, request: object) -> Any:
    done = grpcurl(server, "-d", json.dumps(request), f"{SERVICE}/{method}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_list_names_the_services(server: ServingProcess) -> None:
    done = grpcurl(server, "list")
    assert done.stdout.split() == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        SERVICE,
    ]


def test_list_names_every_method_of_the_service(server: ServingProcess) -> None:
    methods = {line.removeprefix(f"{SERVICE}.") for line in grpcurl(server, f"list {SERVICE}").stdout.split()}
    assert methods == {"Embed", "EmbedStream", "Score", "Tokenize", "GetModel", "ListModels"}


@pytest.mark.parametrize("symbol", [SERVICE, "trivec.v1.EmbedRequest", "trivec.v1.EmbedStreamResponse"])
def test_describe_knows_the_contract(server: ServingProcess, symbol: str) -> None:
    done = grpcurl(server, f"describe {symbol}")
    assert done.returncode == 0, done.stderr
    assert symbol in done.stdout


def test_embed_gives_all_three_parts_of_a_chinese_text(server: ServingProcess) -> None:
    answer = ask(server, "Embed", {"texts": ["人工智能"], "modes": ["MODE_HYBRID"], "return_tokens": True})
    (embedding,) = answer["embeddings"]
    dense = embedding["dense"]
    assert sum(value * value for value in dense["values"]) == pytest.approx(1, abs=1e-3)
    assert len(dense["values"]) == dense["dimension"]
    sparse = embedding["sparse"]
    assert sparse["ids"] == sorted(set(sparse["ids"]))
    assert len(sparse["ids"]) == len(sparse["weights"]) == len(sparse["tokens"]) > 0
    multi_vector = embedding["multi_vector"]
    assert multi_vector["rows"] == embedding["token_count"] - 1
    assert len(multi_vector["values"]) == multi_vector["rows"] * multi_vector["dimension"]


def test_the_line_of_the_greeting_works_as_it_is(server: ServingProcess) -> None:
    (line,) = [line for line in server.greeting.splitlines() if line.strip().startswith("grpcurl ")]
    done = subprocess.run(
        ["sh", "-c", line.replace("grpcurl", str(GRPCURL), 1)],
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["embeddings"][0]) >= {"dense", "sparse", "multi_vector"}


def test_score_and_get_model_answer(server: ServingProcess) -> None:
    scores = ask(server, "Score", {"query": "What is AI?", "passages": ["AI is ...", "A cake recipe"]})["scores"]
    assert len(scores) == 2
    model = ask(server, "GetModel", {})["model"]
    assert model["name"] == "m3-mini"
    assert model["demonstration"] is True


def test_embed_stream_answers_each_request_under_its_id(server: ServingProcess) -> None:
    requests = "".join(json.dumps({"id": name, "request": {"texts": [name]}}) for name in ("one", "two"))
    done = grpcurl(server, "-d", requests, f"{SERVICE}/EmbedStream")
    assert done.returncode == 0, done.stderr
    decoder, text, ids = json.JSONDecoder(), done.stdout.strip(), set()
    while text:
        answer, end = decoder.raw_decode(text)
        assert answer["final"] is True
        ids.add(answer["id"])
        text = text[end:].strip()
    assert ids == {"one", "two"}


def test_health_says_serving(server: ServingProcess) -> None:
    done = grpcurl(server, "-d", '{"service": "m3-mini"}', "grpc.health.v1.Health/Check")
    assert json.loads(done.stdout) == {"status": "SERVING"}


def test_an_error_shows_its_field_and_details(server: ServingProcess) -> None:
    done = grpcurl(server, "-d", '{"texts": ["a"], "max_tokens": 1}', f"{SERVICE}/Embed")
    assert done.returncode != 0
    assert "Code: InvalidArgument" in done.stderr
    assert "max_tokens" in done.stderr
    assert "google.rpc.BadRequest" in done.stderr
