"""
Every command of README.md, as a reader runs it: each block's own text, top to bottom, in a copy of the repository.

What differs from a reader's machine:

- `.venv` is the environment that runs these tests, by links, with the stamps that the Makefile goes by. So `make` finds
  everything installed. PYTHONPATH names the copy's packages, as its own installation would.
- `make test` cannot run within itself. `make -n` shows that it is the documented run of pytest, and `.ci/run` has it.
- The hub is one on this machine (`HF_ENDPOINT`), with a small random model of BGE-M3's shape under BGE-M3's name.
- TRIVEC_GRPC_PORT and TRIVEC_METRICS_PORT are 0, any free port, since 8001 and 8002 may be taken. The port in the
  commands is replaced by the one that the server greets with, and TRIVEC_TARGET names it to commands without one.
- A reader stops one server before the next by Ctrl-C; so does the test.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.hub_server import serve_hub
from tests.numerics.figures import show
from tests.numerics.models import SHAPES, write_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60
BGE_M3 = SHAPES[0]
PORT = "127.0.0.1:8001"
REQUEST = """'{"texts": ["人工智能"], "modes": ["MODE_HYBRID"]}'"""

RUN_BY: Mapping[str, tuple[str, ...]] = {
    "test_make_serve_builds_the_small_model_and_serves_it": ("make serve",),
    "test_make_test_runs_the_tests": ("make test",),
    "test_bge_m3_is_pulled_and_served": (
        "make setup",
        ". .venv/bin/activate",
        "trivec pull BAAI/bge-m3",
        "trivec serve",
    ),
    "test_docker": (
        "docker build --tag trivec:0.1.0 .",
        "docker run --rm --volume trivec-models:/models trivec:0.1.0 pull m3-mini",
        "docker run --read-only --tmpfs /tmp --cap-drop ALL --volume trivec-models:/models:ro \\",
        "  --env TRIVEC_ALLOW_INSECURE=true --publish 127.0.0.1:8001:8001 trivec:0.1.0",
    ),
    "test_grpcurl": (
        f"grpcurl -plaintext {PORT} describe trivec.v1.EmbeddingService",
        f"grpcurl -plaintext -d {REQUEST} {PORT} trivec.v1.EmbeddingService/Embed",
    ),
    "test_node": ("cd clients/node", "npm install", f"node embed.js {PORT}"),
    "test_shell": (
        'echo "人工智能" | trivec embed --mode hybrid',
        'trivec score --query "What is AI?" --passage "A field of research." --passage "A yellow fruit."',
        "trivec models",
        "trivec health",
    ),
}
"""The lines of each shell block, and the test that runs it. The Python blocks are all run by `test_python`."""


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in a language, without their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def block_of(test: str) -> str:
    """The block that a test runs, as it stands in the README."""
    (found,) = [block for block in blocks("bash") if tuple(block.splitlines()) == RUN_BY[test]]
    return found


@dataclass(frozen=True, slots=True)
class Served:
    """A server that a block of the README started, and the copy it runs in."""

    checkout: "Checkout"
    model: str
    target: str
    dimensions: int
    greeting: str
    start_s: float

    def run(self, script: str) -> str:
        """Runs a reader's commands against this server; returns what they print."""
        environment = {**self.checkout.environment, "TRIVEC_TARGET": self.target}
        environment["PATH"] = f"{self.checkout.root / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script.replace(PORT, self.target)],
            cwd=self.checkout.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@dataclass(frozen=True, slots=True)
class Checkout:
    """A copy of the repository with its virtual environment, and the variables of a reader's shell."""

    root: Path
    environment: Mapping[str, str]

    @contextmanager
    def serving(self, block: str, model: str, dimensions: int) -> Iterator[Served]:
        """Runs a block that ends with a server until it greets; stops the server as Ctrl-C does."""
        log_path = self.root.with_suffix(".log")
        started_at = time.monotonic()
        with log_path.open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                ["bash", "-e", "-c", block],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                start_new_session=True,
            )
        watchdog = threading.Timer(START_TIMEOUT_S, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            greeting = _read_greeting(process)
            watchdog.cancel()
            found = re.search(r"serves gRPC on (\S+:\d+), metrics", greeting)
            assert found is not None, greeting + log_path.read_text(encoding="utf-8")
            yield Served(self, model, found[1], dimensions, greeting, time.monotonic() - started_at)
        finally:
            watchdog.cancel()
            _stop(process)


def _read_greeting(process: "subprocess.Popen[str]") -> str:
    """What a block prints up to the greeting's last line, or all of it if the greeting never comes."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "client.encode(" in line:
            break
    return "".join(lines)


def _stop(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A copy of the files that git has or would take, with `.venv` ready. Its models are too large to leave behind."""
    root = tmp_path_factory.mktemp("readme") / "trivec"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    (root / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if not part.name.startswith("."):
            (root / ".venv" / part.name).symlink_to(part)
    for stamp in (".serve", ".test"):
        (root / ".venv" / stamp).touch()
    yield Checkout(root, _environment(root))
    shutil.rmtree(root)


def _environment(root: Path) -> dict[str, str]:
    """A reader's variables: not those of these tests, of a `make` around them, or for another hub."""
    foreign = re.compile(r"TRIVEC_.*|HF_.*|HUGGING.*|MAKE.*|MFLAGS|ARGS|VIRTUAL_ENV|PYTHON.*")
    packages = ("server", "clients/python", "protos/python")
    return {
        **{name: value for name, value in os.environ.items() if not foreign.fullmatch(name)},
        "PYTHONPATH": os.pathsep.join(str(root / package) for package in packages),
        "TRIVEC_GRPC_PORT": "0",
        "TRIVEC_METRICS_PORT": "0",
        "TRIVEC_DRAIN_PAUSE_S": "0",
    }


@pytest.fixture(scope="module")
def first_start(checkout: Checkout) -> str:
    """What the first `make serve` of the copy prints. It builds the small model."""
    block = block_of("test_make_serve_builds_the_small_model_and_serves_it")
    with checkout.serving(block, "m3-mini", 384) as served:
        return served.greeting


@pytest.fixture(scope="module", params=["m3-mini", "bge-m3"])
def served(
    request: pytest.FixtureRequest, checkout: Checkout, first_start: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The server of `make serve`, started a second time, then that of `trivec serve`, with BGE-M3 pulled."""
    if request.param == "m3-mini":
        block = block_of("test_make_serve_builds_the_small_model_and_serves_it")
        with checkout.serving(block, "m3-mini", 384) as server:
            yield server
        return
    directory = tmp_path_factory.mktemp("hub")
    (directory / "bge-m3").mkdir()
    write_model(BGE_M3, directory / "bge-m3")
    with serve_hub({"BAAI/bge-m3": directory / "bge-m3"}) as hub:
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(directory / "huggingface")}
        reader = Checkout(checkout.root, {**checkout.environment, **variables})
        with reader.serving(block_of("test_bge_m3_is_pulled_and_served"), "bge-m3", BGE_M3.hidden_size) as server:
            yield server
    shutil.rmtree(directory)


def test_every_block_is_run_by_a_test() -> None:
    """A block or a line that is added, changed or moved fails here until it has a test."""
    assert [tuple(block.splitlines()) for block in blocks("bash")] == list(RUN_BY.values())
    assert RUN_BY.keys() <= globals().keys()
    languages = re.findall(r"^\s*(?:```|~~~)(.*)$", README, re.MULTILINE)[::2]
    assert sorted(languages) == sorted(["bash"] * len(RUN_BY) + ["python"] * len(blocks("python")))


def test_docker() -> None:
    """Docker has no engine here: `make image-check` builds and runs the image; these lines are for this version."""
    tag = f"trivec:{version('trivec')}"
    assert all(tag in line for line in RUN_BY["test_docker"] if not line.endswith("\\"))


def test_make_serve_builds_the_small_model_and_serves_it(checkout: Checkout, first_start: str) -> None:
    assert (checkout.root / "model_repository" / "m3-mini" / "1" / "manifest.json").is_file()
    assert re.search(r"^  m3-mini/1: READY, engine onnxruntime on cpu", first_start, re.MULTILINE)
    assert "grpcurl -plaintext" in first_start


def test_make_test_runs_the_tests(checkout: Checkout, first_start: str) -> None:
    (command,) = block_of("test_make_test_runs_the_tests").splitlines()
    done = subprocess.run(
        [*command.split(), "-n"],
        cwd=checkout.root,
        env=checkout.environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    # Before it, what other servers and clients the tests need is installed.
    assert done.stdout.rstrip().splitlines()[-1] == '.venv/bin/python -m pytest -m "not torch and not cluster"'
    assert re.search(rf"^step {command}$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_server_greets(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"  {served.model}/1: READY" in served.greeting
    show(capsys, f"{served.model}: {served.start_s:.2f} s from the command to the greeting")


@pytest.mark.parametrize("served", ["bge-m3"], indirect=True)
def test_bge_m3_is_pulled_and_served(served: Served) -> None:
    version = served.checkout.root / "model_repository" / "bge-m3" / "1"
    manifest = json.loads((version / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"]["name"] == "BAAI/bge-m3"
    assert "  bge-m3/1: READY" in served.greeting


def test_python(served: Served) -> None:
    program = "\n".join(blocks("python"))
    output = served.run(f"python -W error - <<'END'\n{program}\nEND")
    shapes, scores = output.splitlines()
    size = served.dimensions
    assert re.fullmatch(rf"\(2, {size}\) .*\{{'\d+': .+\}}\)? \(\d+, {size}\)", shapes)
    related, unrelated = json.loads(scores)
    assert related > unrelated or served.model != "m3-mini"


def test_grpcurl(served: Served) -> None:
    described, brace, answer = served.run(block_of("test_grpcurl")).partition("\n{")
    assert "rpc Embed (" in described
    (embedding,) = json.loads(brace + answer)["embeddings"]
    assert len(embedding["dense"]["values"]) == served.dimensions
    assert len(embedding["sparse"]["ids"]) == len(embedding["sparse"]["weights"]) > 0
    assert embedding["multi_vector"]["rows"] == embedding["token_count"] - 1 > 0


def test_node(served: Served) -> None:
    missing = [program for program in ("node", "npm") if shutil.which(program) is None]
    if missing:
        reason = f"{' and '.join(missing)} not installed: the README's Node.js client is not tried"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    last = served.run(block_of("test_node")).splitlines()[-1]
    assert re.fullmatch(rf"dense {served.dimensions}, sparse [1-9]\d*, multi-vector [1-9]\d* rows", last)


def test_shell(served: Served) -> None:
    embedding, *lines = served.run(block_of("test_shell")).splitlines()
    record = json.loads(embedding)
    assert len(record["dense"]) == served.dimensions
    assert len(record["sparse"]["ids"]) == len(record["sparse"]["weights"]) > 0
    assert len(record["multi_vector"]) == record["tokens"] - 1 > 0
    output = "\n".join(lines)
    assert "A field of research." in output
    assert "A yellow fruit." in output
    assert re.search(rf"^{served.model} +1 +READY", output, re.MULTILINE)
    assert lines[-1] == "SERVING"
