"""
The server in a process of its own with the scripted engine, which obeys the test that started it.

The process takes commands on its standard input, a line each (`hold`, `release`, `fail`, `slow`, `fast`), and says on
its standard output what happens: `obeyed`, `building` (an engine), `loaded PORT METRICS_PORT`, `entered` (a batch
begins), `stopped`.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trivec_server import lifecycle
from trivec_server.backends.interface import Engine, EngineRequest, TokenBatch
from trivec_server.logs import configure_logs
from trivec_server.settings import ServeSettings

from tests.scripted_engine import Script

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
SLOW_S = 0.05
"""What a batch takes in an engine that was told to be slow."""


@dataclass
class ScriptedProcess:
    """The test's side."""

    process: subprocess.Popen[str]
    log_path: Path
    said: "queue.Queue[str]" = field(default_factory=queue.Queue)

    def expect(self, word: str) -> list[str]:
        """Waits for a line that begins with this word; what follows it."""
        while True:
            first, *rest = self.said.get(timeout=PATIENCE_S).split()
            if first == word:
                return rest
            assert first != "ended", f"the process ended before it said {word}: {self.log}"

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(PATIENCE_S)

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")


@contextmanager
def scripted_process(
    repository: Path, *, commands: tuple[str, ...] = (), log_format: str = "text", **settings: float
) -> Iterator[ScriptedProcess]:
    """Starts the server; `commands` are obeyed before it loads anything. Kills it at the end, if it still runs."""
    options = {"repository": str(repository), "commands": commands, "log_format": log_format, "settings": settings}
    log_path = repository.parent / "server.log"
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.wire.scripted_process", json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "error"},
        )
    server = ScriptedProcess(process, log_path)
    listening = threading.Thread(target=_listen, args=(server,), daemon=True)
    listening.start()
    try:
        yield server
    finally:
        process.kill()
        process.wait()
        listening.join()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _listen(server: ScriptedProcess) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        server.said.put(line)
    server.said.put("ended")


def main(options: Mapping[str, Any]) -> None:
    """The process's side."""
    script = Script()
    for command in options["commands"]:
        _obey(script, command)
    threading.Thread(target=_obey_lines, args=(script,), daemon=True).start()

    def build(request: EngineRequest) -> Engine:
        _say("building")
        return script.build(request)

    configure_logs("debug", options["log_format"])
    settings = ServeSettings(
        model_repositories=(Path(options["repository"]),),
        **{"grpc_port": 0, "metrics_port": 0, **options["settings"]},
    )

    def loaded(started: lifecycle.Started) -> None:
        script.forget()
        threading.Thread(target=_tell_batches, args=(script,), daemon=True).start()
        _say(f"loaded {started.grpc_port} {started.metrics_port}")

    lifecycle.serve(settings, engines={"scripted": build}, on_loaded=loaded)
    _say("stopped")


def _tell_batches(script: Script) -> None:
    while script.entered.acquire():
        _say("entered")


def _obey_lines(script: Script) -> None:
    for line in sys.stdin:
        _obey(script, line.strip())
        _say("obeyed")


def _obey(script: Script, command: str) -> None:
    if command == "hold":
        script.gate.clear()
    elif command == "hold-building":
        script.building.clear()
    elif command == "release":
        script.gate.set()
        script.building.set()
    elif command == "fail":
        script.before_run = _fail
    elif command == "slow":
        script.before_run = _wait
    elif command == "fast":
        script.before_run = _go_on
    else:
        raise ValueError(command)


def _fail(batch: TokenBatch) -> None:
    raise ValueError(f"the engine fails on {len(batch.lengths)} texts")


def _wait(_batch: TokenBatch) -> None:
    time.sleep(SLOW_S)


def _go_on(_batch: TokenBatch) -> None:
    pass


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the test reads it


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
