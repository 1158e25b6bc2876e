"""The machine: Python, the CPU and memory, with the limits that a container sets."""

import os
import platform
import sys
from importlib.metadata import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

from trivec_server.doctor.finding import Finding, Status
from trivec_server.repository.space import format_bytes

_CGROUP = Path("/sys/fs/cgroup")
_PROCESS_BYTES = 300_000_000
"""Resident memory of a server without a model, rounded up."""

_X86_FEATURES = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "AVX-512 VNNI": ("avx512_vnni",),
    "AVX-512 BF16": ("avx512_bf16",),
    "AMX": ("amx_bf16", "amx_int8"),
}
_ARM_FEATURES = {"NEON": ("asimd",), "DOTPROD": ("asimddp",), "SVE": ("sve",), "BF16": ("bf16",), "I8MM": ("i8mm",)}


def check_python() -> list[Finding]:
    """The interpreter's version against what the package asks for."""
    wanted = metadata("trivec")["Requires-Python"]
    found = platform.python_version()
    if found not in SpecifierSet(wanted, prereleases=True):
        return [
            Finding(
                "python",
                Status.FAIL,
                f"{found} at {sys.executable}; Trivec needs {wanted}",
                "make setup PYTHON=python3.12, with the name of a newer Python",
            )
        ]
    return [Finding("python", Status.OK, f"{found} at {sys.executable}")]


def check_cpu() -> list[Finding]:
    """The CPU's vector instructions and the cores that this process may use."""
    cpuinfo = _read(Path("/proc/cpuinfo")) or ""
    cores = len(os.sched_getaffinity(0))
    return [describe_cpu(cpuinfo, cores, platform.machine()), *limit_cpu(_read(_CGROUP / "cpu.max"), cores)]


def describe_cpu(cpuinfo: str, cores: int, machine: str) -> Finding:
    """What `/proc/cpuinfo` says of the first processor, for a `machine` such as `x86_64`."""
    lines = cpuinfo.split("\n\n", maxsplit=1)[0].splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    is_x86 = machine in ("x86_64", "AMD64")
    known = _X86_FEATURES if is_x86 else _ARM_FEATURES
    present = [name for name, needed in known.items() if flags.issuperset(needed)]
    absent = [name for name in known if name not in present]
    model = fields.get("model name", machine)
    fact = f"{model}, {cores} usable core{'' if cores == 1 else 's'}"
    if not flags:
        return Finding("cpu", Status.OK, f"{fact}; its instruction sets are not known")
    fact += f", {', '.join(present) or 'no vector instructions'}" + (f"; no {', '.join(absent)}" if absent else "")
    if is_x86 and "AVX2" not in present:
        return Finding("cpu", Status.WARN, f"{fact}: many times slower than a CPU with AVX2", "use a CPU with AVX2")
    return Finding("cpu", Status.OK, fact)


def limit_cpu(cpu_max: str | None, cores: int) -> list[Finding]:
    """What a cgroup's `cpu.max` (microseconds in a period, or `max`; and the period) leaves of the cores."""
    quota_us, _, period_us = (cpu_max or "max").strip().partition(" ")
    if quota_us == "max":
        return []
    allowed = int(quota_us) / int(period_us)
    if allowed >= cores:
        return []
    fact = f"the container may use {allowed:.1f} of {cores} cores: more threads than that wait for each other"
    threads = max(1, int(allowed))
    mend = f'in config.pbtxt: parameters {{ key: "intra_op_threads" value {{ string_value: "{threads}" }} }}'
    return [Finding("cpu limit", Status.WARN, fact, mend)]


def check_memory(model_bytes: int) -> list[Finding]:
    """Memory against what the models to be served need, `model_bytes`."""
    total, available = _memory_bytes(_read(Path("/proc/meminfo")) or "")
    limit = (_read(_CGROUP / "memory.max") or "max").strip()
    if limit != "max":
        used = int(_read(_CGROUP / "memory.current") or 0)
        total, available = min(total, int(limit)), min(available, int(limit) - used)
    return [judge_memory(total, available, model_bytes)]


def judge_memory(total: int, available: int, model_bytes: int) -> Finding:
    """The finding for memory of `total` bytes, of which `available` are free now."""
    needed = _PROCESS_BYTES + model_bytes
    fact = (
        f"serving takes about {format_bytes(needed)}; {format_bytes(total)} in all, {format_bytes(available)} available"
    )
    if needed > total:
        mend = "serve fewer models with --load-model, or fewer instances (instance_group.count in config.pbtxt)"
        return Finding("memory", Status.FAIL, fact, mend)
    if needed > available:
        return Finding("memory", Status.WARN, fact, "stop what takes it: ps -eo pid,rss,comm --sort=-rss | head")
    return Finding("memory", Status.OK, fact)


def _memory_bytes(meminfo: str) -> tuple[int, int]:
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in meminfo.splitlines())}
    return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
