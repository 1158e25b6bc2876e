"""The Makefile and its tools, on machines that lack something."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)


def write_python(path: Path, refuse: str) -> Path:
    """A Python that fails at programs with `refuse` in them, as one does that is too old or incomplete."""
    path.write_text(f'#!/bin/sh\ncase "$*" in *"{refuse}"*) exit 1 ;; esac\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def test_make_alone_lists_every_target() -> None:
    done = run("make")
    assert done.returncode == 0
    targets = re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^  make (\S+) ", done.stdout, re.MULTILINE) == targets


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    python = write_python(tmp_path / "python3", refuse="(3, 11)")
    done = run("tools/make_venv.sh", python, tmp_path / "venv")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: Trivec needs Python 3.11 or newer and {python} is older (Python 3.")
    assert not (tmp_path / "venv").exists()


def test_a_missing_venv_is_named_with_its_debian_package(tmp_path: Path) -> None:
    python = write_python(tmp_path / "python3", refuse="ensurepip")
    done = run("tools/make_venv.sh", python, tmp_path / "venv")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(f"apt-get install python3.{sys.version_info.minor}-venv")


def test_a_missing_python_is_named_with_its_debian_packages(tmp_path: Path) -> None:
    done = run("tools/make_venv.sh", tmp_path / "python3", tmp_path / "venv")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("apt-get install python3 python3-venv")


def test_an_environment_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(tmp_path / "gone")
    assert run("tools/make_venv.sh", sys.executable, tmp_path / "venv").returncode == 0
    assert run(tmp_path / "venv" / "bin" / "python", "-m", "pip", "--version").returncode == 0


def test_comparing_the_protocol_needs_a_commit() -> None:
    done = run("tools/check_breaking.sh", "no-such-tag")
    assert done.returncode == 1
    assert done.stderr.startswith("error: 'no-such-tag' is not a commit or tag")
