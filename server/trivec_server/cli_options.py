"""Options that commands share, each also an environment variable, and the client that the connection options make."""

import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, get_args

import click
from trivec_client import DEFAULT_TARGET, Balancing, MissingExtraError, Tls, TrivecClient, TrivecClientError
from trivec_client.channel import ChannelOption
from trivec_client.requests import TruncationName
from trivec_client.targets import Targets, split_targets

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


def _parse_targets(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return Targets.parse([name for text in given for name in split_targets(text)]).names
    except ValueError as error:
        raise click.BadParameter(str(error).removeprefix("target: ")) from None


CONNECTION_OPTIONS = (
    option(
        "--target",
        "The server, as host:port. May be repeated, or hold several with commas between: a cluster.",
        multiple=True,
        default=(DEFAULT_TARGET,),
        callback=_parse_targets,
    ),
    option(
        "--balancing",
        "How the servers of a cluster share requests. [default: round_robin]",
        type=click.Choice(get_args(Balancing)),
    ),
    option("--timeout-s", "Seconds for a request, its retries included.", type=click.FloatRange(min=0, min_open=True)),
    option("--tls", "Use TLS.", is_flag=True),
    option(
        "--tls-ca", "PEM file of the certificate authorities to trust; implies --tls.", type=click.Path(path_type=Path)
    ),
    option("--tls-cert", "PEM file of the client's certificate; implies --tls.", type=click.Path(path_type=Path)),
    option("--tls-key", "PEM file of its private key.", type=click.Path(path_type=Path)),
    option("--tls-server-name", "The name in the server's certificate, if not the target's host; implies --tls."),
    option(
        "--token-file",
        "File with the token to send with every request; without it, the variable TRIVEC_TOKEN, if there is one.",
        type=click.Path(path_type=Path),
    ),
    option("--allow-insecure-token", "Send the token in plain text, also over a network.", is_flag=True),
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
        with _failing_in_one_line(), _connect(given, given["target"]) as client:
            return command(client, **_of_command(given))

    return run


def connected_to_each(command: Callable[..., int]) -> Callable[..., int]:
    """As `connected`, but gives a list of clients, one for each target, with the target in front."""

    @functools.wraps(command)
    def run(**given: Any) -> int:
        with _failing_in_one_line(), ExitStack() as clients:
            alone = {**given, "balancing": None}
            each = [(name, clients.enter_context(_connect(alone, (name,), _UNCHECKED))) for name in given["target"]]
            return command(each, **_of_command(given))

    return run


@contextmanager
def _failing_in_one_line() -> Iterator[None]:
    try:
        yield
    except (TrivecClientError, MissingExtraError, ValueError) as error:
        raise CommandError(one_line(error)) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


def one_line(error: Exception) -> str:
    """The error's message without line breaks."""
    return " ".join(str(error).split())


_OF_CONNECTION = (
    *("target", "balancing", "timeout_s", "tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "metadata"),
    *("token_file", "allow_insecure_token", "model", "model_version", "wire_encoding", "batch_size", "max_in_flight"),
)
"""The options that make a client; the command does not see them."""


def _of_command(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in _OF_CONNECTION}


_UNCHECKED: tuple[ChannelOption, ...] = (("grpc.inhibit_health_checking", 1),)
"""Also a server that is not serving is asked."""


def _connect(given: dict[str, Any], targets: tuple[str, ...], channel: tuple[ChannelOption, ...] = ()) -> TrivecClient:
    """A client from the options."""
    files = {
        "ca_file": given["tls_ca"],
        "certificate_file": given["tls_cert"],
        "key_file": given["tls_key"],
    }
    server_name = given["tls_server_name"]
    wanted = given["tls"] or server_name or any(files.values())
    pairs = [entry.partition("=") for entry in given["metadata"]]
    if any(not key or not separator for key, separator, _ in pairs):
        raise click.BadParameter("expected KEY=VALUE", param_hint="--metadata")
    return TrivecClient(
        targets if len(targets) > 1 else targets[0],
        balancing=given["balancing"],
        model=given.get("model", ""),
        model_version=given.get("model_version") or 0,
        timeout_s=given["timeout_s"],
        metadata=[(key.lower(), value) for key, _, value in pairs],
        token=_read_token(given["token_file"]),
        allow_insecure_token=given["allow_insecure_token"],
        tls=Tls(**files, server_name=server_name) if wanted else None,
        wire_encoding=given.get("wire_encoding", "float32"),
        batch_size=given.get("batch_size", 64),
        max_in_flight=given.get("max_in_flight", 4),
        options=channel,
    )


def _read_token(path: Path | None) -> str | None:
    """The token of the file, or of the environment: an option would show it to all on the machine."""
    if path is None:
        return os.environ.get("TRIVEC_TOKEN") or None
    try:
        token = path.read_text(encoding="ascii").strip()
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: not ASCII at byte {error.start}: a token is") from None
    if not token:
        raise CommandError(f"{path}: there is no token in it")
    return token
