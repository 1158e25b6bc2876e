"""Files that nobody wrote, at the readers of the server's files: each is read, or refused in one line."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from trivec_server.errors import ConfigError, LoadError, SecurityFileError, TrivecError
from trivec_server.repository.manifest import MANIFEST_NAME, read_manifest
from trivec_server.repository.model_config import read_model_config, read_model_config_json
from trivec_server.transport.access_file import read_access_file

from tests.fuzz.examples import examples
from tests.fuzz.token_soup import CONFIG_NAMES, json_text, pbtxt, toml
from tests.small_repository import make_repository

_ACCESS = b"""[[identity]]
name = "search"
token_sha256 = "%s"
scopes = ["infer"]
requests_per_s = 50.5
burst = 100

[[identity]]
name = "operator"
certificate = "operator.example.com"
scopes = ["infer", "admin"]
max_concurrent = 4
""" % (b"0a" * 32)
_CONFIG_JSON = (
    b'{"backend": "scripted", "maxBatchSize": 8}',
    b"""{"backend": "onnxruntime", "max_batch_size": 4, "dynamic_batching": {},
         "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
         "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["2"]}]}""",
    b'{"backend": "auto", "parameters": {"max_tokens": {"string_value": "64"}}, "version_policy": {"latest": {}}}',
)


_MEMORY = "/dev/shm"  # noqa: S108 - files are written thousands of times


class Tally:
    """How many files were read, and how many of them were taken."""

    def __init__(self) -> None:
        self.cases = 0
        self.taken = 0

    def read(self, content: bytes, read: Callable[[bytes], object], refusal: type[TrivecError]) -> None:
        """One case."""
        self.cases += 1
        try:
            read(content)
        except refusal as error:
            said = str(error)
            assert said.isprintable(), f"{said!r} of {content!r}"
        else:
            self.taken += 1


def _run(
    cases: int, contents: st.SearchStrategy[bytes], read: Callable[[bytes], object], refusal: type[TrivecError]
) -> Tally:
    tally = Tally()

    @examples(cases)
    @given(contents)
    def one(content: bytes) -> None:
        tally.read(content, read, refusal)

    one()
    return tally


def fuzz_pbtxt(cases: int) -> Tally:
    """config.pbtxt, of a model with a version of either kind."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        path = make_repository(Path(directory)) / "small" / "config.pbtxt"

        def read(content: bytes) -> object:
            path.write_bytes(content)
            return read_model_config(path, "small")

        return _run(cases, pbtxt(), read, ConfigError)


def fuzz_config_json(cases: int) -> Tally:
    """The configuration that a load brings along."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        model_dir = Path(directory)

        def read(content: bytes) -> object:
            text = content.decode("utf-8", "replace")
            return read_model_config_json(text, "small", model_dir=model_dir)

        return _run(cases, json_text(CONFIG_NAMES, _CONFIG_JSON), read, ConfigError)


def fuzz_manifest(cases: int) -> Tally:
    """manifest.json."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        path = make_repository(Path(directory)) / "small" / "1" / MANIFEST_NAME
        sample = path.read_bytes()
        document = json.loads(sample)
        names = tuple({*document, *document["model"], *document["source"], "export", "sha256", "size_bytes"})

        def read(content: bytes) -> object:
            path.write_bytes(content)
            return read_manifest(path.parent)

        return _run(cases, json_text(names, (sample,)), read, LoadError)


def fuzz_access_file(cases: int) -> Tally:
    """The access file."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        path = Path(directory) / "access.toml"

        def read(content: bytes) -> object:
            path.write_bytes(content)
            return read_access_file(path, has_client_ca=True)

        return _run(cases, toml((_ACCESS,)), read, SecurityFileError)
