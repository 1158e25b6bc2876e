"""Every part is measured once, and all figures are printed last."""

import re
from collections.abc import Iterator

import pytest

from benchmarks.cluster.figures import combine, is_timing, judge
from benchmarks.cluster.parts import SHORT, Parts
from benchmarks.cluster.ways import WAYS

_PARTS: dict[str, dict[str, float]] = {}
_FIGURES: dict[str, float] = {}
_AGAIN: list[str] = []


class Measured:
    """
    Figures, part by part: whoever asks first has the part measured.

    What depends on how busy the machine is, and is out of its bounds, is measured once more, and then counts; both
    values are printed. Nodes, proxy and clients share the cores here, so that is true of deadlines, and with them of
    calls that are lost, too. An answer that is wrong or out of date is never forgiven, nor a call that has no end.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def missed(self, part: str, names: str) -> list[str]:
        """What is out of its bounds among the figures of these names, of which the part has some."""
        found = self._part(part)
        chosen = {name: value for name, value in found.items() if re.fullmatch(names, name)}
        assert chosen, f"no figure is called {names}: {sorted(found)}"
        return list(judge(chosen).values())

    def _part(self, part: str) -> dict[str, float]:
        if part not in _PARTS:
            first = self._parts.measure(part)
            slow = [name for name in judge(first) if is_timing(name) or name.startswith("lost_")]
            _PARTS[part] = self._measure_again(part, first, slow) if slow else first
            _FIGURES.update(_PARTS[part])
        return _PARTS[part]

    def _measure_again(self, part: str, first: dict[str, float], names: list[str]) -> dict[str, float]:
        events = {name.rsplit("_", 1)[1] for name in names if name.startswith(("p99_", "lost_"))}
        events |= {"partition" for name in names if name.startswith("partition_")}
        second = self._parts.measure(part, sorted(events) if part in WAYS else None)
        _AGAIN.extend(
            f"measured twice: {name} was {first[name]:.4g}, then {second[name]:.4g}, which counts" for name in names
        )
        counted = combine([first, second])
        return {name: second[name] if name in names else counted[name] for name in first}


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    with Parts(SHORT, tmp_path_factory.mktemp("cluster")) as parts:
        yield Measured(parts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The hook of pytest."""
    for line in _AGAIN:
        terminalreporter.write_line(line)
    for name, value in combine([_FIGURES]).items():
        terminalreporter.write_line(f"{name} {value:.4g}")
