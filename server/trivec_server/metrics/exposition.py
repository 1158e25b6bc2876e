"""
Metric families under names of their own choice, and how Prometheus reads them.

prometheus_client ends each counter's name in `_total`; Triton's counters have no such end, and who asks for them by
their names must find them. Hence these few lines, for the text format only: OpenMetrics forbids such counters.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format."""

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One series' value now."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one name. `text` is one line that says what they are."""

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    samples: Sequence[Sample]


def render(families: Iterable[Family]) -> bytes:
    """The families in the text format 0.0.4; one without samples is left out."""
    lines = []
    for family in families:
        if family.samples:
            lines.append(f"# HELP {family.name} {family.text}\n# TYPE {family.name} {family.kind}\n")
            lines += [f"{family.name}{_labels(sample.labels)} {_number(sample.value)}\n" for sample in family.samples]
    return "".join(lines).encode()


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = [f'{name}="{labels[name].translate(_ESCAPES)}"' for name in sorted(labels)]
    return f"{{{','.join(pairs)}}}"


def _number(value: float) -> str:
    """Whole numbers as they are, so that counters of microseconds lose no digit."""
    return str(int(value)) if isinstance(value, int) or value.is_integer() else repr(value)
