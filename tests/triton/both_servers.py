"""
The calls of `calls.py` to a real Triton and to this server, each with the models of `models.py`.

`python -m tests.triton.both_servers` writes Triton's answers into `answers/`, to read.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from google.protobuf import json_format, text_format
from inference import model_config_pb2

from tests.serving_process import serve
from tests.triton.models import BROKEN, MODEL_FILES, MODELS, Backend, version_file, write_repository
from tests.triton.triton_server import ROOT, packages, serve_triton

CLIENT = ROOT / ".venv-tritonclient" / "bin" / "python"
ANSWERS = Path(__file__).parent / "answers" / "triton-2.51.jsonl"
CALLS_TIMEOUT_S = 300
LOADED = "nobatch"
"""The model that a server in explicit mode loads by itself."""

Group = Literal["serving", "explicit"]
Record = dict[str, Any]
Records = list[Record]


@contextmanager
def triton(group: Group, folder: Path) -> Iterator[str]:
    """A real Triton as a group of calls wants it; its address."""
    if group == "serving":
        repository = write_repository(folder / "triton", "python", *MODELS, packages=packages())
        with serve_triton(repository) as server:
            yield server.target
    else:
        repository = write_repository(folder / "triton-explicit", "python", *MODELS, BROKEN, packages=packages())
        with serve_triton(repository, f"--load-model={LOADED}", control_mode="explicit") as server:
            yield server.target


@contextmanager
def trivec(group: Group, folder: Path) -> Iterator[str]:
    """This server, likewise."""
    if group == "serving":
        with serve(write_repository(folder / "trivec", "onnxruntime", *MODELS)) as server:
            yield server.target
    else:
        repository = write_repository(folder / "trivec-explicit", "onnxruntime", *MODELS, BROKEN)
        with serve(repository, "--model-control-mode", "explicit", "--load-model", LOADED) as server:
            yield server.target


def call(target: str, group: Group, backend: Backend, folder: Path) -> Records:
    """What the calls of a group came to, in order."""
    if not CLIENT.exists():
        raise FileNotFoundError(f"{CLIENT} is not installed: make .venv-tritonclient/.ready")
    files = _write_files(folder / f"files-{backend}", backend)
    command = [str(CLIENT), "-m", "tests.triton.calls", target, "--group", group]
    done = subprocess.run(
        [*command, "--model-file", MODEL_FILES[backend], "--files", str(files)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=CALLS_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _write_files(folder: Path, backend: Backend) -> Path:
    """What models are loaded from: a model's file, and its config in JSON."""
    folder.mkdir(exist_ok=True)
    (model,) = (model for model in MODELS if model.name == "identity_fp32")
    config = text_format.Parse(model.config(backend), model_config_pb2.ModelConfig())
    (folder / model.name).write_bytes(version_file(model, backend, 1, packages()))
    written = json_format.MessageToJson(config, preserving_proto_field_name=True)
    (folder / f"{model.name} config").write_text(written, encoding="utf-8")
    return folder


def main() -> None:
    records: Records = []
    groups: tuple[Group, ...] = ("serving", "explicit")
    for group in groups:
        with tempfile.TemporaryDirectory() as folder, triton(group, Path(folder)) as target:
            records += call(target, group, "python", Path(folder))
    lines = [json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records]
    ANSWERS.parent.mkdir(exist_ok=True)
    ANSWERS.write_text("".join(lines), encoding="utf-8")
    sys.stdout.write(f"{len(records)} answers in {ANSWERS.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
