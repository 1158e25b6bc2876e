"""How much of the CPUs a container gets."""

from pathlib import Path

import pytest
from trivec_server.backends.hardware import cpu_quota


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def own_groups(directory: Path, text: str) -> Path:
    path = directory / "own"
    path.write_text(text)
    return path


def test_there_is_no_quota_where_nothing_says_so(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "missing") is None
    assert cpu_quota(tmp_path, own_groups(tmp_path, "0::/\n")) is None


@pytest.mark.parametrize(("limit", "cpus"), [("150000 100000", 1.5), ("max 100000", None)])
def test_a_container_has_the_quota_of_the_top_group_that_it_sees(
    tmp_path: Path, limit: str, cpus: float | None
) -> None:
    write(tmp_path / "cpu.max", f"{limit}\n")
    assert cpu_quota(tmp_path, own_groups(tmp_path, "0::/\n")) == cpus


def test_the_smallest_quota_of_the_groups_above_counts(tmp_path: Path) -> None:
    write(tmp_path / "a/cpu.max", "200000 100000\n")
    write(tmp_path / "a/b/cpu.max", "400000 100000\n")
    write(tmp_path / "other/cpu.max", "1000 100000\n")
    assert cpu_quota(tmp_path, own_groups(tmp_path, "0::/a/b\n")) == 2


def test_a_group_with_a_name_of_the_host_falls_back_to_the_top(tmp_path: Path) -> None:
    write(tmp_path / "cpu.max", "300000 100000\n")
    assert cpu_quota(tmp_path, own_groups(tmp_path, "0::/kubepods/pod1/x\n")) == 3


@pytest.mark.parametrize(("quota", "cpus"), [("50000", 0.5), ("-1", None)])
def test_the_first_version_of_control_groups(tmp_path: Path, quota: str, cpus: float | None) -> None:
    write(tmp_path / "cpu/x/cpu.cfs_quota_us", f"{quota}\n")
    write(tmp_path / "cpu/x/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(tmp_path, own_groups(tmp_path, "3:memory:/x\n4:cpu,cpuacct:/x\n")) == cpus
