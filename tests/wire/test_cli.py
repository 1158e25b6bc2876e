"""The command line as its users meet it: help, variables, and errors on one line."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from trivec_server.cli import cli

from tests.command_line import Finished, trivec

COMMANDS = ("serve", "pull", "export", "embed", "score", "models", "health", "doctor", "token")


def every_option() -> Iterator[tuple[str, click.Option]]:
    for name, command in cli.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield name, parameter


def options_of(command: str) -> dict[str, click.Option]:
    return {option.opts[0]: option for name, option in every_option() if name == command}


def error_line(done: Finished) -> str:
    """The one line that a command printed before it failed."""
    assert done.code != 0
    assert done.out == ""
    (line,) = done.err.splitlines()
    return line


def test_help_lists_every_command() -> None:
    done = trivec("--help")
    assert done.code == 0
    listed = re.findall(r"^  (\w+)  ", done.out.partition("Commands:")[2], re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_explained_with_its_variable(command: str) -> None:
    done = trivec(command, "--help", environment={"COLUMNS": "100"})
    assert done.code == 0
    for flag, option in options_of(command).items():
        assert flag in done.out
        assert option.help
        assert isinstance(option.envvar, str)
        assert option.envvar in "".join(done.out.split())


@pytest.mark.parametrize("flag", ["--max-stream-requests", "--max-stream-result-bytes"])
def test_a_limit_of_streams_names_both_kinds_of_stream(flag: str) -> None:
    told = str(options_of("serve")[flag].help)
    assert "EmbedStream" in told
    assert "ModelStreamInfer" in told


def test_client_shared_memory_is_said_to_open_all_of_it() -> None:
    assert "/dev/shm" in str(options_of("serve")["--allow-client-shm"].help)  # noqa: S108 - the text of a help


def test_every_flag_is_a_variable_of_its_name() -> None:
    for command, option in every_option():
        name = option.opts[0].removeprefix("--").replace("-", "_").upper()
        assert option.envvar == f"TRIVEC_{name}", command


def test_no_flag_has_two_meanings_in_commands_that_share_its_variable() -> None:
    types: dict[str, set[str]] = {}
    for _, option in every_option():
        types.setdefault(str(option.envvar), set()).add(f"{option.type.name} {option.is_flag} {option.multiple}")
    assert {name: found for name, found in types.items() if len(found) > 1} == {}


def test_version_is_that_of_the_package() -> None:
    done = trivec("--version")
    assert done.code == 0
    assert re.fullmatch(r"trivec \d+\.\d+\.\d+\n", done.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serv"], "No such command 'serv'"),
        (["serve", "--grpc-prot", "1"], "No such option"),
        (["serve", "--grpc-port", "eight"], "Invalid value for '--grpc-port'"),
        (["serve", "--grpc-port", "65536"], "65536 is not in the range 0<=x<=65535"),
        (["serve", "--log-level", "loud"], "'loud' is not one of"),
        (["serve", "--max-texts-per-request", "0"], "0 is not in the range 1<=x<=2147483647"),
        (["pull"], "Missing argument 'SOURCE'"),
        (["pull", "m3-mini", "--model-version", "0"], "0 is not in the range x>=1"),
    ],
)
def test_a_wrong_argument_is_named_on_one_line(arguments: list[str], message: str) -> None:
    line = error_line(trivec(*arguments))
    assert line.startswith("error: ")
    assert message in line


def test_a_wrong_variable_is_named_on_one_line() -> None:
    line = error_line(trivec("serve", environment={"TRIVEC_GRPC_PORT": "eight"}))
    assert "TRIVEC_GRPC_PORT" in line
    assert "'eight'" in line


def test_a_flag_goes_before_its_variable(tmp_path: Path) -> None:
    environment = {"TRIVEC_MODEL_REPOSITORY": str(tmp_path / "by-variable")}
    assert "by-variable does not exist" in error_line(trivec("serve", environment=environment))
    done = trivec("serve", "--model-repository", tmp_path / "by-flag", environment=environment)
    assert "by-flag does not exist" in error_line(done)


def test_serve_names_a_repository_that_is_not_there(tmp_path: Path) -> None:
    line = error_line(trivec("serve", "--model-repository", tmp_path / "nowhere"))
    assert line.startswith(f"error: model repository {tmp_path / 'nowhere'} does not exist; `trivec pull m3-mini` ")


def test_serve_names_an_empty_repository(tmp_path: Path) -> None:
    assert f"{tmp_path} holds no model" in error_line(trivec("serve", "--model-repository", tmp_path))


def test_serve_names_a_model_to_load_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    line = error_line(trivec("serve", "--model-repository", tmp_path, "--load-model", "mine"))
    assert "model `mine` is not in" in line
    assert "models there: other" in line


def test_pull_names_a_source_that_is_none(tmp_path: Path) -> None:
    line = error_line(trivec("pull", "no/such/thing", "--model-repository", tmp_path))
    assert line.startswith("error: no/such/thing is not m3-mini, a directory, or the name of a hub repository")


def test_pull_names_a_repository_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = trivec("pull", "m3-mini", "--model-repository", tmp_path / "file")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert str(tmp_path / "file") in done.err.splitlines()[-1]
