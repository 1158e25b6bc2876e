"""What the PyTorch engine does to its process: the environment that torch reads, and memory that runs out."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from trivec_server.backends.graph.write import write_graph

from tests.graph_reference import LINEAR_HEADS, XLM_ROBERTA, ArraySource, random_tensors

pytestmark = pytest.mark.torch

NAMES = (
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "TORCHINDUCTOR_COMPILE_THREADS",
)

SHOW_ENVIRONMENT = f"""
import os, sys
import trivec_server.backends.pytorch
assert "torch" in sys.modules
print(*(os.environ.get(name) for name in {NAMES}))
"""

RUN_OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from trivec_server.backends.interface import EngineRequest, TokenBatch
from trivec_server.repository.engines import pytorch_engine
from trivec_server.types import InstanceKind, Mode

engine = pytorch_engine(EngineRequest(version_dir=Path(sys.argv[1]), kind=InstanceKind.CPU, precision="float32"))
text = lambda tokens: TokenBatch(np.arange(tokens) % 90 + 4, np.array([tokens]))
engine.run(text(64), Mode.HYBRID)
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 2 * 10**8, resource.RLIM_INFINITY))
try:
    engine.run(text(8192), Mode.HYBRID)
except MemoryError:
    print("full")
print(engine.run(text(64), Mode.HYBRID).dense.shape)
"""


def python(code: str, *arguments: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=kept | environment)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        ({}, "expandable_segments:True None PASSIVE None 1"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native None PASSIVE None 1"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "None backend:native PASSIVE None 1"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "expandable_segments:True None ACTIVE None 1"),
        ({"GOMP_SPINCOUNT": "10"}, "expandable_segments:True None None 10 1"),
        ({"TORCHINDUCTOR_COMPILE_THREADS": "8"}, "expandable_segments:True None PASSIVE None 8"),
    ],
)
def test_the_allocator_the_threads_and_the_compiler_are_configured_unless_the_user_did(
    environment: dict[str, str], seen: str
) -> None:
    assert python(SHOW_ENVIRONMENT, **environment) == seen


def test_a_batch_too_large_for_memory_is_a_memory_error_and_the_next_one_runs(tmp_path: Path) -> None:
    # One layer's inner activations of 8192 tokens take 512 MiB.
    spec = replace(XLM_ROBERTA, max_positions=8194, intermediate=16384)
    write_graph(tmp_path, spec, ArraySource(random_tensors(spec)), LINEAR_HEADS)

    assert python(RUN_OUT_OF_MEMORY, str(tmp_path)).split("\n") == ["full", "(1, 32)"]
