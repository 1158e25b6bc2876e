"""The options of `trivec serve` that say which models are loaded, and when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trivec_server.cli_options import MAX_SECONDS, Decorator, Seconds, option, options, switch
from trivec_server.settings import EVERY_MODEL, ControlMode, ServeSettings

_DEFAULTS = ServeSettings()


def repository_option(*, is_only: bool = True) -> Decorator:
    """`--model-repository`, for commands that work on the only one given, or on all."""
    text = "The model repository: <model>/config.pbtxt and <model>/<version>/."
    if not is_only:
        text += " May be repeated; in the environment variable several stand with `:` between them."
    return option(
        "--model-repository",
        text,
        type=click.Path(path_type=Path),
        multiple=True,
        default=_DEFAULTS.model_repositories,
        callback=_only_one if is_only else None,
    )


def _only_one(_context: click.Context, _parameter: click.Parameter, roots: tuple[Path, ...]) -> Path:
    if len(roots) > 1:
        raise click.BadParameter(f"this command works on one repository, not on {len(roots)}: name the one")
    return roots[0]


def repository_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `trivec serve` is told of the repositories, and of what is loaded from them."""
    return options(
        (
            repository_option(is_only=False),
            option(
                "--model-control-mode",
                "none: load what is there at the start. poll: also follow what changes in the repository. explicit: "
                "load and unload as RepositoryModelLoad and RepositoryModelUnload ask.",
                type=click.Choice([mode.value for mode in ControlMode]),
                default=_DEFAULTS.model_control_mode.value,
            ),
            option(
                "--load-model",
                "Load only this model; with `explicit` at the start, where none is otherwise. May be repeated; `*` "
                "alone is every model.",
                multiple=True,
            ),
            option(
                "--repository-poll-secs",
                "Seconds between two looks at the repository.",
                type=Seconds(0, MAX_SECONDS, min_open=True),
                default=_DEFAULTS.repository_poll_s,
            ),
            option(
                "--repository-stability-secs",
                "With `poll`: what has changed is loaded once it has looked the same for so many seconds; until then "
                "it may still be being written.",
                type=Seconds(0, MAX_SECONDS),
                default=_DEFAULTS.repository_stability_s,
            ),
            switch(
                "--strict-readiness",
                "ServerReady only while every model that is to be served has a version that serves; else as soon as "
                "the first loading is over.",
                default=_DEFAULTS.strict_readiness,
            ),
            switch(
                "--exit-on-error",
                "End with exit code 1 if a model cannot be served at the start. Off, unlike Triton's: the server stays "
                "up, serves the others and tells why.",
                default=_DEFAULTS.exit_on_error,
            ),
        )
    )(command)


def repository_settings(given: dict[str, Any]) -> dict[str, Any]:
    """
    The settings that `repository_options` stand for, taken out of `given`.

    Raises:
        click.BadParameter: they exclude each other.
    """
    roots, names = given.pop("model_repository"), given.pop("load_model")
    if len({root.resolve() for root in roots}) < len(roots):
        raise click.BadParameter("names the same directory twice", param_hint="--model-repository")
    if EVERY_MODEL in names and len(names) > 1:
        raise click.BadParameter("`*` is every model: give no other name beside it", param_hint="--load-model")
    return {
        "model_repositories": roots,
        "model_control_mode": ControlMode(given.pop("model_control_mode")),
        "load_models": names,
        "repository_poll_s": given.pop("repository_poll_secs"),
        "repository_stability_s": given.pop("repository_stability_secs"),
        "strict_readiness": given.pop("strict_readiness"),
        "exit_on_error": given.pop("exit_on_error"),
    }
