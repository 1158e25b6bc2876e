"""The command `embed`: texts from a file or standard input to embeddings in a file or on standard output."""

import importlib.util
import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, get_args

import click
from trivec_client import TrivecClient, TrivecClientError, WireEncoding
from trivec_client.parquet import ParquetWriter
from trivec_client.records import JsonlWriter, RecordWriter, TextRecord, read_jsonl, read_lines
from trivec_client.requests import MODES, InputTypeName, ModeName

from trivec_server.cli_options import CONNECTION_OPTIONS, MODEL_OPTIONS, connected, one_line, option, options
from trivec_server.errors import CommandError

_JSONL_SUFFIXES = {".jsonl", ".ndjson"}
_TEXT_INDEX = re.compile(r"\b(?:sentences|texts)\[(\d+)\]")


def _parse_modes(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[ModeName, ...]:
    """Modes given one by one or with commas between, in their usual order."""
    names = {name.strip().replace("-", "_") for value in values for name in value.split(",")}
    unknown = sorted(names - MODES.keys() - {"hybrid"})
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(MODES)}, hybrid")
    return tuple(mode for mode in MODES if mode in names or "hybrid" in names)


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@option(
    "--mode",
    "dense, sparse, multi_vector, or hybrid for all three. May be repeated, or hold several with commas between.",
    multiple=True,
    default=("dense",),
    callback=_parse_modes,
)
@option(
    "--input-type",
    "What the texts are for: selects the model's prefix.",
    type=click.Choice(get_args(InputTypeName)),
    default="none",
)
@option(
    "--input-format",
    "lines: each line is a text. jsonl: each is a JSON object. [default: by the file's name, else lines]",
    type=click.Choice(["lines", "jsonl"]),
)
@option("--text-field", "The field of a JSON object that holds the text.", default="text")
@option("--output", "The file to write, which appears when it is whole; - is standard output.", default="-")
@option(
    "--format",
    "What to write. Parquet needs --output. [default: by the output's name, else jsonl]",
    type=click.Choice(["jsonl", "parquet"]),
)
@option("--sparse-top-k", "Keep this many sparse entries; 0: all.", type=click.IntRange(min=0), default=0)
@option(
    "--wire-encoding",
    "How vectors travel: the smaller, the more rounded.",
    type=click.Choice(get_args(WireEncoding)),
    default="float32",
)
@option("--batch-size", "Texts per request, at most.", type=click.IntRange(min=1), default=64)
@option("--max-in-flight", "Requests under way at once.", type=click.IntRange(min=1), default=4)
@option(
    "--progress/--no-progress",
    "Show a progress bar on standard error. [default: if it is a terminal]",
    default=None,
    show_default=False,
)
@options(MODEL_OPTIONS, CONNECTION_OPTIONS)
@connected
def embed(client: TrivecClient, **given: Any) -> int:
    """
    Embed the texts of FILE, or of standard input.

    Reads lines or JSON Lines, in bounded memory, and writes JSON Lines or Parquet in the order of the input.
    """
    output_format = _choose_format(given["format"], given["output"])
    source: BinaryIO = given["file"]
    records = _read_records(source, given["input_format"], given["text_field"])
    pending: deque[TextRecord] = deque()
    modes: tuple[ModeName, ...] = given["mode"]
    results = client.encode_stream(
        _remember(records, pending),
        return_dense="dense" in modes,
        return_sparse="sparse" in modes,
        return_colbert_vecs="multi_vector" in modes,
        max_length=given["max_tokens"] or 0,
        truncation=given["truncation"],
        input_type=given["input_type"],
        sparse_top_k=given["sparse_top_k"],
        progress=_shows_progress(given["progress"], given["output"]),
    )
    done = 0
    with _open_output(given["output"]) as output:
        writer = _make_writer(output_format, output, client, modes)
        try:
            for embedding in results:
                writer.write(pending.popleft(), embedding)
                done += 1
        except (TrivecClientError, ValueError) as error:
            raise CommandError(_locate(one_line(error), source.name, done, pending)) from error
        writer.close()
    return 0


def _choose_format(asked: str | None, output: str) -> str:
    """What was asked for, or what the output's name says; the two may not contradict each other."""
    suffix = Path(output).suffix.lower()
    by_name = "parquet" if suffix == ".parquet" else "jsonl" if suffix in _JSONL_SUFFIXES else None
    if asked is not None and by_name is not None and asked != by_name:
        raise click.UsageError(f"--format {asked} contradicts the name of --output {output}: change one of them")
    if asked == "parquet" and output == "-":
        raise click.UsageError("--format parquet needs --output FILE")
    return asked or by_name or "jsonl"


def _read_records(file: BinaryIO, input_format: str | None, text_field: str) -> Iterator[TextRecord]:
    by_name = "jsonl" if Path(file.name).suffix in _JSONL_SUFFIXES else "lines"
    is_jsonl = (input_format or by_name) == "jsonl"
    if file.isatty():
        click.echo(f"one {'JSON object' if is_jsonl else 'text'} a line; Ctrl-D ends", err=True)
    if is_jsonl:
        return read_jsonl(file, file.name, text_field)
    return read_lines(file, file.name)


def _remember(records: Iterator[TextRecord], pending: deque[TextRecord]) -> Iterator[str]:
    """The texts, each kept with its record until its embedding comes."""
    for record in records:
        pending.append(record)
        yield record.text


def _locate(message: str, name: str, done: int, pending: deque[TextRecord]) -> str:
    """The message with the file's line in place of the text's index."""

    def place(match: re.Match[str]) -> str:
        position = int(match[1]) - done
        return f"{name}:{pending[position].line}" if 0 <= position < len(pending) else match[0]

    return _TEXT_INDEX.sub(place, message)


def _shows_progress(asked: bool | None, output: str) -> bool:
    if asked is not None:
        return asked
    results_on_terminal = output == "-" and sys.stdout.isatty()
    return sys.stderr.isatty() and not results_on_terminal and importlib.util.find_spec("tqdm") is not None


@contextmanager
def _open_output(output: str) -> Iterator[BinaryIO]:
    """Standard output, or a file that takes its name when it is whole; a device or pipe is written to directly."""
    if output == "-":
        yield sys.stdout.buffer
        return
    path = Path(output)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        file = temporary.open("xb")
    except OSError as error:
        raise CommandError(f"{output}: {error.strerror}") from error
    try:
        with file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _make_writer(
    output_format: str, output: BinaryIO, client: TrivecClient, modes: tuple[ModeName, ...]
) -> RecordWriter:
    if output_format == "jsonl":
        return JsonlWriter(output)
    return ParquetWriter(output, client.get_model(), modes)
