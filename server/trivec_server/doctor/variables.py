"""The environment variables named TRIVEC_*."""

import difflib
import os
import re
from dataclasses import dataclass

from trivec_server.doctor.finding import Finding, Status

_PREFIX = "TRIVEC_"
_KUBERNETES = re.compile(r"TRIVEC_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")
"""What Kubernetes sets in a pod for a Service whose name begins with `trivec`."""


@dataclass(frozen=True, slots=True)
class Variables:
    """The variables that the commands know, and what `trivec serve` has against the values of those that are set."""

    known: frozenset[str]
    faults: tuple[tuple[str, str], ...]


def check_variables(variables: Variables) -> list[Finding]:
    """Those that are set: known, spelled as the commands know them, with values that `trivec serve` takes."""
    findings = [
        Finding("environment", Status.FAIL, f"{name}: {fault}", f"unset {name}") for name, fault in variables.faults
    ]
    given = sorted(name for name in os.environ if name.startswith(_PREFIX))
    for name in given:
        if name not in variables.known and not _KUBERNETES.fullmatch(name):
            close = difflib.get_close_matches(name, variables.known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "; `trivec serve --help` has those there are"
            findings.append(Finding("environment", Status.WARN, f"{name} is not known{hint}", f"unset {name}"))
    if findings:
        return findings
    known = [f"{name}={_shown(name)}" for name in given if name in variables.known]
    return [Finding("environment", Status.OK, ", ".join(known) or "no TRIVEC_* variable is set")]


def _shown(name: str) -> str:
    """The variable's value, if it is fit to be shown."""
    value = os.environ[name]
    return "..." if name.endswith("_PASSWORD") or "password=" in value else value
