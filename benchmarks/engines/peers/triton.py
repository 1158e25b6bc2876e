"""
A real Triton server (the binary inside nvidia-pytriton) with its python backend, on loopback, and a client that sends
one text a request over gRPC, many at a time, the longest first: Triton batches what arrives together and does not sort.
"""

import os
import queue
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient import grpc as triton  # type: ignore[import-not-found, unused-ignore]

from benchmarks.engines.worker import Message, Started, end_with_parent, run_worker, started

_READY_TIMEOUT_S = 300.0
_CONFIG = """\
name: "bge-m3"
backend: "python"
max_batch_size: %(batch_size)d
input [ { name: "text", data_type: TYPE_STRING, dims: [ 1 ] } ]
output [
  { name: "dense", data_type: TYPE_FP32, dims: [ -1 ] },
  { name: "sparse_ids", data_type: TYPE_INT64, dims: [ -1 ] },
  { name: "sparse_weights", data_type: TYPE_FP32, dims: [ -1 ] },
  { name: "multi_vector", data_type: TYPE_FP32, dims: [ -1, -1 ] }
]
dynamic_batching { max_queue_delay_microseconds: 2000 }
instance_group [ { count: 1, kind: KIND_CPU } ]
parameters { key: "version_dir", value: { string_value: "%(version)s" } }
parameters { key: "max_tokens", value: { string_value: "%(max_tokens)d" } }
parameters { key: "threads", value: { string_value: "%(threads)d" } }
"""


class Triton:
    def __init__(self, options: Message) -> None:
        directory = Path(options["directory"])
        shutil.rmtree(directory, ignore_errors=True)
        model = directory / "models" / "bge-m3"
        (model / "1").mkdir(parents=True)
        source = Path(__file__).with_name("triton_model.py").read_text(encoding="utf-8")
        # The stub ignores PYTHONPATH: this environment's packages are made known in the model's own first lines.
        known = f"import sys\nsys.path.insert(0, {sysconfig.get_path('purelib')!r})\n"
        (model / "1" / "model.py").write_text(known + source, encoding="utf-8")
        (model / "config.pbtxt").write_text(_CONFIG % options)
        port = _free_port()
        self._server = _start_server(directory, port)
        self._client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        try:
            self._wait_until_ready(f"127.0.0.1:{port}")
        except BaseException:
            self._server.kill()
            raise

    def embed(self, texts: list[str]) -> object:
        return self._infer(texts, ("dense", "sparse_ids", "sparse_weights", "multi_vector"))

    def dense(self, texts: list[str]) -> Sequence[Sequence[float]]:
        return [result.as_numpy("dense")[0].tolist() for result in self._infer(texts, ("dense",))]

    def close(self) -> None:
        self._server.terminate()
        self._server.wait(60)

    def _infer(self, texts: list[str], outputs: Sequence[str]) -> list[Any]:
        answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
        wanted = [triton.InferRequestedOutput(name) for name in outputs]
        for index in sorted(range(len(texts)), key=lambda index: -len(texts[index])):
            text = triton.InferInput("text", [1, 1], "BYTES")
            text.set_data_from_numpy(np.array([[texts[index]]], np.object_))
            self._client.async_infer(
                "bge-m3",
                [text],
                lambda result, error, index=index: answers.put((index, result, error)),
                outputs=wanted,
            )
        results: list[Any] = [None] * len(texts)
        for _ in texts:
            index, result, error = answers.get()
            if error is not None:
                raise RuntimeError(f"Triton: {error}")
            for name in outputs:
                result.as_numpy(name)
            results[index] = result
        return results

    def _wait_until_ready(self, target: str) -> None:
        """Triton opens its port once its models are loaded; meanwhile its process may end."""
        ends_at = time.monotonic() + _READY_TIMEOUT_S
        with grpc.insecure_channel(target) as channel:
            opened = grpc.channel_ready_future(channel)
            while time.monotonic() < ends_at:
                if self._server.poll() is not None:
                    raise RuntimeError(f"tritonserver ended with {self._server.returncode}")
                try:
                    opened.result(timeout=1)
                except grpc.FutureTimeoutError:
                    continue
                if not self._client.is_model_ready("bge-m3"):
                    raise RuntimeError("tritonserver could not load the model")
                return
        raise RuntimeError(f"tritonserver was not ready after {_READY_TIMEOUT_S:.0f} s")


def _start_server(directory: Path, port: int) -> "subprocess.Popen[bytes]":
    """The wheel has the python backend and its stub for each Python apart: they are copied side by side."""
    packages = Path(sysconfig.get_path("purelib"))
    wheel = packages / "pytriton" / "tritonserver"
    python = directory / "backends" / "python"
    shutil.copytree(wheel / "backends" / "python", python)
    stub = wheel / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(stub, python, dirs_exist_ok=True)
    for program in (python / "triton_python_backend_stub", wheel / "bin" / "tritonserver"):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    return subprocess.Popen(
        [
            wheel / "bin" / "tritonserver",
            f"--model-repository={directory / 'models'}",
            f"--backend-directory={directory / 'backends'}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={port}",
        ],
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
        preexec_fn=end_with_parent,  # noqa: PLW1509 - nothing else runs in this process yet
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(options: Message) -> Started:
    settings = f"float32, python backend with ONNX Runtime, at most {options['batch_size']} a batch, longest first"
    server = Triton(options)
    return started(server, settings, ["nvidia-pytriton", "onnxruntime", "tritonclient"], server.close)


if __name__ == "__main__":
    run_worker(start)
