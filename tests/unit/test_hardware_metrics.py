"""Triton's metrics of the machine: CPUs and memory, and GPUs through NVML."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TypeVar

import psutil
import pytest
from trivec_server.metrics import Metrics
from trivec_server.metrics.exposition import render
from trivec_server.metrics.hardware import CpuTime, GpuReadings, HostReadings

from tests.scraped import Scraped, read_scrape

T = TypeVar("T")

UUID = "GPU-8f3e7a52-3c1f-4b0e-9d27-1f2a3b4c5d6e"
OTHER_UUID = "GPU-00000000-0000-0000-0000-000000000001"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def read_host(host: HostReadings) -> Scraped:
    return read_scrape(render(host.families()).decode())


def test_the_cpus_utilization_is_the_busy_share_since_the_last_scrape() -> None:
    times: Iterator[CpuTime] = iter((CpuTime(10, 90), CpuTime(13, 91), CpuTime(13, 95)))
    clock = Clock()
    host = HostReadings(lambda: next(times), clock)
    clock.now += 4
    assert read_host(host)("nv_cpu_utilization") == 0.75
    clock.now += 4
    assert read_host(host)("nv_cpu_utilization") == 0


def test_scrapes_within_a_second_see_the_same_utilization() -> None:
    times = iter((CpuTime(0, 0), CpuTime(1, 1)))
    clock = Clock()
    host = HostReadings(lambda: next(times), clock)
    assert read_host(host)("nv_cpu_utilization") == 0
    clock.now += 1
    assert read_host(host)("nv_cpu_utilization") == 0.5
    clock.now += 0.5
    assert read_host(host)("nv_cpu_utilization") == 0.5


def test_clocks_that_stand_still_are_no_division_by_zero() -> None:
    clock = Clock()
    host = HostReadings(lambda: CpuTime(1, 1), clock)
    clock.now += 2
    assert read_host(host)("nv_cpu_utilization") == 0


def test_a_servers_scrape_has_the_machines_cpus_and_memory_as_gauges() -> None:
    scraped = read_scrape(Metrics().exposition().decode())
    names = ("nv_cpu_utilization", "nv_cpu_memory_total_bytes", "nv_cpu_memory_used_bytes")
    assert [scraped.kinds[name] for name in names] == ["gauge"] * 3
    assert 0 <= scraped("nv_cpu_utilization") <= 1
    assert scraped("nv_cpu_memory_total_bytes") == psutil.virtual_memory().total
    assert 0 < scraped("nv_cpu_memory_used_bytes") < scraped("nv_cpu_memory_total_bytes")


class NvmlFault(Exception):
    """As `pynvml.NVMLError`."""


class FakeNvml:
    """The module `pynvml` of a machine with one GPU. `energy_mj` is what it has used since its driver was loaded."""

    NVMLError = NvmlFault

    def __init__(self, energy_mj: int = 5_000_000) -> None:
        self.energy_mj = energy_mj
        self.silent: set[str] = set()

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        self._check("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 - NVML's name
        if uuid != UUID:
            raise NvmlFault("Not Found")
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802 - NVML's name
        return self._told("utilization", handle, SimpleNamespace(gpu=42, memory=7))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802 - NVML's name
        return self._told("memory", handle, SimpleNamespace(total=80 << 30, used=3 << 30, free=77 << 30))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802 - NVML's name
        return self._told("power", handle, 300_500)

    def nvmlDeviceGetPowerManagementLimit(self, handle: str) -> int:  # noqa: N802 - NVML's name
        return self._told("limit", handle, 700_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802 - NVML's name
        return self._told("energy", handle, self.energy_mj)

    def _told(self, what: str, handle: str, value: T) -> T:
        assert handle == "handle"
        self._check(what)
        return value

    def _check(self, what: str) -> None:
        if what in self.silent:
            raise NvmlFault("Not Supported")


def read_gpus(gpus: GpuReadings) -> Scraped:
    return read_scrape(render(gpus.families()).decode())


def refuse(warning: str) -> None:
    raise AssertionError(warning)


def test_a_gpus_series_have_tritons_names_units_and_label() -> None:
    nvml = FakeNvml()
    gpus = GpuReadings(lambda: (UUID,), refuse, lambda: nvml)
    read_gpus(gpus)
    nvml.energy_mj += 2_500
    scraped = read_gpus(gpus)
    assert {name: (kind, scraped(name, gpu_uuid=UUID)) for name, kind in scraped.kinds.items()} == {
        "nv_gpu_utilization": ("gauge", 0.42),
        "nv_gpu_memory_total_bytes": ("gauge", 80 << 30),
        "nv_gpu_memory_used_bytes": ("gauge", 3 << 30),
        "nv_gpu_power_usage": ("gauge", 300.5),
        "nv_gpu_power_limit": ("gauge", 700),
        "nv_energy_consumption": ("counter", 2.5),
    }


def test_energy_counts_from_the_first_scrape() -> None:
    assert read_gpus(GpuReadings(lambda: (UUID,), refuse, FakeNvml))("nv_energy_consumption", gpu_uuid=UUID) == 0


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    nvml = FakeNvml()
    nvml.silent = {"power", "energy"}
    scraped = read_gpus(GpuReadings(lambda: (UUID,), refuse, lambda: nvml))
    assert set(scraped.kinds) == {
        "nv_gpu_utilization",
        "nv_gpu_memory_total_bytes",
        "nv_gpu_memory_used_bytes",
        "nv_gpu_power_limit",
    }


def test_without_a_gpu_nvml_is_not_asked_for() -> None:
    assert not read_gpus(GpuReadings(lambda: (), refuse, lambda: refuse("loaded"))).kinds


def no_package() -> None:
    raise ModuleNotFoundError("No module named 'pynvml'")


def no_library() -> FakeNvml:
    nvml = FakeNvml()
    nvml.silent = {"init"}
    return nvml


@pytest.mark.parametrize(
    ("load", "words"),
    [(no_package, "pip install 'trivec[nvml]'"), (no_library, "NVML does not start: Not Supported")],
)
def test_gpus_that_cannot_be_read_are_one_warning(load: Callable[[], object], words: str) -> None:
    warnings: list[str] = []
    gpus = GpuReadings(lambda: (UUID,), warnings.append, load)
    assert not read_gpus(gpus).kinds
    assert not read_gpus(gpus).kinds
    (warning,) = warnings
    assert words in warning


def test_a_gpu_that_nvml_does_not_know_is_one_warning_and_hides_no_other() -> None:
    warnings: list[str] = []
    gpus = GpuReadings(lambda: (OTHER_UUID, UUID), warnings.append, FakeNvml)
    for _ in range(2):
        assert read_gpus(gpus).labels("nv_gpu_utilization") == [{"gpu_uuid": UUID}]
    (warning,) = warnings
    assert OTHER_UUID in warning


def test_the_real_package_tells_of_its_faults_as_the_fake_does() -> None:
    """Without the driver's library NVML does not start; with it, it knows no such GPU."""
    warnings: list[str] = []
    metrics = Metrics()
    metrics.watch_gpus(lambda: (OTHER_UUID,), warnings.append)
    assert b"nv_gpu_" not in metrics.exposition()
    (warning,) = warnings
    assert warning.startswith("the metrics lack nv_gpu_*")
    assert "trivec[nvml]" not in warning
