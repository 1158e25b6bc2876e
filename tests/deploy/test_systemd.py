"""deploy/systemd, as systemd itself reads it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.dockerfile import ROOT
from tests.deploy.manifests import parse, variables

UNITS = ROOT / "deploy" / "systemd"
ANALYZE = ROOT / ".systemd" / "bin" / "systemd-analyze"
PROGRAM = "/opt/trivec/bin/trivec"
SERVICES = ("trivec.service", "trivec-pull@.service")
EXPOSED_AT_MOST = 20
"""Of 100; a unit without any hardening has 96."""


def options(name: str) -> list[tuple[str, str]]:
    """All `Option=value` of a unit, in order."""
    lines = (UNITS / name).read_text(encoding="utf-8").splitlines()
    return [(key, value) for key, equals, value in (line.partition("=") for line in lines) if equals and key[0] != "#"]


def option(name: str, wanted: str) -> str:
    (value,) = [value for key, value in options(name) if key == wanted]
    return value


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units with a program that is there, and the drop-ins in their places."""
    for name in SERVICES:
        text = (UNITS / name).read_text(encoding="utf-8")
        (tmp_path / name.replace("@", "@m3-mini")).write_text(text.replace(PROGRAM, sys.executable), encoding="utf-8")
    drop_ins = tmp_path / "trivec.service.d"
    drop_ins.mkdir()
    for name in ("tls.conf", "gpu.conf"):
        shutil.copy(UNITS / name, drop_ins)
    return tmp_path


def analyze(*arguments: str | Path) -> str:
    done = subprocess.run([ANALYZE, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_takes_the_unit(installed: Path, name: str) -> None:
    analyze("verify", "--man=no", installed / name.replace("@", "@m3-mini"))


@pytest.mark.parametrize("name", SERVICES)
def test_the_unit_is_confined(installed: Path, name: str) -> None:
    shutil.rmtree(installed / "trivec.service.d")
    analyze("security", "--offline=true", f"--threshold={EXPOSED_AT_MOST}", installed / name.replace("@", "@m3-mini"))


def test_systemd_waits_longer_than_the_server_drains() -> None:
    defaults = parse(["serve"])
    assert int(option("trivec.service", "TimeoutStopSec")) > defaults["drain_pause_s"] + defaults["drain_grace_s"]


@pytest.mark.parametrize("name", SERVICES)
def test_the_command_is_one_that_there_is(name: str) -> None:
    program, *arguments = option(name, "ExecStart").split()
    assert program == PROGRAM
    assert parse(arguments)


@pytest.mark.parametrize("name", ["trivec.service", "tls.conf", "trivec.env"])
def test_the_variables_are_options_of_the_server_with_values_that_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (UNITS / name).read_text(encoding="utf-8")
    found = dict(re.findall(r"^#?(?:Environment=)?(TRIVEC_\w+)=(.*)$", text, re.MULTILINE))
    assert found
    assert set(found) <= variables()
    for key, value in found.items():
        monkeypatch.setenv(key, value)
    assert parse(["serve"])


def test_both_units_have_the_same_user_repository_and_journal() -> None:
    for each in ("User", "DynamicUser", "StateDirectory", "CacheDirectory", "LogNamespace"):
        assert option("trivec.service", each) == option("trivec-pull@.service", each)
    repositories = [
        [value for key, value in options(name) if value.startswith("TRIVEC_MODEL_REPOSITORY=")] for name in SERVICES
    ]
    assert repositories[0] == repositories[1]


def test_the_journal_s_configuration_is_that_of_the_units_namespace() -> None:
    journal = UNITS / f"journald@{option('trivec.service', 'LogNamespace')}.conf"
    assert {key for key, _ in options(journal.name)} >= {"SystemMaxUse", "MaxRetentionSec"}
