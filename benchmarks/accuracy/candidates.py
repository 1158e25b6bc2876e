"""The engines and precisions that the report compares, and the model versions that they run."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from trivec_server.backends.interface import Engine, EngineRequest
from trivec_server.errors import CommandError, LoadError
from trivec_server.repository.engines import ENGINES
from trivec_server.repository.export import export_version
from trivec_server.repository.model_config import read_model_config
from trivec_server.types import InstanceKind, ModelSettings

MAX_TOKENS = 512
"""The longest text that the engines are told of; those of the report are shorter."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    An engine in one precision, on a kind of device. `exported`: it runs a version that `trivec export` made for it in
    that precision, not the one that `trivec pull` made.
    """

    engine: str
    precision: str
    kind: InstanceKind = InstanceKind.CPU
    exported: bool = False

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}{' on the GPU' if self.kind is InstanceKind.GPU else ''}"


REFERENCES = (Candidate("flagembedding", "float32"), Candidate("onnxruntime", "float32"))
"""The first that can run a model is what the others are compared with. The tests compare the second with the first."""

ON_CPU = (
    Candidate("flagembedding", "float32"),
    Candidate("onnxruntime", "float32"),
    Candidate("onnxruntime", "int8", exported=True),
    Candidate("openvino", "float32"),
    Candidate("openvino", "bfloat16"),
    Candidate("openvino", "int8", exported=True),
    Candidate("pytorch", "float32"),
    Candidate("pytorch", "bfloat16"),
)

ON_GPU = (
    Candidate("flagembedding", "float32", InstanceKind.GPU),
    Candidate("flagembedding", "float16", InstanceKind.GPU),
    Candidate("pytorch", "float32", InstanceKind.GPU),
    Candidate("pytorch", "bfloat16", InstanceKind.GPU),
    Candidate("pytorch", "float16", InstanceKind.GPU),
    Candidate("pytorch", "float8", InstanceKind.GPU),
    Candidate("onnxruntime", "float16", InstanceKind.GPU, exported=True),
)


@dataclass(frozen=True, slots=True)
class ModelVersions:
    """A model in a repository of its own: version 1 was pulled, the others are exported when asked for."""

    repository: Path
    name: str

    @property
    def pulled(self) -> Path:
        return self.repository / self.name / "1"

    @property
    def settings(self) -> ModelSettings:
        return read_model_config(self.repository / self.name / "config.pbtxt", self.name)

    def exported(self, engine: str, precision: str) -> Path:
        """
        The version that `trivec export` makes.

        Raises:
            LoadError: it cannot be made; says why.
        """
        try:
            return export_version(self.repository, self.name, engine, report=_tell, precision=precision, base_version=1)
        except CommandError as error:
            raise LoadError(str(error)) from error


def _tell(line: str) -> None:
    print(f"    {line}", flush=True)


def share_model(version_dir: Path, repository: Path) -> ModelVersions:
    """A new repository for a pulled version, which is linked to, not copied."""
    model_dir = repository / version_dir.parent.name
    model_dir.mkdir(parents=True)
    (model_dir / "1").symlink_to(version_dir.resolve())
    shutil.copyfile(version_dir.parent / "config.pbtxt", model_dir / "config.pbtxt")
    return ModelVersions(repository, model_dir.name)


def build(candidate: Candidate, versions: ModelVersions) -> Engine:
    """
    The candidate's engine, ready to run.

    Raises:
        LoadError: it cannot run on this machine, or cannot run this model; says why.
    """
    version_dir = versions.pulled
    if candidate.exported:
        version_dir = versions.exported(candidate.engine, candidate.precision)
    engine = ENGINES[candidate.engine](
        EngineRequest(
            version_dir=version_dir, kind=candidate.kind, precision=candidate.precision, max_tokens=MAX_TOKENS
        )
    )
    if engine.info.precision != candidate.precision:
        engine.close()
        raise LoadError(f"asked for {candidate.precision}, it computes in {engine.info.precision}")
    return engine
