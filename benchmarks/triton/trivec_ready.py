"""
Ready arrays from Trivec: an engine of tensors that computes nothing, so that what is left is Trivec itself.

`python -m benchmarks.triton.trivec_ready REPOSITORY` makes a model for it in REPOSITORY and serves it.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trivec_server import lifecycle
from trivec_server.backends.tensor_interface import TensorEngine, TensorEngineInfo, TensorEngineRequest
from trivec_server.logs import configure_logs
from trivec_server.settings import ServeSettings
from trivec_server.types import TensorSpec

from benchmarks.triton.servers import READY, write_ready_config

DIMENSION = 1024
MAX_ROWS = 1024


class ReadyEngine:
    """Rows of an array made once."""

    def __init__(self) -> None:
        self._vectors = np.full((MAX_ROWS, DIMENSION), DIMENSION**-0.5, np.float32)

    @property
    def info(self) -> TensorEngineInfo:
        return TensorEngineInfo(
            engine="ready",
            device="cpu",
            inputs=(TensorSpec(name="text", datatype="BYTES", shape=(-1, 1)),),
            outputs=(TensorSpec(name="vector", datatype="FP32", shape=(-1, DIMENSION)),),
            symbols={},
        )

    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        return {"vector": self._vectors[: len(inputs["text"])]}

    def close(self) -> None:
        pass


def build_ready(request: TensorEngineRequest) -> TensorEngine:
    return ReadyEngine()


def main() -> None:
    repository = Path(sys.argv[1])
    version = repository / READY / "1"
    version.mkdir(parents=True)
    # The engine reads no file; a version has one.
    (version / "model.onnx").touch()
    write_ready_config(version.parent, "onnxruntime")
    configure_logs("warning", "text")
    settings = ServeSettings(model_repositories=(repository,), grpc_port=0, metrics_port=None, drain_pause_s=0)
    lifecycle.serve(
        settings,
        tensor_engines={"onnxruntime": build_ready},
        on_loaded=lambda started: print(f"port {started.grpc_port}", flush=True),
    )


if __name__ == "__main__":
    main()
