"""
Builds the repository's Dockerfile with buildah, with no image registry.

The base that FROM names is made by debootstrap of the same Debian release, with what Debian's own slim images leave out
left out: packages and Python are those of the real one, but for what has been updated since either was made.
"""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tools.check_image.commands import CheckError, run

_SUITES = {"11": "bullseye", "12": "bookworm", "13": "trixie"}
_LEFT_OUT = ("doc", "man", "info", "locale", "lintian", "linda")
"""Directories of /usr/share that Debian's slim images do not have."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where buildah keeps images, and how."""

    directory: Path
    driver: str

    def buildah(self, *arguments: str, log: int | None = None) -> str:
        """Runs buildah on this store; returns what it prints."""
        places = ("--root", str(self.directory / "storage"), "--runroot", str(self.directory / "run"))
        return run(["buildah", *places, "--storage-driver", self.driver, *arguments], log=log).stdout or ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that was built, mounted at `root`. `megabytes` are 10**6 bytes, over all layers, uncompressed."""

    root: Path
    megabytes: float
    config: dict[str, object]
    build_s: float


def open_store(directory: Path) -> Store:
    """An empty store. Its driver is overlay where the kernel can, else vfs, which copies every layer."""
    for driver in ("overlay", "vfs"):
        store = Store(directory / driver, driver)
        try:
            container = store.buildah("from", "scratch").strip()
            store.buildah("mount", container)
        except CheckError:
            continue
        store.buildah("rm", container)
        return store
    raise CheckError("buildah can use neither the overlay nor the vfs driver here: see `buildah from scratch`")


def read_base(dockerfile: str) -> tuple[str, str]:
    """
    What FROM names with the arguments' defaults, and its Debian release, such as 12.15.

    Raises:
        CheckError: the base is no slim image of Debian.
    """
    arguments = dict(re.findall(r'^ARG (\w+)="?([^"\n]*)"?$', dockerfile, re.MULTILINE))
    first = re.search(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    name = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], ""), first[1]) if first else ""
    release = re.fullmatch(r".+/debian:(\d+(?:\.\d+)?)-slim", name)
    if not release:
        raise CheckError(f"Dockerfile: the check can make a base for .../debian:RELEASE-slim only, not for {name!r}")
    return name, release[1]


def make_base(store: Store, name: str, release: str, cache: Path) -> None:
    """Makes the image `name`; what debootstrap made is kept in `cache` for the next time."""
    archive = cache / f"debian-{release}.tar"
    if not archive.exists():
        _bootstrap(archive, _SUITES[release.partition(".")[0]], release)
    container = store.buildah("from", "scratch").strip()
    store.buildah("add", "--quiet", container, str(archive), "/")
    store.buildah("config", "--cmd", "bash", container)
    store.buildah("commit", "--quiet", container, name)
    store.buildah("rm", container)


def _bootstrap(archive: Path, suite: str, release: str) -> None:
    print(f"making a base of Debian {release} with debootstrap", flush=True)
    root = archive.parent / f"debian-{release}"
    shutil.rmtree(root, ignore_errors=True)
    run(["debootstrap", "--variant=minbase", suite, str(root)], log=sys.stderr.fileno())
    sources = root / "etc/apt/sources.list"
    # As in Debian's images: also the updates since the release.
    mirror = sources.read_text(encoding="utf-8").split()[1].rstrip("/")
    sources.write_text(
        f"deb {mirror} {suite} main\ndeb {mirror} {suite}-updates main\ndeb {mirror}-security {suite}-security main\n",
        encoding="utf-8",
    )
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(
        "".join(f"path-exclude /usr/share/{each}/*\n" for each in _LEFT_OUT), encoding="utf-8"
    )
    for each in (*(f"usr/share/{name}" for name in _LEFT_OUT), "var/cache/apt", "var/lib/apt/lists", "var/log"):
        shutil.rmtree(root / each, ignore_errors=True)
        (root / each).mkdir()
    found = (root / "etc/debian_version").read_text(encoding="utf-8").strip()
    if found != release:
        print(f"note: Debian is at {found} and the Dockerfile names {release}: time to name the newer one", flush=True)
    partial = archive.with_suffix(".partial")
    run(["tar", "--create", "--file", str(partial), "--directory", str(root), "."])
    partial.rename(archive)
    shutil.rmtree(root)


def build(store: Store, context: Path, target: str, work: Path) -> Image:
    """Builds a target of the Dockerfile in `context`, and mounts the result."""
    tag = f"localhost/trivec:{target}"
    begun = time.monotonic()
    command = ["bud", "--format", "docker", "--isolation", "chroot", "--network", "host", "--pull-never"]
    command += [*_secrets(work), "--target", target, "--tag", tag, str(context)]
    store.buildah(*command, log=sys.stderr.fileno())
    build_s = time.monotonic() - begun
    container = store.buildah("from", "--pull-never", tag).strip()
    root = Path(store.buildah("mount", container).strip())
    described = json.loads(store.buildah("inspect", "--type", "image", tag))
    sizes = [each for each in json.loads(store.buildah("images", "--json")) if tag in (each.get("names") or ())]
    return Image(root, _megabytes(sizes[0]["size"]), described["Docker"]["config"], build_s)


def _megabytes(size: str) -> float:
    number, unit = size.split()
    return float(number) * {"KB": 1e-3, "MB": 1.0, "GB": 1e3}[unit.upper()]


def _secrets(work: Path) -> list[str]:
    """The machine's way to the package index: its certificate authorities, and pip's settings that are no paths."""
    flags = []
    lines = ["[global]"]
    authorities = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    if authorities and Path(authorities).is_file():
        flags += ["--secret", f"id=ca.crt,src={authorities}"]
        lines.append("cert = /run/secrets/ca.crt")
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    for key, value in re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE):
        if key in {"index-url", "timeout", "default-timeout", "proxy", "trusted-host"}:
            lines.append(f"{key.removeprefix('default-')} = {value}")
    (work / "pip.conf").write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")
    return [*flags, "--secret", f"id=pip.conf,src={work / 'pip.conf'}"]


def close_store(store: Store) -> None:
    """Unmounts and removes all that the store holds."""
    store.buildah("umount", "--all")
    store.buildah("rm", "--all")
    shutil.rmtree(store.directory)
