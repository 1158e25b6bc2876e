"""Texts out of files, embeddings into files: lines or JSON Lines in, JSON Lines out."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from trivec_client.embeddings import SparseVector, TextEmbedding


class RecordError(ValueError):
    """A line of the input is not what it should be; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A text of the input, the id that came with it, and the line where it stands, from 1."""

    text: str
    id: str | int | None
    line: int


class RecordWriter(Protocol):
    """Writes embeddings beside the records that they belong to."""

    def write(self, record: TextRecord, embedding: TextEmbedding) -> None:
        """Takes one; it may be written later."""

    def close(self) -> None:
        """Writes what is left. The file stays open."""


def read_lines(file: BinaryIO, name: str) -> Iterator[TextRecord]:
    """
    Each line is a text, also an empty one.

    Raises:
        RecordError: a line is not UTF-8.
    """
    for line, text in _decode(file, name):
        yield TextRecord(text, None, line)


def read_jsonl(file: BinaryIO, name: str, text_field: str) -> Iterator[TextRecord]:
    """
    Each line is a JSON object with a string `text_field`, and maybe an `id`, a string or an integer. Blank lines are
    passed over.

    Raises:
        RecordError: a line is something else.
    """
    for line, content in _decode(file, name):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except ValueError as error:
            raise RecordError(f"{name}:{line}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise RecordError(f"{name}:{line}: expected a JSON object, got {type(record).__name__}")
        if text_field not in record:
            raise RecordError(f"{name}:{line}: no field {text_field!r}; --text-field names the field of the text")
        text, given_id = record[text_field], record.get("id")
        if not isinstance(text, str):
            raise RecordError(f"{name}:{line}: {text_field}: expected a string, got {type(text).__name__}")
        if isinstance(given_id, bool) or not isinstance(given_id, str | int | None):
            raise RecordError(f"{name}:{line}: id: expected a string or an integer, got {type(given_id).__name__}")
        yield TextRecord(text, given_id, line)


def _decode(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    for line, raw in enumerate(file, 1):
        content = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
        try:
            yield line, content.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise RecordError(f"{name}:{line}: not UTF-8 at byte {error.start}: {error.reason}") from None


class JsonlWriter:
    """
    One JSON object per line: `index`, `id` where the input had one, `tokens`, `truncated`, and the parts asked for:
    `dense` [D], `sparse` {`ids`, `weights`, maybe `tokens`}, `multi_vector` [rows][D].
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, record: TextRecord, embedding: TextEmbedding) -> None:
        """Writes one line, at once."""
        fields = [f'"index": {embedding.index}']
        if record.id is not None:
            fields.append(f'"id": {json.dumps(record.id, ensure_ascii=False)}')
        fields += [f'"tokens": {embedding.token_count}', f'"truncated": {json.dumps(embedding.truncated)}']
        if embedding.dense is not None:
            fields.append(f'"dense": {_render_numbers(embedding.dense)}')
        if embedding.sparse is not None:
            fields.append(f'"sparse": {_render_sparse(embedding.sparse)}')
        if embedding.multi_vector is not None:
            rows = ", ".join(map(_render_numbers, embedding.multi_vector))
            fields.append(f'"multi_vector": [{rows}]')
        self._file.write(f"{{{', '.join(fields)}}}\n".encode())
        self._file.flush()

    def close(self) -> None:
        """Nothing is left to write."""


def _render_numbers(numbers: NDArray[np.float32] | NDArray[np.uint32]) -> str:
    """Each number by the fewest digits that give the same float32 back: half as long as the digits of a float64."""
    return f"[{', '.join(numbers.astype(np.str_).tolist())}]"


def _render_sparse(sparse: SparseVector) -> str:
    tokens = "" if sparse.tokens is None else f', "tokens": {json.dumps(sparse.tokens, ensure_ascii=False)}'
    return f'{{"ids": {_render_numbers(sparse.ids)}, "weights": {_render_numbers(sparse.weights)}{tokens}}}'
