"""Pictures of a benchmark's results, as SVG, if matplotlib is installed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.engines.report import PICTURES, called_directly, cost_per_million
from benchmarks.engines.results import Results


def write_plots(results: Results, directory: Path, stem: str) -> list[Path]:
    """Throughput by length, latency by load, cost per million tokens; nothing without matplotlib."""
    if find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed")
        return []
    written = []
    for name, draw in zip(PICTURES, (_lengths, _load, _cost), strict=True):
        path = directory / f"{stem}-{name}.svg"
        if draw(results, path):
            written.append(path)
    return written


def _lengths(results: Results, path: Path) -> bool:
    if not results.lengths:
        return False
    with _axes(path, "tokens a text", "tokens per second") as axes:
        for name, points in _by_system(results.lengths):
            axes.plot([each.tokens for each in points], [each.tokens_per_s for each in points], "o-", label=name)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.legend()
    return True


def _load(results: Results, path: Path) -> bool:
    if not results.load:
        return False
    with _axes(path, "short queries per second", "latency in ms") as axes:
        for name, points in _by_system(results.load):
            rates = [each.texts_per_s for each in points]
            axes.plot(rates, [each.p50_s * 1000 for each in points], "o-", label=f"{name}, median")
            axes.plot(rates, [each.p99_s * 1000 for each in points], "o--", label=f"{name}, 99 %")
            for each in points:
                axes.annotate(str(each.clients), (each.texts_per_s, each.p99_s * 1000))
        axes.set_ylim(bottom=0)
        axes.legend(title="the numbers are clients")
    return True


def _cost(results: Results, path: Path) -> bool:
    measured = [(each.name, each.tokens_per_s) for each in results.systems if not called_directly(each.name)]
    costs = [(name, cost_per_million(results.price_per_hour, rate)) for name, rate in measured if rate]
    if not costs:
        return False
    label = f"{results.currency} per million tokens, mixed corpus, at {results.price_per_hour:g} an hour"
    with _axes(path, label, "") as axes:
        costs.sort(key=lambda item: -item[1])
        bars = axes.barh([name for name, _ in costs], [cost for _, cost in costs])
        axes.bar_label(bars, fmt="%.2g", padding=2)
        axes.margins(x=0.12)
    return True


@contextmanager
def _axes(path: Path, x_label: str, y_label: str) -> Iterator[Any]:
    """Axes whose picture is written when the block ends. The same results give the same file."""
    matplotlib = import_module("matplotlib")
    matplotlib.use("svg")
    with matplotlib.rc_context({"svg.hashsalt": "trivec", "svg.fonttype": "none", "font.size": 9}):
        pyplot = import_module("matplotlib.pyplot")
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(visible=True, alpha=0.3)
        yield axes
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _by_system(points: Iterable[Any]) -> Iterator[tuple[str, list[Any]]]:
    for name, group in groupby(points, key=lambda each: each.system):
        yield name, list(group)
