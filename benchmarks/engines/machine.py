"""The machine that a benchmark ran on, as its results say it. No host name."""

import importlib.metadata
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
_ARM_FLAGS = ("asimd", "sve", "bf16", "i8mm")
_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tokenizers", "grpcio", "protobuf")


def describe_machine(gpu: str | None = None) -> dict[str, Any]:
    """Processor, instructions that matter here, cores, memory, GPU, versions, date."""
    model, flags = _processor()
    described: dict[str, Any] = {
        "processor": model,
        "instructions": [flag for flag in (*_FLAGS, *_ARM_FLAGS) if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "date": datetime.now(UTC).date().isoformat(),
    }
    return described | ({"gpu": gpu} if gpu else {})


def file_stem(machine: dict[str, Any]) -> str:
    """A name for the results file: what the machine is."""
    name = machine.get("gpu") or f"{machine['processor']} {machine['cores']} cores"
    name = re.sub(r"\((R|TM)\)|CPU|@.*?GHz", " ", name, flags=re.IGNORECASE)
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))


def _processor() -> tuple[str, frozenset[str]]:
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields.get("model name", platform.machine()), frozenset(
        (fields.get("flags") or fields.get("Features") or "").split()
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
