"""The machine and the packages that figures come from."""

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trivec_server.backends.hardware import cpu_has_bfloat16, nvidia_gpu_count, usable_physical_cores

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "FlagEmbedding", "transformers", "numpy")


def describe_machine() -> dict[str, str]:
    """Names of its parts to what they are."""
    machine = {
        "cpu": f"{_cpu_model()}, {usable_physical_cores()} cores{', bfloat16' if cpu_has_bfloat16() else ''}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
    }
    if nvidia_gpu_count():
        machine["gpu"] = f"{nvidia_gpu_count()} x {_gpu_model()}"
    return machine


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1] if found else platform.machine()


def _gpu_model() -> str:
    texts = [_read(path) for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    found = re.search(r"^Model:\s*(.+)$", "\n".join(texts), re.MULTILINE)
    return found[1] if found else "NVIDIA GPU"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
