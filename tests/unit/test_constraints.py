"""The pins that make every installation of a commit the same."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
TORCH_EXTRAS = ("torch", "flagembedding", "bench")
"""What these need is in constraints-torch.txt only."""


def parsed(lines: list[str]) -> list[Requirement]:
    return [requirement for line in lines if (requirement := Requirement(line)).name != PROJECT["name"]]


REQUIREMENTS = parsed(
    [*PROJECT["dependencies"], *(line for extra in EXTRAS if extra not in TORCH_EXTRAS for line in EXTRAS[extra])]
)
TORCH_REQUIREMENTS = parsed([line for extra in TORCH_EXTRAS for line in EXTRAS[extra]])
PYTHONS = ("3.11", "3.12", "3.13")


def read_pins(name: str) -> dict[str, Version]:
    """The packages of a constraints file; a line is a comment, another file, or `name==version`."""
    pins: dict[str, Version] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        if line.startswith("-c "):
            pins |= read_pins(line.removeprefix("-c "))
            continue
        pinned = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        assert pinned, f"{name}: {line!r} is not name==version"
        pins[canonicalize_name(pinned[1])] = Version(pinned[2])
    return pins


@pytest.mark.parametrize("requirement", [*REQUIREMENTS, *TORCH_REQUIREMENTS], ids=str)
def test_a_requirement_is_pinned_to_a_version_that_suits_it(requirement: Requirement) -> None:
    file = "constraints-torch.txt" if requirement in TORCH_REQUIREMENTS else "constraints.txt"
    pin = read_pins(file)[canonicalize_name(requirement.name)]
    assert pin in requirement.specifier


@pytest.mark.parametrize("python", PYTHONS)
def test_what_the_requirements_need_in_turn_is_pinned_too(python: str) -> None:
    pins = read_pins("constraints.txt")
    pending = [(canonicalize_name(each.name), frozenset(each.extras)) for each in REQUIREMENTS]
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        name, extras = pending.pop()
        assert name in pins, f"{name} is not pinned: run `make pins`"
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for needed in map(Requirement, _requires(name)):
            environments = [
                {"extra": extra, "python_version": python, "python_full_version": f"{python}.0"}
                for extra in ("", *extras)
            ]
            if needed.marker is None or any(map(needed.marker.evaluate, environments)):
                pending.append((canonicalize_name(needed.name), frozenset(needed.extras)))


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        # Only for another Python: that it is pinned is all that can be told here.
        return []


@pytest.mark.parametrize("name", ["constraints-torch.txt", "constraints-stubs.txt", "constraints-audit.txt"])
def test_the_other_constraints_are_pins(name: str) -> None:
    assert read_pins(name)


def test_torch_and_the_reference_are_those_that_the_golden_files_are_from() -> None:
    pins = read_pins("constraints-torch.txt")
    assert str(pins["torch"]) == "2.13.0"
    assert str(pins["flagembedding"]) == "1.4.2"
