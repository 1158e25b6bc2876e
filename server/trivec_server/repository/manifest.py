"""
The `manifest.json` of a model version: what the model is, where it comes from, and the size and SHA-256 of each file.

`trivec pull` writes it last, so a version directory with a manifest is a whole one.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

from trivec_server.errors import LoadError
from trivec_server.types import Mode

MANIFEST_NAME = "manifest.json"

FORMAT = 1
"""The number of this file format and of the graphs that are written with it. Another number is refused."""

_MEND = "run `trivec pull` for this model again"
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The size in bytes of a file and its SHA-256 in lowercase hexadecimal digits."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """
    What a version's model is.

    `architecture` is `xlm-roberta` or `bert`, `pooling` is `cls` or `mean`, `precision` is that of the weights.
    `max_tokens` includes both special tokens. `demonstration`: a model to try and test with, not for production.
    """

    architecture: str
    pooling: str
    precision: str
    modes: Mode
    dense_dimension: int
    multi_vector_dimension: int
    vocabulary_size: int
    max_tokens: int
    demonstration: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """
    Where the weights come from: a `hub` repository, a local `directory`, or an installed `package`.

    `revision` is the commit of a hub repository or the version of a package; a directory has none.
    """

    kind: str
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        if self.revision is None:
            return self.name
        return f"{self.name}@{self.revision}" if self.kind == "hub" else f"{self.name} {self.revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """
    How near an exported version comes to the one that it was made from, which computes in float32, over `texts` texts.

    `device` is where the exported version ran. Cosines are of a text's dense vector and of a token's vector.
    `sparse_overlap` is the share of sparse ids that both have, the mean over the texts; `sparse_weight_error` the
    largest difference of a weight.
    """

    texts: int
    device: str
    dense_cosine_min: float
    dense_cosine_mean: float
    multi_vector_cosine_min: float
    multi_vector_cosine_mean: float
    sparse_overlap: float
    sparse_weight_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What `trivec export` made: files for one `engine`, out of the version with the digest `base_digest`."""

    engine: str
    base_digest: str
    parity: Parity


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """
    One `manifest.json`. `files` holds every other file of the version, by name. `export` is None for a version that
    `trivec pull` made.
    """

    model: ModelFacts
    source: Source
    files: Mapping[str, FileFacts]
    export: Export | None = None

    @property
    def content_digest(self) -> str:
        """
        SHA-256 in lowercase hexadecimal digits over the model's facts and the files, names, sizes and digests.

        The source is left out: the same files are the same content, wherever they were pulled from.
        """
        content = {name: value for name, value in _render(self).items() if name != "source"}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(version_dir: Path) -> Manifest:
    """
    Reads the manifest of a version directory. Does not look at the files that it lists.

    Raises:
        LoadError: the manifest is missing, unreadable or not of this format; names the file, the fault and the mend.
    """
    path = version_dir / MANIFEST_NAME
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise LoadError(f"{path}: not found, so the version is not whole: {_MEND}") from None
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: is not JSON ({error}): {_MEND}") from None
    try:
        return _parse(document)
    except _ManifestError as error:
        raise LoadError(f"{path}: {error}: {_MEND}") from None


def write_manifest(
    version_dir: Path, model: ModelFacts, source: Source, file_names: Iterable[str], export: Export | None = None
) -> Manifest:
    """
    Measures the named files of a version directory and writes its manifest. Byte for byte the same for the same files.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
    """
    files = {name: measure_file(version_dir / name) for name in sorted(file_names)}
    manifest = Manifest(model=model, source=source, files=MappingProxyType(files), export=export)
    text = json.dumps(_render(manifest), indent=2, ensure_ascii=False)
    (version_dir / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    return manifest


def verify_files(version_dir: Path, manifest: Manifest) -> None:
    """
    Checks that every file of the manifest is there, with its size and its SHA-256. Reads all of each file.

    Raises:
        LoadError: names the file, what is wrong with it and the mend.
    """
    verify_sizes(version_dir, manifest)
    for name, facts in manifest.files.items():
        path = version_dir / name
        try:
            found = measure_file(path)
        except OSError as error:
            raise LoadError(f"{path}: cannot be read: {error.strerror}") from None
        if found.sha256 != facts.sha256:
            raise LoadError(
                f"{path}: damaged: its SHA-256 is {found.sha256}, the manifest says {facts.sha256}: {_MEND}"
            )


def verify_sizes(version_dir: Path, manifest: Manifest) -> None:
    """
    Checks that every file of the manifest is there with its size. Reads no file.

    Raises:
        LoadError: names the file, what is wrong with it and the mend.
    """
    for name, facts in manifest.files.items():
        path = version_dir / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise LoadError(f"{path}: missing, though the manifest lists it: {_MEND}") from None
        except OSError as error:
            raise LoadError(f"{path}: cannot be read: {error.strerror}") from None
        if size != facts.bytes:
            fault = "truncated" if size < facts.bytes else "too long"
            raise LoadError(f"{path}: {fault}: {size} of {facts.bytes} bytes: {_MEND}")


def measure_file(path: Path) -> FileFacts:
    """
    The size and SHA-256 of a file, read in pieces.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
            size += len(piece)
    return FileFacts(bytes=size, sha256=digest.hexdigest())


class _ManifestError(ValueError):
    """What is wrong with a manifest's text, without its path."""


def _render(manifest: Manifest) -> dict[str, object]:
    model, source = manifest.model, manifest.source
    export = {} if manifest.export is None else {"export": asdict(manifest.export)}
    return {
        "format": FORMAT,
        "model": {
            "architecture": model.architecture,
            "pooling": model.pooling,
            "precision": model.precision,
            "modes": [str(mode.name) for mode in model.modes],
            "dense_dimension": model.dense_dimension,
            "multi_vector_dimension": model.multi_vector_dimension,
            "vocabulary_size": model.vocabulary_size,
            "max_tokens": model.max_tokens,
            "demonstration": model.demonstration,
        },
        "source": {"kind": source.kind, "name": source.name, "revision": source.revision},
        **export,
        "files": {name: {"bytes": facts.bytes, "sha256": facts.sha256} for name, facts in manifest.files.items()},
    }


def _parse(document: object) -> Manifest:
    root = _Fields("the manifest", document)
    if (number := root.integer("format")) != FORMAT:
        raise _ManifestError(f"format is {number}, this version of Trivec reads {FORMAT}")
    model, source, files = root.object("model"), root.object("source"), root.object("files")
    return Manifest(
        model=ModelFacts(
            architecture=model.text("architecture"),
            pooling=model.text("pooling"),
            precision=model.text("precision"),
            modes=_parse_modes(model.value("modes")),
            dense_dimension=model.integer("dense_dimension"),
            multi_vector_dimension=model.integer("multi_vector_dimension"),
            vocabulary_size=model.integer("vocabulary_size"),
            max_tokens=model.integer("max_tokens"),
            demonstration=model.boolean("demonstration"),
        ),
        source=Source(kind=source.text("kind"), name=source.text("name"), revision=source.optional_text("revision")),
        files=MappingProxyType({name: _parse_file(files, name) for name in files.names()}),
        export=_parse_export(root.object("export")) if "export" in root.names() else None,
    )


def _parse_export(export: "_Fields") -> Export:
    parity = export.object("parity")
    return Export(
        engine=export.text("engine"),
        base_digest=export.text("base_digest"),
        parity=Parity(
            texts=parity.integer("texts"),
            device=parity.text("device"),
            dense_cosine_min=parity.real("dense_cosine_min"),
            dense_cosine_mean=parity.real("dense_cosine_mean"),
            multi_vector_cosine_min=parity.real("multi_vector_cosine_min"),
            multi_vector_cosine_mean=parity.real("multi_vector_cosine_mean"),
            sparse_overlap=parity.real("sparse_overlap"),
            sparse_weight_error=parity.real("sparse_weight_error"),
        ),
    )


def _parse_file(files: "_Fields", name: str) -> FileFacts:
    if Path(name).name != name or "\0" in name:
        raise _ManifestError(f"files: {name!r} is not a plain file name")
    entry = files.object(name)
    return FileFacts(bytes=entry.integer("bytes"), sha256=entry.text("sha256"))


def _parse_modes(value: object) -> Mode:
    names = {str(mode.name): mode for mode in Mode.HYBRID}
    modes = Mode(0)
    for name in value if isinstance(value, list) else ():
        if not isinstance(name, str) or name not in names:
            raise _ManifestError(f"model.modes: {name!r} is not one of {', '.join(names)}")
        modes |= names[name]
    if not modes:
        raise _ManifestError(f"model.modes: must be a list with one or more of {', '.join(names)}")
    return modes


class _Fields:
    """The members of a JSON object, read with their types checked."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise _ManifestError(f"{where} must be a JSON object")
        self._where = where
        self._members = cast("dict[str, object]", value)

    def names(self) -> list[str]:
        return list(self._members)

    def value(self, name: str) -> object:
        if name not in self._members:
            raise _ManifestError(f"{self._where} has no {name!r}")
        return self._members[name]

    def object(self, name: str) -> "_Fields":
        return _Fields(f"{name!r}", self.value(name))

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str):
            raise _ManifestError(f"{name!r} of {self._where} must be a string, not {value!r}")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self.value(name) is None else self.text(name)

    def integer(self, name: str) -> int:
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _ManifestError(f"{name!r} of {self._where} must be a whole number from 0, not {value!r}")
        return value

    def real(self, name: str) -> float:
        value = self.value(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _ManifestError(f"{name!r} of {self._where} must be a number, not {value!r}")
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            raise _ManifestError(f"{name!r} of {self._where} must be true or false, not {value!r}")
        return value
