"""
A container by crun, as an orchestrator would run it: a root file system that is read-only, no capabilities, no new
privileges, namespaces of its own, a small /tmp without programs, and the model repository as a volume.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.check_image.building import Image
from tools.check_image.commands import run

_STOP_TIMEOUT_S = 60
_NONE: dict[str, list[str]] = {each: [] for each in ("bounding", "effective", "inheritable", "permitted", "ambient")}
# crun takes no machine that has both versions of cgroups mounted; a mount namespace of its own has the second alone.
_OWN_CGROUPS = 'umount -l -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec crun "$@"'


@dataclass(frozen=True, slots=True)
class Place:
    """Where containers keep their state, and the volume with the models."""

    work: Path
    models: Path


@dataclass(frozen=True, slots=True)
class Container:
    """A container that runs in the foreground of `process`."""

    name: str
    process: "subprocess.Popen[str]"
    place: Place
    log_path: Path

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self.log_path.read_text(encoding="utf-8")

    def pid(self) -> int:
        """Its process 1, as seen from here."""
        state = json.loads(run(_crun(self.place, "state", self.name)).stdout)
        return int(state["pid"])

    def execute(self, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        """Runs a command in it, as its user."""
        return subprocess.run(
            _crun(self.place, "exec", self.name, *command), check=False, capture_output=True, text=True
        )

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a program of this machine in the container's network."""
        return ["nsenter", "--target", str(self.pid()), "--net", *command]

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        run(_crun(self.place, "kill", self.name, "TERM"))
        return self.process.wait(_STOP_TIMEOUT_S)


def _crun(place: Place, *arguments: str) -> list[str]:
    own = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _OWN_CGROUPS, "sh"]
    return [*own, "--root", str(place.work / "crun"), "--cgroup-manager", "disabled", *arguments]


@contextmanager
def running(
    image: Image,
    place: Place,
    name: str,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    models_are_writable: bool = False,
) -> Iterator[Container]:
    """The image's entry point with these arguments; at the end of the block it is killed if it still runs."""
    bundle = place.work / name
    bundle.mkdir()
    specification = _specification(image, place, arguments, environment or {}, models_are_writable)
    (bundle / "config.json").write_text(json.dumps(specification), encoding="utf-8")
    log_path = bundle / "log"
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            _crun(place, "run", "--bundle", str(bundle), name), stdout=log, stderr=subprocess.STDOUT, text=True
        )
    container = Container(name, process, place, log_path)
    try:
        yield container
    finally:
        if process.poll() is None:
            subprocess.run(_crun(place, "delete", "--force", name), check=False, capture_output=True)
            process.wait(_STOP_TIMEOUT_S)


def run_once(
    image: Image, place: Place, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs the image's entry point to its end with a writable model volume; its exit code and its output."""
    with running(image, place, name, arguments, environment, models_are_writable=True) as container:
        code = container.process.wait(_STOP_TIMEOUT_S)
        return code, container.log


def _specification(
    image: Image, place: Place, arguments: Sequence[str], environment: Mapping[str, str], models_are_writable: bool
) -> dict[str, object]:
    config = image.config
    entry, own = config["Entrypoint"], config["Env"]
    assert isinstance(entry, list)
    assert isinstance(own, list)
    user, _, group = str(config["User"]).partition(":")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": int(user), "gid": int(group)},
            "args": [*entry, *arguments],
            "env": [*own, *(f"{key}={value}" for key, value in environment.items())],
            "cwd": "/",
            "capabilities": _NONE,
            "noNewPrivileges": True,
        },
        "root": {"path": str(image.root), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec", "nodev"]},
            _tmpfs("/dev", "nosuid", "mode=755", "size=64k"),
            _tmpfs("/dev/shm", "nosuid", "noexec", "nodev", "mode=1777", "size=64m"),  # noqa: S108 - in the container
            _tmpfs("/tmp", "nosuid", "noexec", "nodev", "mode=1777", "size=64m"),  # noqa: S108 - in the container
            {
                "destination": "/models",
                "type": "bind",
                "source": str(place.models),
                "options": ["bind", "rw" if models_are_writable else "ro"],
            },
        ],
        "linux": {"namespaces": [{"type": each} for each in ("pid", "mount", "ipc", "uts", "network")]},
    }


def _tmpfs(destination: str, *options: str) -> dict[str, object]:
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": list(options)}


def models_volume(directory: Path, uid: int) -> Path:
    """An empty volume that belongs to the server's user."""
    directory.mkdir()
    os.chown(directory, uid, uid)
    return directory
