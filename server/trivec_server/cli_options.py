"""Options that commands share, each also an environment variable, and the client that the connection options make."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, get_args

import click
from trivec_client import DEFAULT_TARGET, MissingExtraError, Tls, TrivecClient, TrivecClientError
from trivec_client.requests import TruncationName
from trivec_client.targets import Targets

from trivec_server.errors import CommandError

MAX_SECONDS = 7 * 24 * 3600
"""The longest duration that an option takes."""

_Command = Callable[..., Any]
Decorator = Callable[[_Command], _Command]


class Line(click.types.StringParamType):
    """A string with spaces in it: several of them in one environment variable stand on lines of their own."""

    envvar_list_splitter: ClassVar[str] = "\n"


class Seconds(click.FloatRange):
    """A duration; "nan" is a float to Python, but not a duration."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, if it is one."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("nan is not a number of seconds", param, ctx)
        return number


def option(flag: str, text: str, **settings: Any) -> Decorator:
    """An option with its environment variable: `--max-tokens` is `TRIVEC_MAX_TOKENS`."""
    variable = "TRIVEC_" + flag.split("/", maxsplit=1)[0].removeprefix("--").replace("-", "_").upper()
    if "default" in settings:
        settings.setdefault("show_default", True)
    return click.option(flag, help=text, envvar=variable, show_envvar=True, **settings)


class _Switch(click.Option):
    """Takes a value as Triton's flags do, or none; with `--no-` in front it is false."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """As for any option, and once more."""
        super().add_to_parser(parser, ctx)
        negations = [f"--no-{flag.removeprefix('--')}" for flag in self.opts]
        parser.add_option(self, negations, self.name, action="store_const", const="false")


def switch(flag: str, text: str, *, default: bool) -> Decorator:
    """An option that is on or off: `--x`, `--x=true`, `--no-x`, `--x=false`."""
    text += f" `--no-{flag.removeprefix('--')}`: not."
    return option(flag, text, cls=_Switch, type=bool, is_flag=False, flag_value="true", default=default)


def _parse_target(_context: click.Context, _parameter: click.Parameter, target: str) -> str:
    try:
        Targets.parse(target)
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("target: ")) from None
    return target


CONNECTION_OPTIONS = (
    option("--target", "The server, as host:port.", default=DEFAULT_TARGET, callback=_parse_target),
    option("--timeout-s", "Seconds for a request, its retries included.", type=click.FloatRange(min=0, min_open=True)),
    option("--tls", "Use TLS.", is_flag=True),
    option(
        "--tls-ca", "PEM file of the certificate authorities to trust; implies --tls.", type=click.Path(path_type=Path)
    ),
    option("--tls-cert", "PEM file of the client's certificate; implies --tls.", type=click.Path(path_type=Path)),
    option("--tls-key", "PEM file of its private key.", type=click.Path(path_type=Path)),
    option("--tls-server-name", "The name in the server's certificate, if not the target's host; implies --tls."),
    option("--metadata", "KEY=VALUE to send with every request. May be repeated.", multiple=True, type=Line()),
)
MODEL_OPTIONS = (
    option("--model", "The model's name. [default: the server's only or default one]", default="", show_default=False),
    option("--model-version", "Its version. [default: the newest that is ready]", type=click.IntRange(min=1)),
    option(
        "--truncation",
        "What to do with texts that are too long: refuse, or cut off on one side.",
        type=click.Choice(get_args(TruncationName)),
        default="error",
    ),
    option(
        "--max-tokens",
        "Tokens per text, at most. [default: the model's limit]",
        type=click.IntRange(min=2),
        default=None,
    ),
)


def options(*groups: tuple[Decorator, ...]) -> Decorator:
    """All options of some groups, in order."""

    def decorate(command: _Command) -> _Command:
        for add in reversed([add for group in groups for add in group]):
            command = add(command)
        return command

    return decorate


def connected(command: Callable[..., int]) -> Callable[..., int]:
    """Gives the command a client made from the connection options, and turns what fails into a CommandError."""

    @functools.wraps(command)
    def run(**given: Any) -> int:
        try:
            with _connect(given) as client:
                return command(client, **given)
        except (TrivecClientError, MissingExtraError, ValueError) as error:
            raise CommandError(one_line(error)) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error

    return run


def one_line(error: Exception) -> str:
    """The error's message without line breaks."""
    return " ".join(str(error).split())


def _connect(given: dict[str, Any]) -> TrivecClient:
    """A client from the options, which it takes out of `given`."""
    files = {
        "ca_file": given.pop("tls_ca"),
        "certificate_file": given.pop("tls_cert"),
        "key_file": given.pop("tls_key"),
    }
    server_name = given.pop("tls_server_name")
    wanted = given.pop("tls") or server_name or any(files.values())
    pairs = [entry.partition("=") for entry in given.pop("metadata")]
    if any(not key or not separator for key, separator, _ in pairs):
        raise click.BadParameter("expected KEY=VALUE", param_hint="--metadata")
    return TrivecClient(
        given.pop("target"),
        model=given.pop("model", ""),
        model_version=given.pop("model_version", None) or 0,
        timeout_s=given.pop("timeout_s"),
        metadata=[(key.lower(), value) for key, _, value in pairs],
        tls=Tls(**files, server_name=server_name) if wanted else None,
        wire_encoding=given.pop("wire_encoding", "float32"),
        batch_size=given.pop("batch_size", 64),
        max_in_flight=given.pop("max_in_flight", 4),
    )
