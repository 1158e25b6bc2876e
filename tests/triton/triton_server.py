"""A real Triton server in a process of its own: the binary and the python backend that `.venv-triton` holds."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc

from tests.ending import end
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-triton"
START_TIMEOUT_S = 120.0

_READY = b"\x08\x01"
"""ServerReadyResponse with `ready`."""

_EAGER = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
_LIBRARY_PATH = 'import sysconfig; print(sysconfig.get_path("purelib")); print(sysconfig.get_config_var("LIBDIR"))'


@dataclass(frozen=True)
class TritonProcess:
    """A running tritonserver. `metrics_port` serves Triton's metrics."""

    process: "subprocess.Popen[bytes]"
    target: str
    metrics_port: int
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")


def packages() -> Path:
    """The site-packages of Triton's environment: its models find NumPy and others there."""
    return _installation()[0]


@contextmanager
def serve_triton(
    repository: Path,
    *flags: str,
    control_mode: Literal["none", "poll", "explicit"] = "none",
    log_path: Path | None = None,
) -> Iterator[TritonProcess]:
    """
    tritonserver on free ports until the block ends; yields once it says that it is ready.

    `log_path` defaults to a file beside the repository.
    """
    site, libraries = _installation()
    grpc_port, metrics_port = free_ports(2)
    log_path = log_path or repository.parent / f"{repository.name}-triton.log"
    command = [
        str(site / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={ENVIRONMENT / 'triton' / 'backends'}",
        f"--model-control-mode={control_mode}",
        *("--allow-http=false", "--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"),
        *("--metrics-address=127.0.0.1", f"--metrics-port={metrics_port}"),
        # A failed load leaves something that Triton waits for in vain, by default for 30 s.
        "--exit-timeout-secs=1",
        *flags,
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{site / 'nvidia_pytriton.libs'}:{libraries}"}
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    server = TritonProcess(process, f"127.0.0.1:{grpc_port}", metrics_port, log_path)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        end(process)


def _installation() -> tuple[Path, str]:
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "triton").exists():
        raise FileNotFoundError(f"{ENVIRONMENT.name} is not installed: make {ENVIRONMENT.name}/.ready")
    told = subprocess.run([python, "-c", _LIBRARY_PATH], capture_output=True, text=True, check=True).stdout.split("\n")
    return Path(told[0]), told[1]


def _wait_until_ready(server: TritonProcess) -> None:
    """Triton opens its port once its models are loaded; meanwhile its process may end."""
    ends_at = time.monotonic() + START_TIMEOUT_S
    with grpc.insecure_channel(server.target, options=_EAGER) as channel:
        ask_ready: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/inference.GRPCInferenceService/ServerReady"
        )
        opened = grpc.channel_ready_future(channel)
        while time.monotonic() < ends_at:
            if server.process.poll() is not None:
                raise AssertionError(f"tritonserver ended with {server.process.returncode}: {server.log}")
            try:
                opened.result(timeout=0.1)
            except grpc.FutureTimeoutError:
                continue
            assert ask_ready(b"", timeout=START_TIMEOUT_S) == _READY, f"Triton is not ready: {server.log}"
            return
    raise AssertionError(f"tritonserver was not ready after {START_TIMEOUT_S:.0f} s: {server.log}")
