"""
How near every engine and precision of this machine comes to the float32 reference: `python -m benchmarks.accuracy`.

On two models: m3-mini, whose weights are real, also the order of passages; and random weights in the shapes of BGE-M3.
Writes benchmarks/results/accuracy-cpu.json (or -gpu.json), and the section of docs/benchmarks.md made of both.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from trivec_server.backends.hardware import nvidia_gpu_count

from benchmarks.accuracy.candidates import ON_CPU, ON_GPU, Candidate, ModelVersions, share_model
from benchmarks.accuracy.corpus import samples
from benchmarks.accuracy.machine import describe_machine
from benchmarks.accuracy.measuring import ModelAccuracy, measure_model
from benchmarks.accuracy.report import (
    DOCUMENT,
    AccuracyReport,
    read_report,
    render_section,
    replace_section,
    results_path,
    write_report,
)
from benchmarks.full_size_model import write_full_size_model

MODELS = ("m3-mini", "full-size")
_MINI = "m3-mini"
_FULL_SIZE = "bge-m3-random"
_TITLES = {"m3-mini": "m3-mini", "full-size": "Random weights in the shapes of BGE-M3"}
_SECTION = "accuracy"


def main() -> None:
    """Measures, writes the results and prints the tables."""
    arguments = _parse_arguments()
    if arguments.section:
        _write_section()
        return
    device = arguments.device or ("gpu" if nvidia_gpu_count() else "cpu")
    candidates: tuple[Candidate, ...] = ON_GPU if device == "gpu" else ON_CPU
    if arguments.engine:
        candidates = tuple(each for each in candidates if each.engine in arguments.engine)
    models = [_measure(name, candidates, arguments) for name in arguments.model or MODELS]
    report = AccuracyReport(device=device, machine=describe_machine(), models=models)
    if arguments.no_write or arguments.engine or arguments.model:
        print(f"\n{render_section([report])}")
        return
    write_report(report, results_path(device))
    _write_section()
    print(f"\n{render_section([report])}\n\nwritten: {results_path(device)}, {DOCUMENT}")


def _write_section() -> None:
    reports = [read_report(path) for each in ("gpu", "cpu") if (path := results_path(each)).exists()]
    document = replace_section(DOCUMENT.read_text(encoding="utf-8"), _SECTION, render_section(reports))
    DOCUMENT.write_text(document, encoding="utf-8")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), help="which engines to run; the GPU's where there is one")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this model; no file is written")
    parser.add_argument("--engine", action="append", help="only this engine; no file is written")
    parser.add_argument(
        "--full-size-version", type=Path, help="a version of the full-size model that was pulled; made if not given"
    )
    parser.add_argument("--no-write", action="store_true", help="only print the tables")
    parser.add_argument("--section", action="store_true", help="only write the document's section, of earlier results")
    return parser.parse_args()


def _measure(name: str, candidates: tuple[Candidate, ...], arguments: argparse.Namespace) -> ModelAccuracy:
    with tempfile.TemporaryDirectory(prefix="trivec-accuracy-") as directory:
        work_dir = Path(directory)
        versions = _mini(work_dir) if name == "m3-mini" else _full_size(work_dir, arguments.full_size_version)
        return measure_model(_TITLES[name], versions, samples(), candidates, rank=name == "m3-mini")


def _mini(work_dir: Path) -> ModelVersions:
    return _pulled(_MINI, work_dir, _MINI)


def _full_size(work_dir: Path, version_dir: Path | None) -> ModelVersions:
    if version_dir is not None:
        return share_model(version_dir, work_dir / "repository")
    source = work_dir / _FULL_SIZE
    source.mkdir()
    print("making random weights in the shapes of BGE-M3", flush=True)
    write_full_size_model(source)
    versions = _pulled(str(source), work_dir, _FULL_SIZE)
    (source / "model.safetensors").unlink()
    return versions


def _pulled(source: str, work_dir: Path, name: str) -> ModelVersions:
    repository = work_dir / "repository"
    command = [sys.executable, "-m", "trivec_server", "pull", source, "--model-repository", str(repository)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return ModelVersions(repository, name)


if __name__ == "__main__":
    main()
