"""Trivec's engines as they are measured: each with a model repository of its own that names it."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engines.process import SystemFailed
from benchmarks.engines.weights import MODEL, BenchmarkModel


@dataclass(frozen=True, slots=True)
class Variant:
    """
    An engine in a precision. `export`: the precision that `trivec export` is to make files in; None: the engine runs
    the version as it was pulled, in `precision` or, if that is None too, the one that it chooses itself.
    """

    engine: str
    export: str | None = None
    precision: str | None = None

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.engine, self.export or self.precision) if part)


CPU_VARIANTS = (
    Variant("onnxruntime"),
    Variant("onnxruntime", export="int8"),
    Variant("pytorch"),
    Variant("openvino", export="bfloat16"),
    Variant("openvino", export="int8"),
)
GPU_VARIANTS = (Variant("pytorch", precision="float16"), Variant("pytorch", precision="float8"))


def make_repository(model: BenchmarkModel, variant: Variant, *, kind: str, max_batch_size: int | None = None) -> Path:
    """
    A model repository for one variant. The pulled version is in it by a link; an export that is there is used again.

    Args:
        model: What to serve.
        variant: By which engine.
        kind: `KIND_CPU` or `KIND_GPU`.
        max_batch_size: The most texts in a batch; None: as `trivec pull` wrote it.

    Raises:
        SystemFailed: `trivec export` cannot make it.
    """
    repository = model.work / "served" / variant.name
    directory = repository / MODEL
    directory.mkdir(parents=True, exist_ok=True)
    config = (model.version.parent / "config.pbtxt").read_text(encoding="utf-8")
    (directory / "config.pbtxt").write_text(_configured(config, variant, kind, max_batch_size), encoding="utf-8")
    if not (directory / "1").exists():
        (directory / "1").symlink_to(model.version)
    if variant.export is not None and not (directory / "2" / "manifest.json").exists():
        _export(repository, variant)
    return repository


def served_version(repository: Path, variant: Variant) -> Path:
    """The version's directory that the server will run."""
    return repository / MODEL / ("1" if variant.export is None else "2")


def _configured(config: str, variant: Variant, kind: str, max_batch_size: int | None) -> str:
    lines = []
    for line in config.splitlines():
        if line.startswith("backend:"):
            lines.append(f'backend: "{variant.engine}"')
        elif line.startswith("max_batch_size:") and max_batch_size is not None:
            lines.append(f"max_batch_size: {max_batch_size}")
        else:
            lines.append(line.replace("KIND_CPU", kind))
    if variant.precision is not None:
        lines.append(f'parameters {{ key: "precision", value: {{ string_value: "{variant.precision}" }} }}')
    return "\n".join(lines) + "\n"


def _export(repository: Path, variant: Variant) -> None:
    command = [sys.executable, "-m", "trivec_server", "export", MODEL, "--model-repository", str(repository)]
    command += ["--engine", variant.engine, "--precision", str(variant.export)]
    shutil.rmtree(repository / MODEL / "2", ignore_errors=True)
    print(f"exporting for {variant.name}", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise SystemFailed(f"trivec export: {lines[-1] if lines else done.returncode}"[:300])
