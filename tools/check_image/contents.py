"""What an image holds and says of itself, without running it."""

import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tools.check_image.building import Image

MAX_CPU_MB = 700
UID = 10001

_BUILD_PROGRAMS = frozenset(
    {"gcc", "cc", "g++", "c++", "cpp", "clang", "ld", "as", "make", "cmake", "cargo", "rustc"}
    | {"git", "curl", "wget", "pip", "pip3", "easy_install", "uv"}
)
_BUILD_PACKAGES = frozenset({"pip", "setuptools", "wheel", "ensurepip", "pytest", "mypy"})
_NOT_LEFT = ("etc/pip.conf", "run/secrets", "root/.cache", "source", "wheel", "requirements", "build", "tmp/.cache")
_LABELS = ("title", "description", "version", "licenses", "source", "revision", "base.name")


def faults(image: Image, project: Path) -> list[str]:
    """What is wrong with the files and the configuration of the target `cpu`; nothing if all is well."""
    found = [*_faults_of_files(image.root), *_faults_of_config(image.config, project)]
    if image.megabytes > MAX_CPU_MB:
        found.append(f"the image has {image.megabytes:.0f} MB; at most {MAX_CPU_MB}")
    return found


def largest(root: Path, count: int) -> list[tuple[str, float]]:
    """The largest Python packages with their size in MB."""
    sizes: dict[str, int] = {}
    for directory in root.glob("opt/trivec/lib/python3*/site-packages"):
        for path, facts in _walk(directory):
            if stat.S_ISREG(facts.st_mode):
                name = path.relative_to(directory).parts[0]
                sizes[name] = sizes.get(name, 0) + facts.st_size
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    return [(name, size / 1e6) for name, size in ordered[:count]]


def _walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            yield path, path.lstat()


def _faults_of_files(root: Path) -> Iterator[str]:
    for path, facts in _walk(root):
        inside = path.relative_to(root)
        if not stat.S_ISREG(facts.st_mode) and not stat.S_ISLNK(facts.st_mode):
            if path.name in _BUILD_PACKAGES and path.parent.name in {"site-packages", "dist-packages", "python3.11"}:
                yield f"/{inside} is a package for building"
            continue
        if path.name in _BUILD_PROGRAMS and path.parent.name in {"bin", "sbin"}:
            yield f"/{inside} is a program for building or downloading"
        if stat.S_ISLNK(facts.st_mode):
            continue
        if facts.st_mode & (stat.S_ISUID | stat.S_ISGID):
            yield f"/{inside} changes the user or group of who runs it"
        if facts.st_mode & stat.S_IWOTH:
            yield f"/{inside} can be written to by everyone"
        if facts.st_uid == UID:
            yield f"/{inside} belongs to the server's user, who could change it"
        if path.suffix == ".whl" or inside.parts[:4] == ("var", "lib", "apt", "lists"):
            yield f"/{inside} is left over from the build"
    yield from (f"/{each} is left over from the build" for each in _NOT_LEFT if (root / each).exists())


def _faults_of_config(config: dict[str, object], project: Path) -> Iterator[str]:
    version = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    labels = config.get("Labels")
    labels = labels if isinstance(labels, dict) else {}
    yield from (f"the label {each} is missing" for each in _LABELS if f"org.opencontainers.image.{each}" not in labels)
    if labels.get("org.opencontainers.image.version") != version:
        yield f"the label of the version is not {version}"
    expected = {
        "User": f"{UID}:{UID}",
        "Cmd": ["serve"],
        "StopSignal": "SIGTERM",
        "Volumes": {"/models": {}},
        "ExposedPorts": {"8001/tcp": {}, "8002/tcp": {}},
    }
    for key, value in expected.items():
        if config.get(key) != value:
            yield f"{key} is {config.get(key)!r}, not {value!r}"
    health = config.get("Healthcheck")
    if not isinstance(health, dict) or health.get("Test", [""])[0] != "CMD":
        yield f"Healthcheck is {health!r}: not a command in exec form"
