"""What a scrape of `/metrics` holds, read strictly."""

import re
from dataclasses import dataclass, field

_SERIES = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)')
_UNESCAPE = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


@dataclass
class Scraped:
    """`kinds` by the families' names, `values` by the series' names and their sorted labels."""

    kinds: dict[str, str] = field(default_factory=dict)
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)

    def __call__(self, name: str, **labels: str) -> float:
        """The value of a series that must be there."""
        return self.values[name, tuple(sorted(labels.items()))]

    def get(self, name: str, **labels: str) -> float | None:
        """The value of a series, if it is there."""
        return self.values.get((name, tuple(sorted(labels.items()))))

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of every series of this name."""
        return [dict(labels) for found, labels in self.values if found == name]


def read_scrape(text: str) -> Scraped:
    """Fails on a line that is none, on a family that comes twice, and on a series that does."""
    scraped = Scraped()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in scraped.kinds, f"{name} comes twice"
            scraped.kinds[name] = kind
        elif not line.startswith("# HELP "):
            found = _SERIES.fullmatch(line)
            assert found, f"no series: {line}"
            labels = _LABEL.findall(found["labels"] or "")
            key = found["name"], tuple(sorted((name, _unescaped(value)) for name, value in labels))
            assert key not in scraped.values, f"{key} comes twice"
            scraped.values[key] = float(found["value"])
    return scraped


def _unescaped(value: str) -> str:
    return re.sub(r"\\.", lambda escape: _UNESCAPE[escape[0]], value)
