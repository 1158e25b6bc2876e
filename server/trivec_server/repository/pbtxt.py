"""Protobuf text format with places: parses a file into a message and remembers where each field stands."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from google.protobuf import text_format
from google.protobuf.message import Message

from trivec_server.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
"""A larger file is refused: no configuration comes near, and a weight file by that name would stall the parser."""

_TOKEN = re.compile(
    r"""(?P<blank>(?:\s|\#[^\n]*)+)
      | (?P<text>"(?:\\[^\n]|[^"\\\n])*"? | '(?:\\[^\n]|[^'\\\n])*'?)
      | (?P<word>[\w.+-]+)
      | (?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)
_BAD_ESCAPE = re.compile(
    r"""\\(?:\\|(?P<bad>(?! [abfnrtv'"]
                          | [0-7]{1,2}(?![0-7]) | [0-3][0-7]{2}
                          | x[0-9a-fA-F] | u[0-9a-fA-F]{4} | U[0-9a-fA-F]{8} ).?))""",
    re.VERBOSE | re.DOTALL,
)
_UNKNOWN_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "(\w+)"')
_UNKNOWN_VALUE = re.compile(r'Enum type "([\w.]+)" has no value named (.*?)\.?$')
_GIVEN_TWICE = re.compile(r'should not have multiple "(\w+)" fields')
_RIVALS = re.compile(r'Field "(\w+)" is specified along with field "(\w+)"')
_SHOWN_CHARACTERS = 80
_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line and a column, both from 1; columns count code points."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Places:
    """
    Where the fields of a configuration stand: of a file, or of what `source` names. A place may be unknown.

    A field is named by its path: `input[1].dims[0]`, `parameters["max_tokens"]`; `[0]` may be left out.
    """

    source: Path | str
    by_field: Mapping[str, Place | None]

    def given(self, field: str) -> bool:
        """Whether the file sets this field, be it to its default."""
        return _key(field) in self.by_field

    def fault(self, field: str, problem: str) -> str:
        """One line for a user: file, line and column (of the field, or of the nearest around it), field, problem."""
        place = None
        around = _key(field)
        while around and (place := self.by_field.get(around)) is None:
            around = _parent(around)
        return f"{_where(self.source, place)}: {one_line(field)}: {one_line(problem)}"

    def error(self, field: str, problem: str) -> ConfigError:
        """The same as an error to raise."""
        return ConfigError(self.fault(field, problem))


def read_pbtxt(path: Path, message: Message) -> Places:
    """
    Reads a text-format file (UTF-8) into an empty message.

    Raises:
        ConfigError: the file is missing, unreadable, too large, not UTF-8, or not text format of this message. Names
            the file and, for a fault within, line, column and field.
    """
    text = _read_text(path)
    tokens = list(_tokens(text))
    for token in tokens:
        if token.kind == "text":
            _check_escapes(path, token)
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise _syntax_error(path, text, tokens, message, error) from None
    except ValueError as error:  # a number too large for its enum: the parser does not place it
        place = next((token.place for token in tokens if token.text == str(error).rpartition(" ")[2]), None)
        raise ConfigError(f"{_where(path, place)}: {one_line(str(error))}") from None
    outline = _Outline(tokens)
    places = Places(path, outline.places)
    if outline.key_given_twice:  # the parser keeps the last and says nothing
        raise places.error(outline.key_given_twice, "given twice")
    return places


def shown(value: str) -> str:
    """A user's text as a short quoted literal on one line."""
    return repr(value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "...")


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest known word, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def one_line(message: str) -> str:
    """A message that may hold anything, as one short printable line."""
    message = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in message)
    return message if len(message) <= _MESSAGE_CHARACTERS else message[:_MESSAGE_CHARACTERS] + "..."


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    place: Place


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes, the most a configuration may have")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8: byte 0x{content[error.start]:02x}") from None


def _tokens(text: str) -> Iterator[_Token]:
    line, line_start = 1, 0
    for match in _TOKEN.finditer(text):
        kind, token = str(match.lastgroup), match.group()
        if kind != "blank":
            yield _Token(kind, token, Place(line, match.start() - line_start + 1))
        if newlines := token.count("\n"):
            line += newlines
            line_start = match.start() + token.rindex("\n") + 1


def _check_escapes(path: Path, token: _Token) -> None:
    # Python's parser would take most of these as they are, with a DeprecationWarning; Triton's refuses them.
    for match in _BAD_ESCAPE.finditer(token.text):
        if match["bad"] is not None:
            place = Place(token.place.line, token.place.column + match.start())
            escape = one_line(match.group())
            raise ConfigError(f"{_where(path, place)}: `{escape}` is no escape; a backslash is written `\\\\`")


def _syntax_error(
    path: Path, text: str, tokens: Sequence[_Token], message: Message, error: text_format.ParseError
) -> ConfigError:
    line, column = error.GetLine(), error.GetColumn()
    if line is None or column is None:
        return ConfigError(f"{path}: {one_line(str(error))}")
    place = Place(line, column)
    # The parser puts place and text of the line before what it says.
    said = str(error).removeprefix(f"{line}:{column} : ")
    said = said.removeprefix(f"'{text.split(chr(10))[line - 1]}': ").removeprefix("'': ")
    pool = message.DESCRIPTOR.file.pool
    field = _Outline([token for token in tokens if token.place <= place]).last_field
    if found := _UNKNOWN_FIELD.search(said):
        descriptor = pool.FindMessageTypeByName(found[1])
        near = suggestion(found[2], descriptor.fields_by_name)
        field, problem = "", f"unknown field `{found[2]}` in {descriptor.name}{near}"
    elif found := _UNKNOWN_VALUE.search(said):
        values = pool.FindEnumTypeByName(found[1]).values_by_name
        near = suggestion(found[2], values) or f"; it is one of {', '.join(values)}"
        problem = f"unknown value {shown(found[2])}{near}"
    elif found := _GIVEN_TWICE.search(said):
        field, problem = "", f"`{found[1]}` is given twice"
    elif found := _RIVALS.search(said):
        field, problem = "", f"`{found[1]}` and `{found[2]}` exclude each other"
    else:
        problem = said[:1].lower() + said[1:].rstrip(".")
    return ConfigError(": ".join(filter(None, (_where(path, place), field, one_line(problem)))))


class _Outline:
    """
    The places of all fields in a list of tokens, the field that was begun last, and an entry of a map given twice.

    The tokens need not be well-formed: what follows a fault is of no use, but does not fail.
    """

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self.last_field = ""
        self.key_given_twice = ""
        self._places: dict[str, Place] = {}
        self._tokens = tokens
        self._next = 0
        while self._next < len(self._tokens):
            self._read_fields("", "")

    @property
    def places(self) -> Mapping[str, Place]:
        return MappingProxyType(self._places)

    def _read_fields(self, prefix: str, closing: str) -> str:
        """Reads fields up to the closing mark; gives the text of the one named `key`, which names an entry of a map."""
        counts: Counter[str] = Counter()
        map_key = ""
        while (name := self._take()) and name.text != closing:
            if name.kind != "word":  # a separator, or a mark that does not belong here
                self.last_field = ""
                continue
            self._take(":")
            if self._take("["):
                while (peeked := self._peek()) and not self._take("]"):
                    self._read_value(f"{prefix}{name.text}", counts[name.text], peeked.place)
                    counts[name.text] += 1
                    self._take(",")
                continue
            peeked = self._peek()
            is_message = peeked is None or peeked.text in ("{", "<")
            place = name.place if is_message or peeked is None else peeked.place
            value = self._read_value(f"{prefix}{name.text}", counts[name.text], place)
            counts[name.text] += 1
            map_key = value if name.text == "key" else map_key
        return map_key

    def _read_value(self, field: str, index: int, place: Place) -> str:
        field = f"{field}[{index}]" if index else field
        self.last_field = field
        self._places[_key(field)] = place
        token = self._take()
        if token is None:
            return ""
        if token.text in ("{", "<"):
            map_key = self._read_fields(f"{field}.", "}" if token.text == "{" else ">")
            if map_key:
                entry = f'{field.removesuffix(f"[{index}]")}["{map_key}"]'
                self.key_given_twice = entry if _key(entry) in self._places else self.key_given_twice
                self._places[_key(entry)] = place
            return ""
        value = token.text
        if token.kind == "text":
            value = value[1:-1]
            while (more := self._peek()) and more.kind == "text":
                self._next += 1
                value += more.text[1:-1]
        return value

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, text: str | None = None) -> _Token | None:
        token = self._peek()
        if token is None or (text is not None and token.text != text):
            return None
        self._next += 1
        return token


def _key(field: str) -> str:
    return field.replace("[0]", "")


def _parent(field: str) -> str:
    return field[: max(field.rfind("."), field.rfind("["), 0)]


def _where(source: Path | str, place: Place | None) -> str:
    return f"{source}:{place.line}:{place.column}" if place else str(source)
