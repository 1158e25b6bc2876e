"""
Audits the pins of the constraints files: what the server installs is pinned, needed and under a licence that allows it,
and no pin has a known weakness.

    python tools/audit.py .venv-audit/bin/pip-audit

With the Python of the environment that `make check` uses. Where the service of advisories cannot be reached, the last
line says that nothing was compared with it, and the rest still counts.
"""

import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = ("constraints.txt", "constraints-torch.txt", "constraints-tritonclient.txt", "constraints-stubs.txt")
SERVED = ("server", "openvino", "mini", "progress", "parquet", "nvml", "redis", "otel")
"""The extras that a server is installed with."""
TORCH = ("torch", "flagembedding", "bench")
"""Those whose pins are in constraints-torch.txt."""
PYTHONS = ("3.11.0", "3.12.0", "3.13.0")
ALLOWED = re.compile(
    r"(The )?MIT(-0)?( Licen[sc]e)?( \(MIT\))?"
    r"|(OSI Approved :: )?Apache([ -](Software )?Licen[sc]e)?[ ,-]*(Version )?(2(\.0)?)?"
    r"|(\d-Clause )?BSD([ -][23]-Clause)?( Licen[sc]e)?"
    r"|0BSD|ISC|Zlib|CC0-1\.0|PSF-2\.0|MPL-2\.0",
    re.IGNORECASE,
)
"""Permissive licences, and MPL 2.0, which asks for changes of its own files only."""
KNOWN_TO_BE_WEAK = "requests==2.19.1"
"""A release with published advisories: a service that finds none for it has compared nothing."""
PIP_AUDIT = ("--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "5")


def main(pip_audit: str) -> int:
    """Prints what was found; 1 if something is wrong."""
    pins = read_pins(ROOT / "constraints.txt")
    extras = project()["optional-dependencies"]
    served = needed(SERVED, [platform.python_version()])
    everything = needed([extra for extra in extras if extra not in TORCH], PYTHONS) | {"setuptools"}
    faults = [*check_pins(pins, everything), *check_installed(pins, served), *check_licences(served)]
    print(f"audit: {len(pins)} pins in constraints.txt; the server installs {len(served)} packages")
    compared, weak = compare(pip_audit)
    for fault in (*faults, *weak):
        print(f"audit: {fault}")
    if compared:
        print(f"audit: {compared} pins of {len(FILES)} files compared with PyPI's advisories")
    else:
        print("audit: NOTHING WAS COMPARED WITH ADVISORIES: PyPI's service of them cannot be reached from here")
    return 1 if faults or weak else 0


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_pins(path: Path) -> dict[str, str]:
    """The pins of one file, by name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(";")[0].strip().split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): pinned for name, pinned in pairs}


def needed(extras: Iterable[str], pythons: Iterable[str]) -> set[str]:
    """All packages that some extras of this project bring on any of these Pythons, themselves and in turn."""
    pending = [(canonicalize_name(project()["name"]), frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        name, wanted = pending.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        environments = [
            {"extra": extra, "python_version": python.rpartition(".")[0], "python_full_version": python}
            for extra in ("", *wanted)
            for python in pythons
        ]
        pending += [
            (canonicalize_name(requirement.name), frozenset(requirement.extras))
            for requirement in requirements_of(name)
            if requirement.marker is None or any(map(requirement.marker.evaluate, environments))
        ]
    return {name for name, _ in seen} - {canonicalize_name(project()["name"])}


def requirements_of(name: str) -> list[Requirement]:
    """What a package needs, by its metadata; nothing where it is not installed, for another Python."""
    if name == canonicalize_name(project()["name"]):
        # What is installed may be older than the file.
        given = project()
        extras = given["optional-dependencies"]
        lines = [*given["dependencies"], *(f'{line}; extra == "{key}"' for key in extras for line in extras[key])]
        return [Requirement(line) for line in lines]
    try:
        return [Requirement(line) for line in requires(name) or []]
    except PackageNotFoundError:
        return []


def check_pins(pins: dict[str, str], everything: set[str]) -> Iterator[str]:
    for name in sorted(everything - set(pins)):
        yield f"{name} is needed and not pinned; run `make pins`"
    for name in sorted(set(pins) - everything):
        yield f"{name} is pinned in constraints.txt and nothing needs it; take the line out"


def check_installed(pins: dict[str, str], served: set[str]) -> Iterator[str]:
    for name in sorted(served):
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield f"{name} is needed by the server and not installed here"
            continue
        if name in pins and installed != pins[name]:
            yield f"{name} {installed} is installed here, and {pins[name]} is pinned; run `make check` with the pins"


def check_licences(served: set[str]) -> Iterator[str]:
    for name in sorted(served):
        try:
            licences = licences_of(name)
        except PackageNotFoundError:
            continue
        if not licences:
            yield f"{name} names no licence"
        for licence in licences:
            if not ALLOWED.fullmatch(licence):
                yield f"{name} is under {licence!r}, which is not among the licences allowed"


def licences_of(name: str) -> list[str]:
    """Its SPDX expression in parts, else its classifiers, else what it says of itself."""
    about = metadata(name)
    for expression in about.get_all("License-Expression") or []:
        return [part.strip(" ()") for part in re.split(r" (?:AND|OR) ", expression)]
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("Licen")]
    named = [str(text).splitlines()[0] for text in about.get_all("License") or [] if text]
    return classifiers or [part.strip() for line in named for part in re.split(r" (?:AND|OR) ", line)]


def compare(pip_audit: str) -> tuple[int, list[str]]:
    """How many pins were compared with advisories, and what was found."""
    probe = audited(pip_audit, [KNOWN_TO_BE_WEAK])
    if not any(each.get("vulns") for each in probe):
        return 0, []
    found: list[str] = []
    compared = 0
    for file in FILES:
        pins = read_pins(ROOT / file)
        for each in audited(pip_audit, [f"{name}=={pinned}" for name, pinned in pins.items()]):
            compared += "vulns" in each
            found += [
                f"{file}: {each['name']} {each['version']} has {weakness['id']}; mended in "
                f"{', '.join(weakness['fix_versions']) or 'no release yet'}"
                for weakness in each.get("vulns", [])
            ]
    return compared, found


def audited(pip_audit: str, pins: list[str]) -> list[dict[str, Any]]:
    """What pip-audit says of each; nothing where it could not ask."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "requirements.txt"
        path.write_text("\n".join(pins) + "\n", encoding="utf-8")
        done = subprocess.run(
            [pip_audit, *PIP_AUDIT, "--requirement", str(path)], capture_output=True, text=True, check=False
        )
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return []
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
