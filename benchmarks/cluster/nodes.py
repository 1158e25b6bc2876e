"""Servers in processes of their own, on ports that they keep, and what can be done to them."""

import contextlib
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.ports import free_ports

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
_LOOK_S = 0.05
_HTTP_TIMEOUT_S = 2.0
_GENTLY = 10
"""How much less urgent than the rest a node's start is."""

Command = Callable[[int, int], list[str]]
"""Makes a server's command line of two ports: that of gRPC and that of metrics."""


@dataclass
class Node:
    """
    One server. `command` makes the command line of its two ports; its log is `log_path`, of all its lives.

    `starts_gently`: it starts at a low priority. On a machine that it shares with the other nodes, its start would
    otherwise take their time, which it does not where each node has a machine of its own.
    """

    name: str
    command: Command
    grpc_port: int
    metrics_port: int
    log_path: Path
    starts_gently: bool = True
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Starts it; `wait_ready` says when it serves."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TRIVEC_")}
        gently = ["nice", "-n", str(_GENTLY)] if self.starts_gently and os.geteuid() == 0 else []
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*gently, *self.command(self.grpc_port, self.metrics_port)],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
            )

    def wait_ready(self) -> None:
        """
        Waits until its models serve.

        Raises:
            SystemExit: it ended instead, or took too long.
        """
        gives_up_at = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready():
            if self.process is None or self.process.poll() is not None or time.monotonic() > gives_up_at:
                raise SystemExit(f"{self.name} does not serve: {self.log_path.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(_LOOK_S)
        _set_priority(self.pid, os.getpriority(os.PRIO_PROCESS, 0))

    def is_ready(self) -> bool:
        """Whether its models serve."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/v2/health/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """Ends it at once, as a crash does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def hang(self) -> None:
        """Stops it: connections stay open, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on after `hang`."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM, which drains it; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(STOP_TIMEOUT_S)

    def end(self) -> None:
        """Asks it to end, whatever state it is in; a second time, it does so at once."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()

    def close(self) -> None:
        """Waits for its end, which `end` has asked for."""
        if self.process is None:
            return
        self.end()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def metrics(self) -> str:
        """Its metrics in Prometheus' text format."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=_HTTP_TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text

    def serves_version(self, version: int) -> bool:
        """Whether that version of its model serves, and no other does."""
        ready = re.findall(r'^trivec_model_ready\{[^}]*version="(\d+)"[^}]*\} 1\.0$', self.metrics(), re.MULTILINE)
        return ready == [str(version)]

    def answered(self) -> int:
        """How many Embed calls it has finished since it started, refusals included."""
        found = re.findall(r'^trivec_requests_total\{[^}]*method="Embed"[^}]*\} (\S+)$', self.metrics(), re.MULTILINE)
        return round(sum(map(float, found)))


def _set_priority(pid: int, niceness: int) -> None:
    """For all its threads; only root may raise one."""
    if os.geteuid() != 0:
        return
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(task.name), niceness)


@contextmanager
def running_nodes(folder: Path, *commands: Command) -> Iterator[list[Node]]:
    """One node for each command line, until the block ends."""
    ports = free_ports(2 * len(commands))
    nodes = [
        Node(f"node-{number}", command, grpc_port, metrics_port, folder / f"node-{grpc_port}.log")
        for number, (command, grpc_port, metrics_port) in enumerate(zip(commands, ports[::2], ports[1::2], strict=True))
    ]
    try:
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait_ready()
        yield nodes
    finally:
        for node in nodes:
            node.end()
        for node in nodes:
            node.close()
