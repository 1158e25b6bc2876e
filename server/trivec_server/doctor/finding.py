"""What a check found, and how it is shown."""

import enum
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class Status(enum.Enum):
    """OK: nothing to do. WARN: serving works, something else may not. FAIL: nothing would be served."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about one subject. `mend` is the command that puts right what is wrong."""

    check: str
    status: Status
    fact: str
    mend: str | None = None


def fails(findings: Iterable[Finding]) -> bool:
    """Whether serving would fail."""
    return any(finding.status is Status.FAIL for finding in findings)


def render_text(findings: Sequence[Finding]) -> str:
    """A line for each finding, with the mend below it, and a last line that sums up."""
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.status.value:<4}  {finding.check}: {_one_line(finding.fact)}")
        if finding.mend is not None:
            lines.append(f"      mend: {_one_line(finding.mend)}")
    return "\n".join([*lines, _summary(findings)])


def render_json(findings: Sequence[Finding]) -> str:
    """The same as one JSON object."""
    rows = [
        {"check": finding.check, "status": finding.status.value.lower(), "fact": finding.fact, "mend": finding.mend}
        for finding in findings
    ]
    return json.dumps({"serves": not fails(findings), "findings": rows}, ensure_ascii=False, indent=2)


def _summary(findings: Sequence[Finding]) -> str:
    failures = sum(finding.status is Status.FAIL for finding in findings)
    warnings = sum(finding.status is Status.WARN for finding in findings)
    said = f"{_count(failures, 'failure')} and {_count(warnings, 'warning')}"
    return f"`trivec serve` would fail: {said}" if failures else f"`trivec serve` can serve: {said}"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
