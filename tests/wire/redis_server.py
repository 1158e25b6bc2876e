"""A real Redis server in a process of its own: what `.redis` holds."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from trivec_server.settings import TlsSettings

from tests.ports import free_port

PROGRAM = Path(__file__).parents[2] / ".redis" / "bin" / "redis-server"
PATIENCE_S = 60.0


@dataclass
class RedisProcess:
    """A Redis server on a port that stays its own; it holds nothing when it starts."""

    folder: Path
    port: int
    password: str | None = None
    tls: TlsSettings | None = None
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def client(self) -> redis.Redis:
        """A client for the test itself."""
        return redis.Redis(
            host="127.0.0.1",
            port=self.port,
            password=self.password,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            ssl=self.tls is not None,
            ssl_ca_certs=None if self.tls is None else str(self.tls.client_ca),
        )

    def start(self) -> None:
        """Returns once it answers."""
        command = [
            *(str(PROGRAM), *self._port_flags(), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)),
            *(["--requirepass", self.password] if self.password else []),
        ]
        log_path = self.folder / "redis.log"
        with log_path.open("ab") as log:
            self.process = process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

        def answers() -> bool:
            assert process.poll() is None, f"redis-server ended: {log_path.read_text(encoding='utf-8')}"
            with self.client as client:
                try:
                    return bool(client.ping())
                except redis.RedisError:
                    return False

        until(answers, "redis-server did not answer")

    def _port_flags(self) -> list[str]:
        if self.tls is None:
            return ["--port", str(self.port)]
        files = ("--tls-cert-file", self.tls.certificate, "--tls-key-file", self.tls.private_key)
        authority = ("--tls-ca-cert-file", self.tls.client_ca, "--tls-auth-clients", "no")
        return ["--port", "0", "--tls-port", str(self.port), *map(str, (*files, *authority))]

    def kill(self) -> None:
        """Ends it at once; what it held is lost."""
        if self.process is not None:
            self.thaw()
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """It takes connections, and answers nothing."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def redis_server(
    folder: Path, *, password: str | None = None, tls: TlsSettings | None = None
) -> Iterator[RedisProcess]:
    """Redis until the block ends; over TLS with a pair and the authority that it is of."""
    server = redis_address(folder, password=password)
    server.tls = tls
    server.start()
    try:
        yield server
    finally:
        server.kill()


def redis_address(folder: Path, *, password: str | None = None) -> RedisProcess:
    """A Redis server that is not started."""
    return RedisProcess(folder, free_port(), password)


def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Waits for a condition that no event tells of."""
    ends_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_at, otherwise
        time.sleep(0.01)
