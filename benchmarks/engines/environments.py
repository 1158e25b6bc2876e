"""The peers' virtual environments: `.venv-peers/NAME`, made from the pins in `benchmarks/requirements/NAME.txt`."""

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.engines.process import ROOT, SystemFailed

ENVIRONMENTS = ROOT / ".venv-peers"
REQUIREMENTS = ROOT / "benchmarks" / "requirements"
_STAMP = "installed"
_INSTALL_TIMEOUT_S = 1800


def environment(name: str, *, may_install: bool = True) -> Path:
    """
    The Python of a peer's environment, which is made or brought up to date if need be.

    The pins are complete, so pip installs them as they are; torch alone is resolved, because its CPU build brings the
    least along.

    Raises:
        SystemFailed: it cannot be installed; says why.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    directory = ENVIRONMENTS / name
    python = directory / "bin" / "python"
    pins = requirements.read_text(encoding="utf-8")
    digest = hashlib.sha256(pins.encode()).hexdigest()
    stamp = directory / _STAMP
    if stamp.exists() and stamp.read_text(encoding="ascii") == digest:
        return python
    if not may_install:
        raise SystemFailed(f"not installed: {directory.name} is missing in {ENVIRONMENTS.name}")
    print(f"installing {name} into {directory.relative_to(ROOT)}", flush=True)
    _run(name, sys.executable, "-m", "venv", "--clear", str(directory))
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    torch = [line for line in pins.splitlines() if line.startswith("torch==")]
    if torch:
        _run(name, *install, *torch)
    _run(name, *install, "--no-deps", "-r", str(requirements))
    stamp.write_text(digest, encoding="ascii")
    return python


def _run(name: str, *command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise SystemFailed(f"{name}: installation took more than {_INSTALL_TIMEOUT_S} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise SystemFailed(f"not installed: {errors[0] if errors else f'pip ended with {done.returncode}'}"[:300])
