"""Figures that a test run prints even if everything passes."""

import sys

import pytest


def show(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Prints one line past pytest's capture."""
    with capsys.disabled():
        sys.stdout.write(f"\n{line}\n")
