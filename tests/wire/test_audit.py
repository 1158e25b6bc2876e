"""The audit of pinned packages, with a pip-audit in plain sight that answers as the test says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).parents[2] / "tools" / "audit.py"
KNOWN = "requests==2.19.1"
WEAK = {"id": "PYSEC-1", "fix_versions": ["9.9"]}


def audit(tmp_path: Path, weak: tuple[str, ...], *, answers: bool = True) -> "subprocess.CompletedProcess[str]":
    """Runs it. `weak` are the packages that the service knows weaknesses of; without an answer it knows none at all."""
    program = tmp_path / "pip-audit"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "pins = [line.strip().split('==') for line in open(sys.argv[-1])]\n"
        f"weak, weakness, answers = {json.dumps(weak)}, {json.dumps(WEAK)}, {answers}\n"
        "found = lambda name, pin: [weakness] if {name, name + '==' + pin} & set(weak) else []\n"
        "rows = [{'name': name, 'version': pin, 'vulns': found(name, pin)} for name, pin in pins]\n"
        "skipped = [{'name': name, 'skip_reason': 'not found'} for name, pin in pins]\n"
        "print(json.dumps({'dependencies': rows if answers else skipped}))\n"
    )
    program.chmod(0o755)
    return subprocess.run(
        [sys.executable, str(AUDIT), str(program)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_service_that_cannot_be_asked_is_said_plainly(tmp_path: Path) -> None:
    done = audit(tmp_path, (), answers=False)
    assert done.stdout.splitlines()[-1].startswith("audit: NOTHING WAS COMPARED WITH ADVISORIES")
    assert done.returncode == 0, done.stdout


def test_a_service_that_finds_nothing_in_a_weak_release_has_compared_nothing(tmp_path: Path) -> None:
    assert "NOTHING WAS COMPARED" in audit(tmp_path, ()).stdout


def test_a_pin_with_an_advisory_fails_with_the_release_that_mends_it(tmp_path: Path) -> None:
    done = audit(tmp_path, (KNOWN, "grpcio"))
    assert done.returncode == 1
    assert "constraints.txt: grpcio" in done.stdout
    assert "has PYSEC-1; mended in 9.9" in done.stdout


def test_pins_without_advisories_pass_and_are_counted(tmp_path: Path) -> None:
    done = audit(tmp_path, (KNOWN,))
    assert done.returncode == 0, done.stdout
    assert "compared with PyPI's advisories" in done.stdout


@pytest.fixture
def module() -> Any:
    """The program's own functions, which are not in a package."""
    from importlib.util import module_from_spec, spec_from_file_location  # noqa: PLC0415 - for this alone

    spec = spec_from_file_location("audit", AUDIT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_pin_that_nothing_needs_and_a_need_without_a_pin_are_named(module: Any) -> None:
    faults = list(module.check_pins({"grpcio": "1", "leftpad": "1"}, {"grpcio", "numpy"}))
    assert faults == [
        "numpy is needed and not pinned; run `make pins`",
        "leftpad is pinned in constraints.txt and nothing needs it; take the line out",
    ]


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("Apache Software License", True),
        ("BSD-3-Clause", True),
        ("3-Clause BSD License", True),
        ("GPL-3.0", False),
        ("AGPL-3.0-only", False),
        ("Proprietary", False),
    ],
)
def test_licences_that_bind_the_server_are_not_allowed(module: Any, licence: str, *, allowed: bool) -> None:
    assert bool(module.ALLOWED.fullmatch(licence)) is allowed
