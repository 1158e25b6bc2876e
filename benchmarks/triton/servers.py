"""The servers, each on cores of its own: Trivec, a real Triton and MLServer."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import grpc

from benchmarks.engines.environments import environment
from benchmarks.engines.process import ROOT
from tests.ports import free_ports
from tests.serving_process import serve
from tests.triton.triton_server import packages, serve_triton

MODEL = "m3-mini"
READY = "ready"
MAX_BATCH_SIZE = 64
TRITON_BATCH_SIZE = 8
"""
The most texts in one of Triton's batches. It pads them all to the longest, so that larger batches of texts of mixed
lengths take longer than they save; of short texts a batch of 64 gains about a tenth.
"""
_READY_ROWS = 1024
_MINI = ROOT / "model_repository" / MODEL / "1"
_HERE = Path(__file__).parent
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0

_OUTPUTS = {
    "vector": 'name: "vector" data_type: TYPE_FP32 dims: [ 1024 ]',
    "dense": 'name: "dense" data_type: TYPE_FP32 dims: [ 384 ]',
    "sparse": 'name: "sparse" data_type: TYPE_FP32 dims: [ -1 ]',
    "multi_vector": 'name: "multi_vector" data_type: TYPE_FP32 dims: [ -1, 384 ]',
    "sparse_indptr": 'name: "sparse_indptr" data_type: TYPE_INT64 dims: [ -1 ]',
    "sparse_indices": 'name: "sparse_indices" data_type: TYPE_INT64 dims: [ -1 ]',
    "sparse_values": 'name: "sparse_values" data_type: TYPE_FP32 dims: [ -1 ]',
    "multi_vector_offsets": 'name: "multi_vector_offsets" data_type: TYPE_INT64 dims: [ -1 ]',
}
_CONFIG = """\
name: "{name}"
backend: "{backend}"
max_batch_size: {rows}
input [ {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {outputs} ]
dynamic_batching {{ }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""
_PARAMETER = 'parameters {{ key: "{}" value {{ string_value: "{}" }} }}\n'
_MLSERVER_MODEL = {
    "name": READY,
    "implementation": "mlserver_ready.ReadyModel",
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}],
    "outputs": [{"name": "vector", "datatype": "FP32", "shape": [-1, 1024]}],
}


def tokenizer_file() -> Path:
    return _MINI / "tokenizer.json"


def peer_versions() -> dict[str, str]:
    """The versions that are pinned of Triton, its client and MLServer."""
    files = ("constraints-triton.txt", "constraints-tritonclient.txt", "benchmarks/requirements/mlserver.txt")
    lines = [line for file in files for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    pins = dict(line.split("==") for line in lines if "==" in line)
    return {name: pins[name] for name in ("nvidia-pytriton", "tritonclient", "mlserver")}


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """What is started inside the block runs on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def trivec(folder: Path, outputs: Sequence[str], cores: Sequence[int]) -> Iterator[str]:
    """`trivec serve` with m3-mini; its address."""
    declared = [
        name for name in ("dense", "sparse", "multi_vector") if any(output.startswith(name) for output in outputs)
    ]
    model = folder / "trivec" / MODEL
    model.mkdir(parents=True)
    parameters = {"max_tokens": 512, "pooling": "mean", "intra_op_threads": len(cores)}
    _write_config(model, MODEL, "onnxruntime", MAX_BATCH_SIZE, declared, parameters)
    (model / "1").symlink_to(_MINI)
    with ExitStack() as stack:
        with on_cores(cores):
            server = stack.enter_context(serve(model.parent))
        yield server.target


@contextmanager
def triton(folder: Path, outputs: Sequence[str], cores: Sequence[int]) -> Iterator[str]:
    """A real Triton with m3-mini in its python backend; its address."""
    model = folder / "triton" / MODEL
    parameters = {"version_dir": _MINI, "max_tokens": 512, "threads": len(cores)}
    _write_python_model(model, "embedding_model.py")
    _write_config(model, MODEL, "python", TRITON_BATCH_SIZE, outputs, parameters)
    with _triton(model.parent, cores) as target:
        yield target


@contextmanager
def triton_ready(folder: Path, core: int) -> Iterator[str]:
    """A real Triton whose python backend returns ready arrays; its address."""
    model = folder / "triton-ready" / READY
    _write_python_model(model, "ready_model.py")
    write_ready_config(model, "python")
    with _triton(model.parent, [core]) as target:
        yield target


@contextmanager
def trivec_ready(folder: Path, core: int) -> Iterator[str]:
    """Trivec with an engine that returns ready arrays; its address."""
    with _module(core, "benchmarks.triton.trivec_ready", str(folder / "trivec-ready")) as target:
        yield target


@contextmanager
def mlserver_ready(folder: Path, core: int) -> Iterator[str]:
    """MLServer with a model that returns ready arrays, in its own process as Trivec has it; its address."""
    python = environment("mlserver")
    model = folder / "mlserver"
    model.mkdir()
    shutil.copy(_HERE / "mlserver_ready.py", model / "mlserver_ready.py")
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    (model / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (model / "model-settings.json").write_text(json.dumps(_MLSERVER_MODEL), encoding="utf-8")
    with (folder / "mlserver.log").open("wb") as log, on_cores([core]):
        process = subprocess.Popen([python.parent / "mlserver", "start", model], stdout=log, stderr=subprocess.STDOUT)
    try:
        target = f"127.0.0.1:{ports['grpc_port']}"
        _wait_until_ready(target, process, folder / "mlserver.log")
        yield target
    finally:
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)


@contextmanager
def _triton(repository: Path, cores: Sequence[int]) -> Iterator[str]:
    with ExitStack() as stack:
        with on_cores(cores):
            server = stack.enter_context(serve_triton(repository))
        yield server.target


@contextmanager
def _module(core: int, module: str, *arguments: str) -> Iterator[str]:
    """A Python module whose first line is `port N`."""
    with on_cores([core]):
        process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if not words:
            raise SystemExit(f"{module} did not start")
        try:
            yield f"127.0.0.1:{words[1]}"
        finally:
            process.terminate()


def _write_python_model(model: Path, source: str) -> None:
    """Triton's stub ignores PYTHONPATH: its environment's packages are made known in the model's own first lines."""
    (model / "1").mkdir(parents=True)
    known = f"import sys\nsys.path.insert(0, {str(packages())!r})\n"
    (model / "1" / "model.py").write_text(known + (_HERE / source).read_text(encoding="utf-8"), encoding="utf-8")


def write_ready_config(model: Path, backend: str) -> None:
    """For a model that gives ready arrays for texts: tensors in, tensors out."""
    _write_config(model, READY, backend, _READY_ROWS, ["vector"], {})


def _write_config(
    model: Path, name: str, backend: str, rows: int, outputs: Sequence[str], parameters: Mapping[str, object]
) -> None:
    declared = ", ".join(f"{{ {_OUTPUTS[output]} }}" for output in outputs)
    config = _CONFIG.format(name=name, backend=backend, rows=rows, outputs=declared)
    lines = [_PARAMETER.format(key, value) for key, value in parameters.items()]
    (model / "config.pbtxt").write_text(config + "".join(lines), encoding="utf-8")


def _wait_until_ready(target: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    ends_at = time.monotonic() + _START_TIMEOUT_S
    with grpc.insecure_channel(target) as channel:
        opened = grpc.channel_ready_future(channel)
        while time.monotonic() < ends_at and process.poll() is None:
            try:
                opened.result(timeout=0.5)
            except grpc.FutureTimeoutError:
                continue
            return
    raise SystemExit(f"MLServer did not start: {log.read_text(encoding='utf-8')[-1000:]}")


def trivec_embedding_ready(folder: Path, core: int) -> AbstractContextManager[str]:
    """Trivec with a model of embeddings whose engine returns ready arrays, tokenizer included; its address."""
    return _module(core, "benchmarks.ready_engine", str(folder / "embedding-ready"))
