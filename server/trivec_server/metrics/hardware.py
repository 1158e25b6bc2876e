"""Triton's series of the machine: `nv_cpu_*`, and `nv_gpu_*` where there are NVIDIA GPUs. Read at each scrape."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from trivec_server.metrics.exposition import Family, Sample

_MIN_INTERVAL_S = 1.0
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
_IDLE = ("idle", "iowait")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds that the machine's CPUs have worked and idled, all together, since it started."""

    busy_s: float
    idle_s: float


def read_cpu_time() -> CpuTime:
    """As of now."""
    times = psutil.cpu_times()
    return CpuTime(
        sum(float(getattr(times, name, 0.0)) for name in _BUSY), sum(float(getattr(times, name, 0.0)) for name in _IDLE)
    )


class HostReadings:
    """CPU and memory of the whole machine, as Triton reads them."""

    def __init__(
        self, read: Callable[[], CpuTime] = read_cpu_time, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._last = read()
        self._last_at = clock()
        self._utilization = 0.0

    def families(self) -> Iterator[Family]:
        """`nv_cpu_*`."""
        memory = psutil.virtual_memory()
        text = "The share of all CPUs' time in use, 0 to 1, since the last scrape (1 s at least)."
        yield Family("nv_cpu_utilization", "gauge", text, [Sample({}, self._measure_utilization())])
        yield Family("nv_cpu_memory_total_bytes", "gauge", "The machine's memory.", [Sample({}, memory.total)])
        used = memory.total - memory.available
        yield Family("nv_cpu_memory_used_bytes", "gauge", "Its memory in use.", [Sample({}, used)])

    def _measure_utilization(self) -> float:
        """Over a shorter time than a second the clock's ticks would be all that one sees."""
        if self._clock() - self._last_at >= _MIN_INTERVAL_S:
            last, self._last, self._last_at = self._last, self._read(), self._clock()
            busy_s, idle_s = self._last.busy_s - last.busy_s, self._last.idle_s - last.idle_s
            self._utilization = min(1.0, max(0.0, busy_s / (busy_s + idle_s))) if busy_s + idle_s > 0 else 0.0
        return self._utilization


@dataclass(frozen=True, slots=True)
class _GpuSeries:
    """One family, and how NVML's module gives its value of one GPU."""

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    read: Callable[[Any, Any], float]


_ENERGY = "nv_energy_consumption"
_GPU_SERIES = (
    _GpuSeries(
        "nv_gpu_utilization",
        "gauge",
        "The share of time in which the GPU was at work, 0 to 1.",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    _GpuSeries(
        "nv_gpu_memory_total_bytes",
        "gauge",
        "The GPU's memory.",
        lambda nvml, gpu: int(nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    ),
    _GpuSeries(
        "nv_gpu_memory_used_bytes",
        "gauge",
        "Its memory in use.",
        lambda nvml, gpu: int(nvml.nvmlDeviceGetMemoryInfo(gpu).used),
    ),
    _GpuSeries(
        "nv_gpu_power_usage",
        "gauge",
        "The power that the GPU draws, in watts.",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    _GpuSeries(
        "nv_gpu_power_limit",
        "gauge",
        "The most power that it may draw, in watts.",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1000,
    ),
    _GpuSeries(
        _ENERGY,
        "counter",
        "The energy that the GPU has taken since the first scrape, in joules.",
        lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000,
    ),
)


@dataclass(slots=True)
class _Gpu:
    """`energy_start_j` is what the driver's own count was at first."""

    labels: dict[str, str]
    handle: Any
    energy_start_j: float | None = None


def _load_nvml() -> Any:
    import pynvml  # noqa: PLC0415 - of the extra `nvml`; asked for only where there is a GPU

    return pynvml


class GpuReadings:
    """
    The GPUs that this process may use, read through NVML. What a GPU does not tell is left out. Not for several threads
    at a time.
    """

    def __init__(
        self, uuids: Callable[[], Sequence[str]], warn: Callable[[str], None], load_nvml: Callable[[], Any] = _load_nvml
    ) -> None:
        """`warn` is called at most once for each thing that hides GPUs, on the thread that scrapes."""
        self._uuids = uuids
        self._warn = warn
        self._load_nvml = load_nvml
        self._nvml: Any = None
        self._gpus: list[_Gpu] | None = None

    def families(self) -> Iterator[Family]:
        """`nv_gpu_*` and `nv_energy_consumption`; nothing without a GPU."""
        if self._gpus is None:
            self._gpus = self._open()
        for series in _GPU_SERIES:
            values = ((gpu.labels, self._value(series, gpu)) for gpu in self._gpus)
            samples = [Sample(labels, value) for labels, value in values if value is not None]
            yield Family(series.name, series.kind, series.text, samples)

    def _open(self) -> list[_Gpu]:
        uuids = self._uuids()
        if not uuids:
            return []
        try:
            self._nvml = self._load_nvml()
        except ImportError:
            self._warn("the metrics lack nv_gpu_*: the package nvidia-ml-py is missing; pip install 'trivec[nvml]'")
            return []
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            self._warn(f"the metrics lack nv_gpu_*: NVML does not start: {error}")
            return []
        return [gpu for uuid in uuids if (gpu := self._find(uuid)) is not None]

    def _find(self, uuid: str) -> _Gpu | None:
        try:
            return _Gpu({"gpu_uuid": uuid}, self._nvml.nvmlDeviceGetHandleByUUID(uuid))
        except self._nvml.NVMLError as error:
            self._warn(f"the metrics lack nv_gpu_* of {uuid}: {error}")
            return None

    def _value(self, series: _GpuSeries, gpu: _Gpu) -> float | None:
        try:
            value = float(series.read(self._nvml, gpu.handle))
        except self._nvml.NVMLError:
            # Old or virtual GPUs do not tell everything.
            return None
        if series.name != _ENERGY:
            return value
        if gpu.energy_start_j is None:
            gpu.energy_start_j = value
        return value - gpu.energy_start_j
