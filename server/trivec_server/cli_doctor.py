"""`trivec doctor`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from trivec_server.cli_cache import PASSWORD_VARIABLES, USERNAME_VARIABLES
from trivec_server.cli_options import option
from trivec_server.cli_repository import repository_option
from trivec_server.cli_security import access_options, access_settings
from trivec_server.errors import CommandError
from trivec_server.settings import ServeSettings

_DEFAULTS = ServeSettings()


@click.command()
@repository_option(is_only=False)
@option("--load-model", "Only this model would be served. May be repeated.", multiple=True)
@option("--default-model", "The model of requests that name none.")
@option("--host", "The address to listen on.", default=_DEFAULTS.host)
@option("--grpc-port", "The gRPC port.", type=click.IntRange(0, 65535), default=_DEFAULTS.grpc_port)
@option("--metrics-host", "The address of the metrics endpoint.", default=_DEFAULTS.metrics_host)
@option("--metrics-port", "Its port; -1: none.", type=click.IntRange(-1, 65535), default=_DEFAULTS.metrics_port)
@access_options
@option("--load", "Load each model, too, and run its self-check.", is_flag=True)
@option("--json", "Write one JSON object.", is_flag=True)
@click.pass_context
def doctor(
    context: click.Context,
    /,
    model_repository: tuple[Path, ...],
    load_model: tuple[str, ...],
    default_model: str | None,
    host: str,
    grpc_port: int,
    metrics_host: str,
    metrics_port: int,
    *,
    load: bool,
    json: bool,
    **given: Any,
) -> int:
    """
    Check what `trivec serve` needs, and print for each thing that is wrong the command that mends it.

    Give it the options of `trivec serve`. The exit code is 1 if the server would not start, or
    no model would be ready.
    """
    try:
        from trivec_server.doctor.examination import examine  # noqa: PLC0415 - see below
        from trivec_server.doctor.finding import fails, render_json, render_text  # noqa: PLC0415 - the same
        from trivec_server.doctor.variables import Variables  # noqa: PLC0415 - the same
    except ModuleNotFoundError as error:
        raise CommandError(f"`trivec doctor` needs the package {error.name}: pip install 'trivec[server]'") from error
    settings = ServeSettings(
        model_repositories=model_repository,
        load_models=load_model,
        default_model=default_model,
        host=host,
        grpc_port=grpc_port,
        metrics_host=metrics_host,
        metrics_port=None if metrics_port < 0 else metrics_port,
        **access_settings(given),
        **given,
    )
    commands = _commands(context)
    variables = Variables(
        known=frozenset(name for command in commands.values() for name in _variables(command)).union(
            USERNAME_VARIABLES, PASSWORD_VARIABLES
        ),
        faults=tuple(_faults(commands["serve"], given=frozenset(_variables(context.command)))),
    )
    findings = examine(settings, variables, load=load)
    click.echo(render_json(findings) if json else render_text(findings))
    return 1 if fails(findings) else 0


def _commands(context: click.Context) -> Mapping[str, click.Command]:
    group = context.find_root().command
    return group.commands if isinstance(group, click.Group) else {}


def _variables(command: click.Command) -> dict[str, click.Parameter]:
    return {parameter.envvar: parameter for parameter in command.params if isinstance(parameter.envvar, str)}


def _faults(serve: click.Command, *, given: frozenset[str]) -> list[tuple[str, str]]:
    """The variables that `trivec serve` would refuse, but for those that this command has read itself."""
    context = click.Context(serve, info_name="serve")
    faults = []
    for name, parameter in _variables(serve).items():
        if name in given:
            continue
        try:
            parameter.process_value(context, parameter.value_from_envvar(context))
        except click.BadParameter as error:
            faults.append((name, error.message))
    return faults
