"""What this machine has that decides how fast an engine is: cores, instructions, GPUs. Imports no engine's library."""

import ctypes
import math
import uuid
from functools import cache
from pathlib import Path

import psutil

from trivec_server.control_groups import CGROUPS, OWN_CGROUP, groups_of, read_value


def usable_physical_cores() -> int:
    """Physical cores, no more than this process is allowed to run on, nor than the time that its container gets."""
    allowed = len(psutil.Process().cpu_affinity())
    quota = math.ceil(cpu_quota() or allowed)
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed, quota))


def cpu_quota(mount: Path = CGROUPS, own: Path = OWN_CGROUP) -> float | None:
    """
    The CPUs' worth of time that control groups give this process, the smallest of its groups; None: there is no limit.

    Linux, Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and cgroup-v1's `cpu.cfs_quota_us`.

    Args:
        mount: Where control groups are mounted.
        own: The file that names this process's groups, as /proc/self/cgroup.
    """
    quotas = [quota for group, is_v2 in groups_of("cpu", mount, own) if (quota := _quota(group, is_v2=is_v2))]
    return min(quotas, default=None)


def _quota(group: Path, *, is_v2: bool) -> float | None:
    if is_v2:
        quota, _, period = read_value(group / "cpu.max").partition(" ")
    else:
        quota, period = read_value(group / "cpu.cfs_quota_us"), read_value(group / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def threads_per_instance(intra_op_threads: int | None, instances: int) -> int:
    """The threads of one of several engine instances: as set, or its share of the physical cores, at least one."""
    return intra_op_threads or max(1, usable_physical_cores() // instances)


_CUDA_SUCCESS = 0


@cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices by instructions of its own: AVX512-BF16, AMX, or Arm's BF16."""
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def nvidia_gpu_count() -> int:
    """The GPUs that CUDA's driver shows to this process: those of CUDA_VISIBLE_DEVICES, if that is set."""
    driver = _cuda_driver()
    count = ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != _CUDA_SUCCESS:
        return 0
    return count.value


def nvidia_gpu_uuids() -> tuple[str, ...]:
    """The UUIDs of these GPUs as NVIDIA's tools write them, in CUDA's order."""
    driver = _cuda_driver()
    uuids = []
    for ordinal in range(nvidia_gpu_count()):
        device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        if (
            driver is not None
            and driver.cuDeviceGet(ctypes.byref(device), ordinal) == _CUDA_SUCCESS
            and driver.cuDeviceGetUuid(ctypes.byref(raw), device) == _CUDA_SUCCESS
        ):
            uuids.append(f"GPU-{uuid.UUID(bytes=bytes(raw))}")
    return tuple(uuids)


def _cuda_driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == _CUDA_SUCCESS else None


def _cpu_flags() -> frozenset[str]:
    """The instruction sets as Linux names them; none where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())
