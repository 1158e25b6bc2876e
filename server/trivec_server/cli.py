"""The command line: arguments and `TRIVEC_*` variables to settings, and one call per command."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from trivec_server import cli_client
from trivec_server.cli_cache import cache_settings
from trivec_server.cli_doctor import doctor
from trivec_server.cli_limits import limit_options, limits_given
from trivec_server.cli_network import network_options, network_settings
from trivec_server.cli_options import Line, option
from trivec_server.cli_repository import repository_option, repository_options, repository_settings
from trivec_server.cli_security import security_options, security_settings
from trivec_server.cli_token import token
from trivec_server.cli_tracing import tracing_options, tracing_settings
from trivec_server.errors import CommandError, TrivecError
from trivec_server.settings import LOG_FORMATS, LOG_LEVELS, ServeSettings

_INTERRUPTED_EXIT_CODE = 130
_DEFAULTS = ServeSettings()


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code. A fault of the user or of the surroundings is one line on stderr."""
    try:
        code = cli.main(list(arguments), prog_name="trivec", standalone_mode=False)
    except click.Abort:
        return _INTERRUPTED_EXIT_CODE
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see `{error.ctx.command_path} --help`)"
        click.echo(f"error: {error.format_message()}{hint}", err=True)
        return error.exit_code
    except TrivecError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    return code if isinstance(code, int) else 0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("trivec"), message="trivec %(version)s")
def cli() -> None:
    """
    BGE-M3's three embeddings over gRPC: dense, sparse and multi-vector from one forward pass.

    Every option can also be set by the environment variable shown beside it.
    """


@cli.command()
@repository_options
@option("--default-model", "The model of requests that name none. [default: the only model]")
@network_options
@security_options
@limit_options
@option(
    "--cache-config",
    "Where models with response_cache keep embeddings: `local,size=BYTES`, or `redis,KEY=VALUE` once for each of host, "
    "port, user, password, db, ttl, tls, ca. Redis's password is better set by TRIVEC_CACHE_REDIS_PASSWORD.",
    multiple=True,
    type=Line(),
)
@option(
    "--allow-client-shm",
    "Let clients of KServe v2 on this machine pass tensors in system shared memory. Every client of the port can then "
    "read and write all that the server's user can in /dev/shm.",
    type=bool,
    is_flag=False,
    flag_value="true",
    default=_DEFAULTS.allow_client_shm,
)
@tracing_options
@option("--log-level", "What to log.", type=click.Choice(LOG_LEVELS), default=_DEFAULTS.log_level)
@option("--log-format", "How to log.", type=click.Choice(LOG_FORMATS), default=_DEFAULTS.log_format)
def serve(**given: Any) -> None:
    """Serve the models of a repository over gRPC."""
    settings = ServeSettings(
        limits=limits_given(given),
        cache=cache_settings(given.pop("cache_config")),
        tracing=tracing_settings(given),
        **network_settings(given),
        **security_settings(given),
        **repository_settings(given),
        **given,
    )
    if settings.limits.max_response_bytes < 2 * settings.limits.max_chunk_bytes:
        raise CommandError("--max-response-bytes must be at least twice --max-chunk-bytes, for a chunk to fit into it")
    try:
        from trivec_server.logs import configure_logs  # noqa: PLC0415 - the client commands do without these packages

        configure_logs(settings.log_level, settings.log_format, logs_texts=settings.log_texts)
        from trivec_server import lifecycle  # noqa: PLC0415 - the same
        from trivec_server.greeting import greet  # noqa: PLC0415 - the same
    except ModuleNotFoundError as error:
        raise CommandError(f"`trivec serve` needs the package {error.name}: pip install 'trivec[server]'") from error
    lifecycle.serve(settings, on_loaded=lambda started: _print(greet(started)))


def _print(text: str) -> None:
    """Prints for whoever reads: a server serves on where nobody does."""
    try:
        click.echo(text)
    except OSError:
        # Else Python would try again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cli.command()
@click.argument("source")
@repository_option()
@option("--name", "The model's name in the repository. [default: the last part of SOURCE]")
@option("--model-version", "The version to write. [default: the next free one]", type=click.IntRange(min=1))
@option("--revision", "The hub's commit, tag or branch. Pin a commit in production.")
@option(
    "--precision",
    "How the weights are stored; arithmetic on the CPU is float32. [default: float32; of m3-mini float16]",
    type=click.Choice(["float32", "float16"]),
)
def pull(
    source: str,
    model_repository: Path,
    name: str | None,
    model_version: int | None,
    revision: str | None,
    precision: str | None,
) -> None:
    """
    Add a model to the repository.

    SOURCE is `m3-mini` (a small demonstration model, no download), a Hugging Face repository of a BGE-M3-shaped model
    such as `BAAI/bge-m3`, or a local directory of one. HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and HF_TOKEN are honoured.

    A version whose content is there already is not written again, nor is a config.pbtxt that exists. While another
    process makes a version of the model there, on this or another host, it waits.
    """
    try:
        from trivec_server.repository.pull import pull as pull_model  # noqa: PLC0415 - needs the server's packages
    except ModuleNotFoundError as error:
        raise CommandError(f"`trivec pull` needs the package {error.name}: pip install 'trivec[server]'") from error
    pull_model(
        source,
        model_repository,
        name=name,
        version=model_version,
        revision=revision,
        precision=precision,
        report=lambda line: click.echo(line, file=sys.stderr),
    )


_PRECISION_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@cli.command()
@click.argument("model")
@repository_option()
@option(
    "--engine",
    "The engine to make files for.",
    type=click.Choice(["onnxruntime", "openvino", "pytorch"]),
    required=True,
)
@option(
    "--precision",
    "The arithmetic: float32 (fp32), float16 (fp16), bfloat16 (bf16) or int8, as far as the engine has it.",
    type=click.Choice(["float32", "float16", "bfloat16", "int8", *_PRECISION_NAMES]),
)
@option(
    "--model-version", "The version to make it from. [default: the newest that was pulled]", type=click.IntRange(min=1)
)
def export(model: str, model_repository: Path, engine: str, precision: str | None, model_version: int | None) -> None:
    """
    Make a new version of MODEL for one engine.

    The new version is compared with the one that it is made from, and its manifest.json holds the report. With
    `backend: "auto"` in config.pbtxt the server runs it on that engine.
    """
    try:
        from trivec_server.repository.export import export_version  # noqa: PLC0415 - needs the server's packages
    except ModuleNotFoundError as error:
        raise CommandError(f"`trivec export` needs the package {error.name}: pip install 'trivec[server]'") from error
    export_version(
        model_repository,
        model,
        engine,
        precision=_PRECISION_NAMES.get(precision or "", precision),
        base_version=model_version,
        report=lambda line: click.echo(line, file=sys.stderr),
    )


for _command in (*cli_client.COMMANDS, doctor, token):
    cli.add_command(_command)
