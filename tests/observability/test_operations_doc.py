"""
docs/operations.md as a reader follows it: every command block, top to bottom, in one shell.

What differs from a reader's machine:

- The directory is an empty one with `deploy` in it; `trivec` is that of the environment that runs these tests.
- The ports 8001, 8002, 8011 and 8012 may be taken: free ones stand in their place.
- Servers drain without a pause: no balancer has to see it.
- Where there is no curl, a few lines of Python do what this page asks of it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import yaml

from tests.observability.monitoring import BINARIES, DEPLOY, ROOT
from tests.ports import free_ports

DOCUMENT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
PORTS = ("8001", "8002", "8011", "8012")
TIMEOUT_S = 400
CURL = f"""\
#!{sys.executable}
import sys, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[-1]).read().decode(), end="")
except OSError as error:
    sys.exit(str(error))
"""
_MARK = "== block "


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """What each block printed, by its first line."""
    folder = tmp_path_factory.mktemp("operations")
    (folder / "deploy").symlink_to(DEPLOY)
    script = "".join(f"echo '{_MARK}{number}'\n{block}" for number, block in enumerate(BLOCKS))
    for documented, free in zip(PORTS, free_ports(len(PORTS)), strict=True):
        script = re.sub(rf"\b{documented}\b", str(free), script)
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-e", "-u", "-o", "pipefail", "-c", script],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        code = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    text = output.read_text(encoding="utf-8")
    if code:
        end_nodes(folder)
        logs = "".join(log.read_text(encoding="utf-8") for log in folder.glob("fleet/*.log"))
        raise AssertionError(f"it ended with {code}: {text}{logs}")
    parts = re.split(rf"^{_MARK}\d+\n", text, flags=re.MULTILINE)[1:]
    yield {block.splitlines()[0]: part for block, part in zip(BLOCKS, parts, strict=True)}
    assert not (folder / "fleet").exists()


def environment(folder: Path) -> Mapping[str, str]:
    """A reader's shell, with `trivec`, Prometheus' tools and curl to be found."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "trivec").write_text(f'#!/bin/sh\nexec {sys.executable} -m trivec_server "$@"\n', encoding="utf-8")
    if shutil.which("curl") is None:
        (programs / "curl").write_text(CURL, encoding="utf-8")
    for program in programs.iterdir():
        program.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TRIVEC_")}
    kept["TRIVEC_DRAIN_PAUSE_S"] = "0"
    return {**kept, "PATH": os.pathsep.join([str(programs), str(BINARIES), kept["PATH"]])}


def end_nodes(folder: Path) -> None:
    """Ends what blocks have started and not ended."""
    for file in folder.glob("fleet/*.pid"):
        if psutil.pid_exists(pid := int(file.read_text(encoding="ascii"))):
            os.kill(pid, signal.SIGKILL)


def test_two_nodes_serve_and_answer(printed: Mapping[str, str]) -> None:
    assert printed["mkdir -p fleet"].count("SERVING") >= 2
    assert '"dense"' in printed["mkdir -p fleet"]


def test_a_node_tells_its_health_models_and_series(printed: Mapping[str, str]) -> None:
    told = printed["trivec health --target 127.0.0.1:8001"]
    assert 'trivec_model_ready{model="m3-mini",version="1"} 1.0' in told
    assert "trivec_queued_tokens" in told


def test_a_failed_request_is_found_by_its_id(printed: Mapping[str, str]) -> None:
    (block,) = [block for first, block in printed.items() if "max-tokens" in first]
    found = re.search(r"\(request (\S+)\)$", block, re.MULTILINE)
    assert found
    (line,) = [line for line in block.splitlines() if line.startswith("{")]
    assert json.loads(line)["request_id"] == found[1]


def test_the_speed_of_an_engine_can_be_read(printed: Mapping[str, str]) -> None:
    (block,) = [block for first, block in printed.items() if "seq 50" in first]
    found = re.search(r"^tokens/s ([\d.]+)", block, re.MULTILINE)
    assert found
    assert float(found[1]) > 0


def test_a_model_is_upgraded_and_rolled_back_on_both_nodes(printed: Mapping[str, str]) -> None:
    rolled_back = printed["cp fleet/models/m3-mini/config.pbtxt fleet/config.before"]
    assert len(re.findall(r"1 +READY", rolled_back)) == 2


def test_every_block_printed_no_error_of_a_shell(printed: Mapping[str, str]) -> None:
    assert not [part for part in printed.values() if re.search(r"command not found|No such file", part)]


def test_the_rules_become_resources_of_the_prometheus_operator(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(DEPLOY)
    (tmp_path / "fleet").mkdir()
    (block,) = [block for block in BLOCKS if "PrometheusRule" in block]
    subprocess.run(["bash", "-e", "-u", "-o", "pipefail", "-c", block], cwd=tmp_path, check=True)
    made = list(yaml.safe_load_all((tmp_path / "fleet" / "prometheus-rules.yaml").read_text(encoding="utf-8")))
    assert {each["kind"] for each in made} == {"PrometheusRule"}
    for resource in made:
        name = resource["metadata"]["name"].removeprefix("trivec-")
        rules = DEPLOY / "prometheus" / "rules" / f"{name}.yml"
        assert resource["spec"] == yaml.safe_load(rules.read_text(encoding="utf-8"))


def test_the_journal_is_the_unit_s_own() -> None:
    unit = (DEPLOY / "systemd" / "trivec.service").read_text(encoding="utf-8")
    (namespace,) = re.findall(r"^LogNamespace=(\w+)$", unit, re.MULTILINE)
    asked = re.findall(r"journalctl[^`\n]*", DOCUMENT)
    assert asked
    assert all(f"--namespace={namespace}" in command for command in asked)


def test_no_command_stands_outside_of_the_blocks() -> None:
    assert set(re.findall(r"^```(\w*)$", DOCUMENT, re.MULTILINE)) == {"bash", "text", ""}
