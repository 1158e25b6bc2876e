"""Runs the image: what it refuses, how it serves, and how it stops."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.check_image.building import Image
from tools.check_image.caller import Asked, Worked
from tools.check_image.commands import CheckError
from tools.check_image.container import Container, Place, run_once, running

_TARGET = "127.0.0.2:8001"
"""Not the address that a server on its loopback only would listen on."""
_PLAIN = {"TRIVEC_ALLOW_INSECURE": "true"}
_START_TIMEOUT_S = 60
_MODELS = ("m3-mini", "m3-openvino")
_WORK_TEXTS = 16
_CALL_TIMEOUT_S = 180
_LEAST_COSINE = 0.999
"""Between float32 and bfloat16."""


@dataclass(frozen=True, slots=True)
class Served:
    """Seconds from the start of the container to healthy, and from SIGTERM to its end; the server's memory by then."""

    start_s: float
    stop_s: float
    rss_mb: float


def try_image(image: Image, place: Place) -> Served:
    """
    Everything that the image is for, once.

    Raises:
        CheckError: something does not work.
    """
    _check_commands(image, place)
    begun = time.monotonic()
    with running(image, place, "serve", ["serve"], _PLAIN) as container:
        _await(container, "healthy", lambda: _is_healthy(image, container))
        start_s = time.monotonic() - begun
        _check_confinement(container)
        _check_answers(container)
        rss_mb = _rss_mb(container)
        stop_s = _check_stop(container)
    return Served(start_s, stop_s, rss_mb)


def _check_commands(image: Image, place: Place) -> None:
    """The commands without a server; they leave a model for each CPU engine in the volume."""
    code, said = run_once(image, place, "version", ["--version"])
    _require(code == 0 and re.fullmatch(r"trivec \S+\s*", said), f"`trivec --version` ended with {code}: {said}")
    for model in _MODELS:
        code, said = run_once(image, place, f"pull-{model}", ["pull", "m3-mini", "--name", model])
        _require(code == 0, f"`trivec pull` ended with {code}: {said}")
    config = place.models / _MODELS[1] / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace('backend: "onnxruntime"', 'backend: "openvino"'), encoding="utf-8")
    code, said = run_once(image, place, "refused", ["serve"])
    _require(
        code == 1 and "allow-insecure" in said.lower() and len(said.splitlines()) == 1,
        f"a server without TLS on all addresses should be refused on one line, and ended with {code}: {said}",
    )


def _is_healthy(image: Image, container: Container) -> bool:
    """What the image's HEALTHCHECK says."""
    health = image.config["Healthcheck"]
    assert isinstance(health, dict)
    return container.execute(health["Test"][1:]).returncode == 0


def _check_confinement(container: Container) -> None:
    status = container.execute(["cat", "/proc/1/status"]).stdout
    facts = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
    _require(facts["Uid"].split() == ["10001"] * 4, f"process 1 runs as {facts['Uid']}")
    _require(int(facts["CapEff"], 16) == 0 and facts["NoNewPrivs"] == "1", "the container has capabilities")
    for directory in ("/", "/opt/trivec", "/models", "/var/tmp", "/run"):  # noqa: S108 - in the container
        touched = container.execute(["touch", f"{directory}/file"])
        _require(touched.returncode != 0, f"{directory} can be written to")
    # A process that nobody waits for becomes a child of process 1.
    container.execute(["sh", "-c", "true & exec true"])
    _await(container, "without zombies", lambda: " Z " not in _states(container))


def _states(container: Container) -> str:
    return container.execute(["sh", "-c", "cat /proc/[0-9]*/stat"]).stdout


def _check_answers(container: Container) -> None:
    said = container.execute(["trivec", "health"]).stdout
    _require(said == "SERVING\n", f"`trivec health` inside says {said!r}")
    with _caller(container, "ask", *_MODELS) as caller:
        asked = Asked(**_answer(caller))
    expected = dict(zip(_MODELS, ("onnxruntime", "openvino"), strict=True))
    _require(asked.engines == expected, f"the engines are {asked.engines}")
    _require(asked.dense == [3, 384], f"the shape of three dense vectors is {asked.dense}")
    _require(len(asked.words) == len(asked.tokens) == 3, "sparse or multi-vectors are missing")
    _require(min(*asked.words, *asked.tokens) > 0, f"a text has no words or tokens: {asked}")
    _require(asked.least_cosine > _LEAST_COSINE, f"the engines differ: their least cosine is {asked.least_cosine}")


def _caller(container: Container, *arguments: str) -> "subprocess.Popen[str]":
    command = container.inside([sys.executable, "-m", "tools.check_image.caller", _TARGET, *arguments])
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _answer(caller: "subprocess.Popen[str]") -> dict[str, Any]:
    printed, complaint = caller.communicate(timeout=_CALL_TIMEOUT_S)
    _require(caller.returncode == 0, f"a call failed: {complaint[-800:]}")
    answer = json.loads(printed)
    assert isinstance(answer, dict)
    return answer


def _check_stop(container: Container) -> float:
    """SIGTERM while a request is computed: it is answered, and the server ends with 0, within its grace."""
    with _caller(container, "work", _MODELS[0], str(_WORK_TEXTS)) as caller:
        _await(container, "at work", lambda: _pending(container) > 0 or caller.poll() is not None)
        signalled_at = time.monotonic()
        code = container.stop()
        stop_s = time.monotonic() - signalled_at
        worked = Worked(**_answer(caller))
    _require(code == 0, f"after SIGTERM the container ended with {code}:\n{container.log}")
    _require(worked.rows == _WORK_TEXTS and worked.are_unit, f"the last answer is {worked}")
    _require(worked.ended_at > signalled_at, "the request was over before SIGTERM: nothing was drained")
    return stop_s


def _pending(container: Container) -> float:
    read = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8002/metrics').read().decode())"
    metrics = container.execute(["/usr/bin/python3", "-I", "-c", read]).stdout
    return sum(map(float, re.findall(r"^trivec_pending_requests\{.*\} (\S+)$", metrics, re.MULTILINE)))


def _rss_mb(container: Container) -> float:
    """The resident memory of all processes of the container but those that were put into it."""
    found = container.execute(["sh", "-c", "grep -h VmRSS /proc/[0-9]*/status"]).stdout
    return sum(map(int, re.findall(r"(\d+) kB", found))) * 1024 / 1e6


def _await(container: Container, state: str, is_so: Callable[[], bool]) -> None:
    """Until it is so; the container must not end meanwhile."""
    ends_at = time.monotonic() + _START_TIMEOUT_S
    while not is_so():
        code = container.process.poll()
        _require(code is None, f"the container ended with {code} before it was {state}:\n{container.log}")
        _require(
            time.monotonic() < ends_at, f"the container is not {state} after {_START_TIMEOUT_S} s:\n{container.log}"
        )
        time.sleep(0.05)


def _require(holds: object, complaint: str) -> None:
    if not holds:
        raise CheckError(complaint)
