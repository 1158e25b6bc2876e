"""The installed packages against what Trivec's own metadata asks for, and the engines that they bring."""

import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trivec_server.doctor.finding import Finding, Status

_DISTRIBUTION = "trivec"
_PIP = f"{sys.executable} -m pip"
_EXTRA_PURPOSES = {
    "openvino": "the engine `openvino`",
    "torch": "the engine `pytorch`",
    "flagembedding": "the engine `flagembedding`, the reference",
    "mini": "`trivec pull m3-mini`",
    "progress": "progress bars",
    "parquet": "`trivec embed` to Parquet",
    "redis": "a response cache that servers share",
}
_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
"""Distributions that all bring the package `onnxruntime`, and overwrite each other's files."""

_ENGINE_PROBES = {
    "onnxruntime": "import onnxruntime as o; print(o.__version__, 'with', ', '.join(o.get_available_providers()))",
    "openvino": "import openvino as o; print(o.__version__, 'with', ', '.join(o.Core().available_devices))",
    "torch": "import torch as t; print(t.__version__, 'with', f'{t.cuda.device_count()} CUDA GPUs')",
}
"""By the package that each engine needs: what prints its version and devices."""

_NEEDED_ENGINE = "onnxruntime"
_PROBE_TIMEOUT_S = 120


def check_packages() -> list[Finding]:
    """Every package that serving needs, also those that packages need, is there in a version that suits."""
    walk = _Walk({}, {}, set())
    _walk(_DISTRIBUTION, "server", walk)
    if walk.faults:
        return list(walk.faults.values())
    direct = sorted({_name(requirement) for requirement in _requirements(_DISTRIBUTION, "server")})
    versions = ", ".join(f"{name} {walk.versions[name]}" for name in direct)
    return [Finding("packages", Status.OK, f"{len(walk.versions)} as required, among them {versions}")]


def check_extras() -> list[Finding]:
    """The extras that serving can do without: those whose packages are all there, and what the others are for."""
    absent = [
        extra
        for extra in _EXTRA_PURPOSES
        if any(_installed(_name(requirement)) is None for requirement in _own_requirements(_DISTRIBUTION, extra))
    ]
    fact = f"installed: {', '.join(extra for extra in _EXTRA_PURPOSES if extra not in absent) or 'none'}"
    for extra in absent:
        fact += f"; not installed: {extra} (for {_EXTRA_PURPOSES[extra]}): {_PIP} install 'trivec[{extra}]'"
    return [Finding("extras", Status.OK, fact)]


def check_engines() -> list[Finding]:
    """
    The engines' libraries can be imported. Each is tried in a process of its own: one that was built for another CPU
    ends the process.
    """
    wanted = [name for name in _ENGINE_PROBES if name == _NEEDED_ENGINE or _installed(name) is not None]
    return [*_onnxruntime_twins(), *(_probe(name, _ENGINE_PROBES[name]) for name in wanted)]


def _onnxruntime_twins() -> list[Finding]:
    names = {canonicalize_name(each.metadata["Name"] or "") for each in distributions()}
    twins = [name for name in _ONNXRUNTIMES if name in names]
    if len(twins) < 2:
        return []
    return [
        Finding(
            "engine onnxruntime",
            Status.FAIL,
            f"{' and '.join(twins)} are both installed and overwrite each other's files",
            f"{_PIP} uninstall -y {' '.join(twins)} && {_PIP} install onnxruntime",
        )
    ]


def _probe(engine: str, code: str) -> Finding:
    check = f"engine {engine}"
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and text
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(check, Status.FAIL, f"its import takes longer than {_PROBE_TIMEOUT_S} s", _reinstall(engine))
    if done.returncode == 0:
        return Finding(check, Status.OK, done.stdout.strip())
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        fact = f"its import ends with {name}: the package was built for another CPU, or is damaged"
        return Finding(check, Status.FAIL, fact, _reinstall(engine))
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return Finding(check, Status.FAIL, f"cannot be imported: {last}", _reinstall(engine))


def _reinstall(package: str) -> str:
    return f"{_PIP} install --force-reinstall --no-deps {package}"


@dataclass(frozen=True, slots=True)
class _Walk:
    """What a walk through requirements has come by: versions and faults by package, and (package, extra) pairs."""

    versions: dict[str, str]
    faults: dict[str, Finding]
    seen: set[tuple[str, str]]


def _walk(owner: str, extra: str, walk: _Walk) -> None:
    """Checks the requirements of `owner` and, in turn, theirs."""
    walk.seen.add((owner, extra))
    for requirement in _requirements(owner, extra):
        name = _name(requirement)
        installed = _installed(name)
        if installed is None:
            walk.faults.setdefault(name, _fault(owner, requirement, f"{name} is missing; {owner} needs it"))
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            fact = f"{name} {installed} is installed; {owner} needs {requirement.specifier}"
            walk.faults.setdefault(name, _fault(owner, requirement, fact))
        walk.versions[name] = installed
        for inner in requirement.extras or ("",):
            if (name, inner) not in walk.seen:
                _walk(name, inner, walk)


def _fault(owner: str, requirement: Requirement, fact: str) -> Finding:
    # For a requirement of its own, one command mends all.
    what = "trivec[server]" if owner == _DISTRIBUTION else f"{requirement.name}{requirement.specifier}"
    return Finding("packages", Status.FAIL, fact, f"{_PIP} install '{what}'")


def _requirements(owner: str, extra: str) -> list[Requirement]:
    """The requirements of a distribution with one of its extras ("": none), also by way of its other extras."""
    found: list[Requirement] = []
    pending, done = [extra], set[str]()
    while pending:
        chosen = pending.pop()
        done.add(chosen)
        for requirement in _own_requirements(owner, chosen, base=chosen == extra):
            if _name(requirement) == owner:
                pending += requirement.extras - done
            else:
                found.append(requirement)
    return found


def _own_requirements(owner: str, extra: str, *, base: bool = False) -> list[Requirement]:
    """The requirements written for this extra; with `base` those of the distribution itself as well."""
    parsed: Iterable[Requirement] = map(Requirement, _requires(owner))
    return [
        requirement
        for requirement in parsed
        if (requirement.marker is None and base)
        or (
            requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and (base or not requirement.marker.evaluate({"extra": ""}))
        )
    ]


def _requires(owner: str) -> list[str]:
    for name in _ONNXRUNTIMES if owner == "onnxruntime" else (owner,):
        try:
            return requires(name) or []
        except PackageNotFoundError:
            continue
    return []


def _installed(name: str) -> str | None:
    """The version of a distribution; for ONNX Runtime, of any that brings the package."""
    for candidate in _ONNXRUNTIMES if name == "onnxruntime" else (name,):
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    return None


def _name(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)
