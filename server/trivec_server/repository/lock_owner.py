"""Who holds a lock: a process, told apart from every other one on any host."""

import json
import os
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path

_TOKEN_BYTES = 8


def _kernel() -> str:
    """The running kernel and the process's name space of process numbers; "" where /proc does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks, which no change of the clock alters; "" if there is none."""
    try:
        # What follows the name, in parentheses, which may hold anything.
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return facts[19] if len(facts) > 19 and facts[0] not in ("Z", "X") else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOwner:
    """
    One holding of a lock by a process. `token` is random, another one each time. `kernel` and `started` tell processes
    of this machine whether it still runs.
    """

    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    token: str = field(default_factory=lambda: secrets.token_hex(_TOKEN_BYTES))
    kernel: str = field(default_factory=_kernel)
    started: str = field(default_factory=lambda: _started(os.getpid()))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_known_dead(self) -> bool:
        """
        Whether the process has ended for certain: only one that has run under this kernel, among the processes that
        this one sees, can be known to.
        """
        return bool(self.kernel and self.started) and self.kernel == _kernel() and _started(self.pid) != self.started


def read_owner(content: bytes) -> LockOwner | None:
    """Who a lock's file names; None if it is not, or not yet, one."""
    try:
        facts = json.loads(content)
        host, pid, token, kernel, started = (facts[name] for name in ("host", "pid", "token", "kernel", "started"))
    except (ValueError, LookupError, TypeError):
        return None
    texts = (host, token, kernel, started)
    if not (isinstance(pid, int) and all(isinstance(text, str) and text.isprintable() for text in texts)):
        return None
    return LockOwner(host=host, pid=pid, token=token, kernel=kernel, started=started)
