"""The commands embed, score, models and health, against a server whose embeddings follow from the text by rule."""

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
import pyarrow.parquet
import pytest
from grpc_health.v1 import health_pb2
from trivec.v1 import embedding_pb2 as pb
from trivec_server import cli
from trivec_server.cli_client import COMMANDS

from tests import command_line, serving_process
from tests.rpc.scripted_server import (
    DIMENSION,
    TLS_NAME,
    Failure,
    Script,
    dense_of,
    rows_of,
    serve,
    token_count,
    weights_of,
    write_authority,
)

TEXTS = ["人工智能", "vector search", "", "😀 emoji"]


@dataclass
class Run:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Stdin(io.BytesIO):
    """Standard input with given content."""

    name = "<stdin>"


def names(directory: Path) -> list[str]:
    return os.listdir(directory)  # noqa: PTH208 - names are wanted


class Trivec:
    """The command line in this process, calling one server."""

    def __init__(self, target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.target = target
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    async def run(self, *arguments: str, stdin: bytes = b"", target: str | None = None) -> Run:
        self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Stdin(stdin), encoding="utf-8"))
        self._monkeypatch.setenv("TRIVEC_TARGET", target or self.target)
        self._capsys.readouterr()
        code = await asyncio.to_thread(cli.run, arguments)
        written = self._capsys.readouterr()
        return Run(code, written.out, written.err)


@pytest.fixture
async def script() -> Script:
    return Script()


@pytest.fixture
async def trivec(
    script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Trivec]:
    async with serve(script) as target:
        yield Trivec(target, capsys, monkeypatch)


@pytest.fixture
def lines_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


async def test_embed_gives_one_json_line_per_line(trivec: Trivec, lines_file: Path) -> None:
    run = await trivec.run("embed", str(lines_file), "--mode", "hybrid")
    assert (run.code, run.err) == (0, "")
    assert [record["index"] for record in run.records] == [0, 1, 2, 3]
    for text, record in zip(TEXTS, run.records, strict=True):
        assert (record["tokens"], record["truncated"]) == (token_count(text), False)
        np.testing.assert_array_equal(np.array(record["dense"], np.float32), dense_of(text))
        assert record["sparse"]["ids"] == list(weights_of(text))
        np.testing.assert_array_equal(np.array(record["multi_vector"], np.float32), rows_of(text))


async def test_embed_reads_standard_input(trivec: Trivec) -> None:
    run = await trivec.run("embed", stdin=b"a text\r\nwithout an end")
    assert [record["tokens"] for record in run.records] == [token_count("a text"), token_count("without an end")]
    assert "sparse" not in run.records[0]


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--mode", "sparse"], {"sparse"}),
        (["--mode", "dense,sparse"], {"dense", "sparse"}),
        (["--mode", "multi-vector", "--mode", "dense"], {"dense", "multi_vector"}),
    ],
)
async def test_modes_are_given_one_by_one_or_with_commas(trivec: Trivec, flags: list[str], parts: set[str]) -> None:
    run = await trivec.run("embed", *flags, stdin=b"a")
    assert run.records[0].keys() - {"index", "tokens", "truncated"} == parts


async def test_jsonl_keeps_ids_and_passes_over_blank_lines(trivec: Trivec, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": "x", "body": "a"}\n\n{"id": 7, "body": "b"}\n{"body": "c"}\n')
    run = await trivec.run("embed", str(path), "--text-field", "body")
    assert [(record["index"], record.get("id")) for record in run.records] == [(0, "x"), (1, 7), (2, None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "<stdin>:2: not JSON: "),
        (b'{"text": "a"}\n["a"]\n', "<stdin>:2: expected a JSON object, got list"),
        (b'{"body": "a"}\n', "<stdin>:1: no field 'text'; --text-field names the field of the text"),
        (b'{"text": 5}\n', "<stdin>:1: text: expected a string, got int"),
        (b'{"text": "a", "id": [1]}\n', "<stdin>:1: id: expected a string or an integer, got list"),
        (b'{"text": "a"}\n\xff\n', "<stdin>:2: not UTF-8 at byte 0: invalid start byte"),
    ],
)
async def test_a_faulty_line_is_named(trivec: Trivec, content: bytes, message: str) -> None:
    run = await trivec.run("embed", "--input-format", "jsonl", stdin=content)
    assert run.code == 1
    assert run.err.startswith(f"error: {message}")
    assert run.err.count("\n") == 1


async def test_a_text_that_the_server_refuses_is_named_by_its_line(trivec: Trivec, script: Script) -> None:
    refused = Failure(grpc.StatusCode.INVALID_ARGUMENT, "600 tokens are more than 512", field="texts[1]")
    script.failures.extend([None, refused])
    content = "".join(f'{{"text": "{i}"}}\n\n' for i in range(6)).encode()
    flags = ["--input-format", "jsonl", "--batch-size", "3", "--max-in-flight", "1"]
    run = await trivec.run("embed", *flags, stdin=content)
    assert run.code == 1
    assert run.err.startswith("error: INVALID_ARGUMENT: <stdin>:9: 600 tokens are more than 512")


async def test_embed_passes_its_options_on(trivec: Trivec, script: Script) -> None:
    flags = ["--input-type", "query", "--truncation", "left", "--max-tokens", "9", "--wire-encoding", "float16"]
    await trivec.run(
        "embed", *flags, "--model", "m", "--model-version", "3", "--sparse-top-k", "2", "--mode", "sparse", stdin=b"a"
    )
    assert script.requests == []  # model m is unknown to the script, which GetModel has said
    await trivec.run("embed", *flags, "--model-version", "3", "--sparse-top-k", "2", "--mode", "sparse", stdin=b"a")
    (request,) = script.requests
    assert isinstance(request, pb.EmbedRequest)
    assert (request.version, request.input_type, request.truncation) == (3, pb.INPUT_TYPE_QUERY, pb.TRUNCATION_LEFT)
    assert (request.max_tokens, request.sparse_top_k) == (9, 2)
    assert request.encoding == pb.VECTOR_ENCODING_FLOAT16


async def test_texts_that_are_too_long_are_refused_unless_told_otherwise(trivec: Trivec, script: Script) -> None:
    await trivec.run("embed", stdin=b"a")
    (request,) = script.requests
    assert isinstance(request, pb.EmbedRequest)
    assert (request.truncation, request.max_tokens) == (pb.TRUNCATION_ERROR, 0)


async def test_parquet_holds_the_arrays(trivec: Trivec, lines_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    run = await trivec.run("embed", str(lines_file), "--mode", "hybrid", "--format", "parquet", "--output", str(output))
    assert (run.code, run.out, run.err) == (0, "", "")
    table = pyarrow.parquet.read_table(output)
    assert str(table.schema.field("dense").type) == f"fixed_size_list<element: float>[{DIMENSION}]"
    assert table.schema.metadata[b"trivec.model"] == b"scripted"
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    for text, row in zip(TEXTS, rows, strict=True):
        np.testing.assert_array_equal(np.array(row["dense"], np.float32), dense_of(text))
        assert row["sparse"]["ids"] == list(weights_of(text))
        np.testing.assert_array_equal(np.array(row["multi_vector"], np.float32), rows_of(text))


async def test_the_outputs_name_chooses_the_format(trivec: Trivec, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    run = await trivec.run("embed", "--output", str(output), stdin=b"a\nb\n")
    assert (run.code, run.err) == (0, "")
    assert pyarrow.parquet.read_table(output).num_rows == 2


async def test_parquet_of_no_texts_has_its_columns(trivec: Trivec, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    run = await trivec.run("embed", "--format", "parquet", "--output", str(output))
    assert run.code == 0
    table = pyarrow.parquet.read_table(output)
    assert (table.num_rows, table.column_names) == (0, ["index", "id", "tokens", "truncated", "dense"])


async def test_parquet_without_pyarrow_names_the_extra(
    trivec: Trivec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    run = await trivec.run("embed", "--format", "parquet", "--output", str(tmp_path / "out"), stdin=b"a")
    assert (run.code, run.err) == (1, "error: Parquet needs pyarrow: pip install 'trivec[parquet]'\n")
    assert names(tmp_path) == []


async def test_an_output_file_appears_only_when_it_is_whole(trivec: Trivec, script: Script, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("what was there before")
    script.failures.extend([None, Failure(grpc.StatusCode.INTERNAL)])
    flags = ["--batch-size", "1", "--max-in-flight", "1", "--output", str(output)]
    run = await trivec.run("embed", *flags, stdin=b"a\nb\n")
    assert run.code == 1
    assert output.read_text() == "what was there before"
    assert names(tmp_path) == [output.name]
    run = await trivec.run("embed", *flags, stdin=b"a\nb\n")
    assert run.code == 0
    assert len(output.read_text().splitlines()) == 2
    assert names(tmp_path) == [output.name]


async def test_an_output_in_no_directory_is_one_line(trivec: Trivec, tmp_path: Path) -> None:
    output = tmp_path / "no" / "out.jsonl"
    run = await trivec.run("embed", "--output", str(output), stdin=b"a")
    assert (run.code, run.err) == (1, f"error: {output}: No such file or directory\n")


async def test_a_terminal_is_told_what_to_type(trivec: Trivec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stdin, "isatty", lambda _: True)
    run = await trivec.run("embed", stdin=b"a\n")
    assert (len(run.records), run.err) == (1, "one text a line; Ctrl-D ends\n")


async def test_progress_is_shown_when_asked_for(trivec: Trivec) -> None:
    run = await trivec.run("embed", "--progress", stdin=b"a\nb\n")
    assert "2 texts" in run.err
    run = await trivec.run("embed", stdin=b"a\nb\n")
    assert run.err == ""


async def test_score_prints_a_table(trivec: Trivec) -> None:
    run = await trivec.run("score", "--query", "what is it", "--passage", "it is this", "--passage", "a  long\tone")
    header, first, second = run.out.splitlines()
    assert header.split() == ["HYBRID", "DENSE", "SPARSE", "MULTI_VECTOR", "PASSAGE"]
    assert first.endswith("it is this")
    assert second.endswith("a long one")


async def test_score_reads_passages_from_lines_and_writes_json(trivec: Trivec, lines_file: Path) -> None:
    run = await trivec.run("score", "--query", "search", "--json", "--top-k", "2", str(lines_file))
    assert len(run.records) == 2
    assert run.records[0]["hybrid"] >= run.records[1]["hybrid"]
    assert run.records[0]["passage"] == TEXTS[run.records[0]["index"]]


async def test_score_passes_weights_on(trivec: Trivec, script: Script) -> None:
    await trivec.run("score", "--query", "q", "--weights", "1,0.5,0", stdin=b"a\n")
    (request,) = script.requests
    assert isinstance(request, pb.ScoreRequest)
    assert request.weights == pb.ScoreWeights(dense=1, sparse=0.5, multi_vector=0)


async def test_score_without_passages_says_how_to_give_them(trivec: Trivec) -> None:
    run = await trivec.run("score", "--query", "q")
    assert run.code == 1
    assert run.err.startswith("error: no passages: give --passage")


async def test_models_lists_those_that_failed_with_the_reason(trivec: Trivec) -> None:
    run = await trivec.run("models")
    header, broken, ready = run.out.splitlines()
    assert header.startswith("MODEL")
    assert broken.startswith("broken")
    assert broken.endswith("sparse_linear is missing")
    assert ready.split()[:3] == ["scripted", "1", "READY"]


async def test_models_as_json_says_all(trivec: Trivec) -> None:
    run = await trivec.run("models", "--json")
    assert run.records[1]["limits"]["max_texts_per_request"] == 100


@pytest.mark.parametrize(
    ("flags", "code", "out"), [([], 0, "SERVING\n"), (["--service", "broken"], 1, "NOT_SERVING\n")]
)
async def test_health_is_the_exit_code(trivec: Trivec, flags: list[str], code: int, out: str) -> None:
    run = await trivec.run("health", *flags)
    assert (run.code, run.out) == (code, out)


@pytest.mark.parametrize("command", ["health", "embed"])
async def test_no_server_is_one_line_that_names_it(trivec: Trivec, script: Script, command: str) -> None:
    async with serve(script) as gone:
        pass
    run = await trivec.run(command, stdin=b"a", target=gone)
    assert run.code == 1
    assert run.err.startswith(f"error: UNAVAILABLE: {gone}: ")
    assert run.err.endswith("is `trivec serve` running there?\n")
    assert run.err.count("\n") == 1


async def test_tls_options_reach_the_server(trivec: Trivec, script: Script, tmp_path: Path) -> None:
    async with serve(script, tls=True) as target:
        run = await trivec.run(
            "health", "--tls-ca", str(write_authority(tmp_path)), "--tls-server-name", TLS_NAME, target=target
        )
    assert (run.code, run.out) == (0, "SERVING\n")


async def test_a_missing_certificate_is_one_line(trivec: Trivec) -> None:
    run = await trivec.run("health", "--tls-ca", "no-such.pem")
    assert (run.code, run.err) == (1, "error: no-such.pem: No such file or directory\n")


async def test_metadata_are_sent(trivec: Trivec, script: Script) -> None:
    await trivec.run("embed", "--metadata", "Authorization=Bearer x", stdin=b"a")
    assert script.metadata[0]["authorization"] == "Bearer x"


async def test_options_are_read_from_the_environment(
    trivec: Trivec, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIVEC_MODE", "dense,sparse")
    monkeypatch.setenv("TRIVEC_INPUT_TYPE", "passage")
    run = await trivec.run("embed", stdin=b"a")
    assert "sparse" in run.records[0]
    assert script.requests[0].input_type == pb.INPUT_TYPE_PASSAGE  # type: ignore[attr-defined]


async def test_passages_in_the_environment_stand_on_lines(trivec: Trivec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVEC_PASSAGE", "a first one\na second one")
    run = await trivec.run("score", "--query", "q", "--json")
    assert [record["passage"] for record in run.records] == ["a first one", "a second one"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_every_option_is_also_an_environment_variable(command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.envvar == "TRIVEC_" + parameter.opts[0].removeprefix("--").replace("-", "_").upper()
            assert parameter.show_envvar


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "--mode", "spare"], "'spare' is none of dense, sparse, multi_vector, hybrid"),
        (["embed", "--format", "parquet"], "--format parquet needs --output FILE"),
        (["embed", "--format", "jsonl", "--output", "e.parquet"], "--format jsonl contradicts the name of --output"),
        (["embed", "--format", "parquet", "--output", "e.jsonl"], "--format parquet contradicts the name of --output"),
        (["health", "--target", "localhost"], "'localhost' is not host:port"),
        (["health", "--target", "http://localhost:8001"], "'http://localhost:8001' is not host:port"),
        (["embed", "no-such-file"], "No such file or directory"),
        (["embed", "--max-tokens", "1"], "1 is not in the range x>=2"),
        (["score", "--query", "q", "--weights", "a,b"], "expected three numbers with commas between"),
        (["health", "--metadata", "nothing"], "expected KEY=VALUE"),
    ],
)
async def test_a_wrong_command_line_exits_with_2(trivec: Trivec, arguments: list[str], message: str) -> None:
    run = await trivec.run(*arguments)
    assert run.code == 2
    assert run.err.startswith("error: ")
    assert message in run.err
    assert run.err.count("\n") == 1


async def start(*arguments: str, target: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trivec_server", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TRIVEC_TARGET": target},
    )


async def test_grpc_writes_no_lines_of_its_own(trivec: Trivec) -> None:
    process = await start("health", "--tls", target=trivec.target)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert err.startswith(b"error: UNAVAILABLE: ")
    assert err.endswith(b"; the server may speak plaintext: then connect without TLS\n")
    assert err.count(b"\n") == 1


async def test_ctrl_c_exits_with_130_and_leaves_no_file(trivec: Trivec, script: Script, tmp_path: Path) -> None:
    script.gate.clear()
    process = await start("embed", "--output", str(tmp_path / "out.jsonl"), target=trivec.target)
    communicated = asyncio.create_task(process.communicate(b"a\n"))
    await script.until_running(1)
    process.send_signal(signal.SIGINT)
    _, err = await communicated
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert names(tmp_path) == []
    await script.until_running(0)


async def test_a_reader_that_goes_away_is_no_traceback(trivec: Trivec) -> None:
    process = await start("embed", "--batch-size", "1", "--mode", "hybrid", target=trivec.target)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(b"a long enough text\n" * 2000)
    process.stdin.write_eof()
    await process.stdout.readline()
    process.stdout._transport.close()  # type: ignore[attr-defined]
    assert await process.stderr.read() == b""
    await process.wait()


@pytest.fixture(scope="module")
def mini_target(mini_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log_path = tmp_path_factory.mktemp("serve") / "log"
    with serving_process.serve(mini_repository, log_path=log_path) as server:
        yield server.target


def test_m3_mini_gives_all_three_parts_of_a_chinese_text(mini_target: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("人工智能\n", encoding="utf-8")
    finished = command_line.trivec("embed", path, "--mode", "hybrid", environment={"TRIVEC_TARGET": mini_target})
    assert (finished.code, finished.err) == (0, "")
    record = json.loads(finished.out)
    assert np.linalg.norm(record["dense"]) == pytest.approx(1, abs=1e-5)
    assert len(record["sparse"]["ids"]) == len(record["sparse"]["weights"]) > 0
    assert len(record["multi_vector"]) == record["tokens"] - 1


def test_m3_mini_finds_the_passage_that_answers(mini_target: str) -> None:
    passages = ("Bread is baked from flour and water.", "人工智能是计算机科学的一个分支。", "It rains in Lisbon.")
    flags = [argument for passage in passages for argument in ("--passage", passage)]
    finished = command_line.trivec(
        *("score", "--query", "什么是人工智能？", "--top-k", "1", "--json", *flags),
        environment={"TRIVEC_TARGET": mini_target},
    )
    assert json.loads(finished.out)["passage"] == passages[1]


def test_m3_mini_is_listed_as_a_demonstration(mini_target: str) -> None:
    finished = command_line.trivec("models", environment={"TRIVEC_TARGET": mini_target})
    assert finished.out.splitlines()[1].startswith("m3-mini")
    assert finished.out.rstrip().endswith("for demonstration")


def test_a_text_that_is_too_long_for_m3_mini_is_named_by_its_line(mini_target: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("short\n" + "long " * 600 + "\n", encoding="utf-8")
    finished = command_line.trivec("embed", path, environment={"TRIVEC_TARGET": mini_target})
    assert (finished.code, finished.out) == (1, "")
    assert finished.err.startswith(f"error: INVALID_ARGUMENT: {path}:2: has 602 tokens, more than the 512 allowed")


@pytest.fixture
async def pair(trivec: Trivec, script: Script) -> AsyncIterator[tuple[str, str, Script]]:
    """The targets of two servers, of which `trivec` calls the first by default, and the script of the second."""
    second = Script()
    async with serve(second) as target:
        yield trivec.target, target, second


@pytest.mark.parametrize("several", ["repeated", "with commas", "in the environment"])
async def test_embed_spreads_its_requests_over_several_targets(
    trivec: Trivec, script: Script, pair: tuple[str, str, Script], several: str
) -> None:
    one, two, second = pair
    flags = {
        "repeated": ["--target", one, "--target", two],
        "with commas": ["--target", f"{one},{two}"],
        "in the environment": [],
    }[several]
    # The one that is connected first gets requests until the other is too.
    for _ in range(20):
        stdin = b"\n".join(b"text %d" % number for number in range(40))
        run = await trivec.run("embed", *flags, "--batch-size", "1", stdin=stdin, target=f"{one},{two}")
        assert len(run.records) == 40
        if script.requests and second.requests:
            return
    pytest.fail("only one of two servers was called")


async def test_least_loaded_is_an_option(trivec: Trivec, pair: tuple[str, str, Script]) -> None:
    run = await trivec.run("embed", "--balancing", "least_loaded", stdin=b"a", target=f"{pair[0]} {pair[1]}")
    assert (run.code, len(run.records)) == (0, 1)


async def test_health_is_asked_of_each_of_several_targets(trivec: Trivec, pair: tuple[str, str, Script]) -> None:
    one, two, second = pair
    run = await trivec.run("health", target=f"{one},{two}")
    assert (run.code, run.out) == (0, f"{one} SERVING\n{two} SERVING\n")
    await second.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    run = await trivec.run("health", target=f"{one},{two}")
    assert (run.code, run.out) == (1, f"{one} SERVING\n{two} NOT_SERVING\n")


async def test_a_target_that_is_not_there_does_not_hide_the_others(trivec: Trivec) -> None:
    gone = Script()
    async with serve(gone) as target:
        pass
    run = await trivec.run("models", "--json", target=f"{target},{trivec.target}")
    assert run.code == 1
    assert run.err.startswith(f"error: UNAVAILABLE: {target}: ")
    assert [(record["target"], record["name"]) for record in run.records] == [
        (trivec.target, "broken"),
        (trivec.target, "scripted"),
    ]


async def test_models_of_several_targets_are_one_table(trivec: Trivec, pair: tuple[str, str, Script]) -> None:
    run = await trivec.run("models", target=f"{pair[0]},{pair[1]}")
    rows = [line.split() for line in run.out.splitlines()]
    assert [row[:2] for row in rows] == [
        ["TARGET", "MODEL"],
        *([target, model] for target in pair[:2] for model in ("broken", "scripted")),
    ]


@pytest.mark.parametrize("given", ["a file", "the environment"])
async def test_a_token_is_sent_and_stands_in_no_argument(
    trivec: Trivec, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    path = tmp_path / "token"
    path.write_text("of-the-file\n")
    if given == "the environment":
        monkeypatch.setenv("TRIVEC_TOKEN", "of-the-environment")
    flags = ["--token-file", str(path)] if given == "a file" else []
    run = await trivec.run("embed", *flags, stdin=b"a")
    assert run.code == 0
    assert script.metadata[0]["authorization"] == f"Bearer of-{given.replace('a file', 'the file').replace(' ', '-')}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n", "{path}: there is no token in it"),
        (b"t\xc3\xb6ken", "{path}: not ASCII at byte 1: a token is"),
        (b"to ken", "token: it is empty, or has characters that no token has, such as spaces or line breaks"),
        (None, "{path}: No such file or directory"),
    ],
)
async def test_a_token_file_that_cannot_be_right_is_refused(
    trivec: Trivec, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    run = await trivec.run("models", "--token-file", str(path))
    assert (run.code, run.err) == (1, f"error: {message.format(path=path)}\n")


async def test_a_token_does_not_travel_over_a_network_in_plain_text(
    trivec: Trivec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIVEC_TOKEN", "secret-token")
    run = await trivec.run("models", target="192.0.2.1:8001")
    assert run.code == 1
    assert run.err.startswith("error: token: it would travel to 192.0.2.1:8001 in plain text")
    assert "--allow-insecure-token" in run.err
    assert "secret-token" not in run.err
    run = await trivec.run("models", "--timeout-s", "0.01", "--allow-insecure-token", target="192.0.2.1:8001")
    assert "in plain text" not in run.err
