"""How much memory a container gets, and how much of it is in use."""

from pathlib import Path

import psutil
import pytest
from trivec_server.metrics import Metrics
from trivec_server.metrics.memory import MemoryUse, read_memory

from tests.scraped import read_scrape

MIB = 1024 * 1024


def group(directory: Path, limit: str, used: int, inactive_file: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n")


def own_groups(directory: Path, text: str = "0::/\n") -> Path:
    path = directory / "own"
    path.write_text(text)
    return path


@pytest.mark.parametrize("limit", [None, "max", str(2**62)])
def test_without_a_limit_below_the_machine_s_memory_it_is_the_machine_s(tmp_path: Path, limit: str | None) -> None:
    if limit is not None:
        group(tmp_path, limit, 5)
    memory = read_memory(tmp_path, own_groups(tmp_path))
    assert memory.limit == psutil.virtual_memory().total
    assert 0 < memory.share < 1


def test_a_container_has_the_limit_of_the_top_group_that_it_sees(tmp_path: Path) -> None:
    group(tmp_path, str(64 * MIB), 48 * MIB)
    memory = read_memory(tmp_path, own_groups(tmp_path, "0::/kubepods/pod1/x\n"))
    assert memory == MemoryUse(48 * MIB, 64 * MIB)
    assert memory.share == 0.75


def test_file_cache_that_is_not_in_active_use_is_not_in_use(tmp_path: Path) -> None:
    group(tmp_path, str(64 * MIB), 60 * MIB, inactive_file=40 * MIB)
    assert read_memory(tmp_path, own_groups(tmp_path)).used == 20 * MIB


def test_of_the_groups_above_the_one_with_the_least_room_counts(tmp_path: Path) -> None:
    group(tmp_path / "a", str(64 * MIB), 60 * MIB)
    group(tmp_path / "a/b", str(32 * MIB), 10 * MIB)
    group(tmp_path / "other", str(2 * MIB), 2 * MIB)
    assert read_memory(tmp_path, own_groups(tmp_path, "0::/a/b\n")) == MemoryUse(60 * MIB, 64 * MIB)


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    directory = tmp_path / "memory" / "x"
    directory.mkdir(parents=True)
    (directory / "memory.limit_in_bytes").write_text(f"{64 * MIB}\n")
    (directory / "memory.usage_in_bytes").write_text(f"{32 * MIB}\n")
    (directory / "memory.stat").write_text(f"inactive_file 3\ntotal_inactive_file {MIB}\n")
    memory = read_memory(tmp_path, own_groups(tmp_path, "3:cpu:/x\n4:memory:/x\n0::/\n"))
    assert memory == MemoryUse(31 * MIB, 64 * MIB)


def test_a_scrape_has_both() -> None:
    scraped = read_scrape(Metrics().exposition().decode())
    assert 0 < scraped("trivec_memory_used_bytes") < scraped("trivec_memory_limit_bytes")
