"""Peers in processes of their own: what they answer, and what becomes of their faults."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.engines.lengths import TextSet
from benchmarks.engines.process import SystemFailed, WorkerProcess
from benchmarks.engines.systems import PeerSystem

MODULE = "tests.scripted_peer"
TEXTS = TextSet("some", ("a", "bb", "ccc"), (3, 3, 3))


@contextmanager
def peer(tmp_path: Path, **options: object) -> Iterator[PeerSystem]:
    process = WorkerProcess(Path(sys.executable), MODULE, options, tmp_path / "log")
    try:
        yield PeerSystem(process)
    finally:
        process.close()


def test_a_peer_tells_its_settings_and_versions(tmp_path: Path) -> None:
    with peer(tmp_path) as system:
        assert system.settings == "scripted"
        assert list(system.versions) == ["numpy"]


def test_calls_are_timed_in_the_peer_whatever_it_prints(tmp_path: Path) -> None:
    with peer(tmp_path) as system:
        assert system.embed(TEXTS) > 0
        assert len(system.embed_each(TEXTS)) == 3
        assert system.dense(["a", "bb"]) == [[1.0, 0.0], [2.0, 0.0]]


def test_a_peer_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemFailed, match="ValueError: no such model"), peer(tmp_path, fails="no such model"):
        pass


def test_a_call_that_fails_says_why(tmp_path: Path) -> None:
    with peer(tmp_path, fails_at="bb") as system, pytest.raises(SystemFailed, match="RuntimeError: cannot embed bb"):
        system.embed(TEXTS)


def test_a_peer_that_dies_is_told_apart(tmp_path: Path) -> None:
    with peer(tmp_path, dies_at="ccc") as system, pytest.raises(SystemFailed, match="ended with 3"):
        system.embed(TEXTS)
