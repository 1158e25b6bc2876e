"""The models under test, pulled into one repository and served by one real server for the whole session."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from trivec.v1 import embedding_pb2_grpc

from tests.model_settings import set_backend
from tests.numerics import grpc_calls
from tests.numerics.models import SHAPES, write_model
from tests.serving_process import serve


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A random model on disk: its directory in Hugging Face's layout and the digest of its weights."""

    directory: Path
    digest: str


@pytest.fixture(scope="session")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, RandomModel]:
    """The random models by name."""
    models = {}
    for shape in SHAPES:
        directory = tmp_path_factory.mktemp(shape.name)
        models[shape.name] = RandomModel(directory, write_model(shape, directory))
    return models


@pytest.fixture(scope="session")
def stub(
    random_models: Mapping[str, RandomModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[embedding_pb2_grpc.EmbeddingServiceStub]:
    """A stub for a server of the random models."""
    repository = tmp_path_factory.mktemp("repository")
    for name, model in random_models.items():
        pull(str(model.directory), repository, "--name", name)
        # Equal to 1e-5 is what float32 is held to; the fastest engine here may compute in bfloat16.
        set_backend(repository / name, "onnxruntime")
    with serve(repository) as server, grpc_calls.connect(server.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def mini_stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedding_pb2_grpc.EmbeddingServiceStub]:
    """A stub for a server of m3-mini."""
    repository = tmp_path_factory.mktemp("mini")
    pull("m3-mini", repository)
    with serve(repository) as server, grpc_calls.connect(server.target) as connected:
        yield connected


def pull(source: str, repository: Path, *flags: str) -> None:
    """Runs `trivec pull` and shows what it printed if it fails."""
    command = [sys.executable, "-m", "trivec_server", "pull", source, "--model-repository", str(repository), *flags]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, f"trivec pull {source} failed:\n{finished.stdout}{finished.stderr}"
