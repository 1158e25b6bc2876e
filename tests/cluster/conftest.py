"""Every part is measured once, and all figures are printed last."""

from collections.abc import Iterator

import pytest

from benchmarks.cluster.figures import combine
from benchmarks.cluster.parts import SHORT, Parts

_FIGURES: dict[str, float] = {}


class Measured:
    """Figures, part by part: whoever asks first has the part measured."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._found: dict[str, dict[str, float]] = {}

    def part(self, name: str) -> dict[str, float]:
        """The figures of one part."""
        if name not in self._found:
            self._found[name] = self._parts.measure(name)
            _FIGURES.update(self._found[name])
        return self._found[name]


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    with Parts(SHORT, tmp_path_factory.mktemp("cluster")) as parts:
        yield Measured(parts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The hook of pytest."""
    for name, value in combine([_FIGURES]).items():
        terminalreporter.write_line(f"{name} {value:.4g}")
