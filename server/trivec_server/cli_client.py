"""The commands that call a server. They are built on the client library, as users' programs are."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, BinaryIO, TypeAlias, TypeVar

import click
from trivec_client import ModelInfo, ServingStatus, TrivecClient, TrivecClientError
from trivec_client.records import read_lines

from trivec_server.cli_embed import embed
from trivec_server.cli_options import (
    CONNECTION_OPTIONS,
    MODEL_OPTIONS,
    Line,
    connected,
    connected_to_each,
    one_line,
    option,
    options,
)
from trivec_server.errors import CommandError

Clients: TypeAlias = list[tuple[str, TrivecClient]]
"""One for each target."""
Answer = TypeVar("Answer")


def _parse_weights(_context: click.Context, _parameter: click.Parameter, given: str | None) -> tuple[float, ...] | None:
    try:
        return None if given is None else tuple(float(weight) for weight in given.split(","))
    except ValueError:
        raise click.BadParameter("expected three numbers with commas between") from None


@click.command()
@click.argument("file", type=click.File("rb"), required=False)
@option("--query", "The query.", required=True)
@option("--passage", "A passage. May be repeated; without it, FILE or standard input.", multiple=True, type=Line())
@option(
    "--weights",
    "DENSE,SPARSE,MULTI_VECTOR: the factors of the weighted sums. [default: the model's]",
    callback=_parse_weights,
)
@option("--top-k", "Only so many passages, best first; 0: all, in order.", type=click.IntRange(min=0), default=0)
@option("--json", "Write JSON Lines.", is_flag=True)
@options(MODEL_OPTIONS, CONNECTION_OPTIONS)
@connected
def score(client: TrivecClient, **given: Any) -> int:
    """Score passages against a query: those of --passage, or each line of FILE or of standard input."""
    if given["passage"] and given["file"]:
        raise click.UsageError("--passage and FILE exclude each other")
    file: BinaryIO = given["file"] or sys.stdin.buffer
    passages = list(given["passage"]) or [record.text for record in read_lines(file, file.name)]
    if not passages:
        raise CommandError("no passages: give --passage, or lines in FILE or on standard input")
    scores = client.score(
        given["query"],
        passages,
        weights=given["weights"],
        top_k=given["top_k"],
        max_length=given["max_tokens"] or 0,
        truncation=given["truncation"],
    )
    if given["json"]:
        for each in scores:
            click.echo(json.dumps({**asdict(each), "passage": passages[each.index]}, ensure_ascii=False))
        return 0
    rows = [
        (
            *(f"{number:.4f}" for number in (each.hybrid, each.dense, each.sparse, each.multi_vector)),
            " ".join(passages[each.index].split()),
        )
        for each in scores
    ]
    _print_table(("HYBRID", "DENSE", "SPARSE", "MULTI_VECTOR", "PASSAGE"), rows)
    return 0


@click.command()
@option("--json", "Write JSON Lines, with all there is to know.", is_flag=True)
@options(CONNECTION_OPTIONS)
@connected_to_each
def models(clients: Clients, **given: Any) -> int:
    """List the models that the server knows, or each of several, also those that failed to load, with the reason."""
    described, unreached = _ask_each(clients, lambda client: client.list_models())
    several = len(clients) > 1
    if given["json"]:
        for target, models_there in described:
            for model in models_there:
                server = {"target": target} if several else {}
                click.echo(json.dumps({**server, **asdict(model)}, ensure_ascii=False))
        return unreached
    header = ("MODEL", "VERSION", "STATE", "ENGINE", "DEVICE", "PRECISION", "DIMENSIONS", "MAX_TOKENS", "MODES", "NOTE")
    rows = [
        ((target,) if several else ()) + _model_row(model)
        for target, models_there in described
        for model in models_there
    ]
    _print_table((("TARGET",) if several else ()) + header, rows)
    return unreached


def _ask_each(clients: Clients, ask: Callable[[TrivecClient], Answer]) -> tuple[list[tuple[str, Answer]], int]:
    """The answers, and the exit code: of several servers, one that fails is told of, and the others asked."""
    if len(clients) == 1:
        return [(target, ask(client)) for target, client in clients], 0
    answers: list[tuple[str, Answer]] = []
    for target, client in clients:
        try:
            answers.append((target, ask(client)))
        except TrivecClientError as error:
            click.echo(f"error: {one_line(error)}", err=True)
    return answers, int(len(answers) < len(clients))


def _model_row(model: ModelInfo) -> tuple[str, ...]:
    # Of a version that is not loaded nothing is known but why; one that takes tensors has no dimensions and modes.
    has_dimensions = bool(model.dense_dimension)
    return (
        model.name,
        str(model.version) if model.version else "-",
        model.state,
        model.engine or "-",
        model.device or "-",
        model.precision or "-",
        f"{model.dense_dimension}/{model.multi_vector_dimension}" if has_dimensions else "-",
        str(model.limits.max_tokens) if has_dimensions else "-",
        ",".join(model.modes) or "-",
        "; ".join(filter(None, (model.state_reason, "for demonstration" if model.demonstration else "", *model.notes))),
    )


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell; the last is not padded."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)][:-1]
    for row in (header, *rows):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*padded, row[-1]]).rstrip())


@click.command()
@option(
    "--service",
    "What to ask about: empty for the server, trivec.v1.EmbeddingService, or a model's name.",
    default="",
    show_default=False,
)
@options(CONNECTION_OPTIONS)
@connected_to_each
def health(clients: Clients, **given: Any) -> int:
    """Ask the server's health service, or that of each of several; the exit code is 0 if all are SERVING."""
    statuses, unreached = _ask_each(clients, lambda client: client.health(given["service"]))
    for target, status in statuses:
        click.echo(f"{target} {status.name}" if len(clients) > 1 else status.name)
    return unreached or int(any(status is not ServingStatus.SERVING for _, status in statuses))


COMMANDS: list[click.Command] = [embed, score, models, health]
"""The commands, for the command line to add."""
