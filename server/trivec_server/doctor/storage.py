"""Directories that are written to: the model repository and the hub's cache, with what interrupted pulls left there."""

import os
import shlex
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from trivec_server.doctor.finding import Finding, Status
from trivec_server.repository.building import find_buildings
from trivec_server.repository.space import format_bytes

_LARGE_MODEL_BYTES = 2_400_000_000
"""What BGE-M3 takes as one version, and its download as much again."""


def check_repository_disk(repository: Path) -> list[Finding]:
    """Whether a model could be pulled into the repository. Serving does not write there."""
    return [_check_disk("disk of the repository", repository, "choose a disk with room with --model-repository")]


def check_hub() -> list[Finding]:
    """The hub's settings, and its cache: whether it can be written to, its room, and downloads that were cut short."""
    try:
        from huggingface_hub import constants  # noqa: PLC0415 - a package of trivec[server]
    except ImportError:
        return [Finding("hub", Status.WARN, "huggingface_hub cannot be imported: hub models cannot be pulled")]
    cache = Path(constants.HF_HUB_CACHE)
    partial = sum(path.stat().st_size for path in cache.glob("models--*/blobs/*.incomplete"))
    disk = _check_disk("hub cache", cache, "export HF_HOME=/a/directory/with/room")
    if partial:
        fact = f"{disk.fact}; {format_bytes(partial)} of unfinished downloads, which `trivec pull` goes on with"
        disk = Finding(disk.check, disk.status, fact, disk.mend)
    return [_describe_hub(constants.ENDPOINT, offline=constants.HF_HUB_OFFLINE), disk]


def check_leftovers(repository: Path) -> list[Finding]:
    """What pulls that were killed left in the repository; the next pull removes it."""
    buildings = find_buildings(repository)
    left = [path for path, builder in buildings.items() if builder is None]
    if left:
        size = sum(file.lstat().st_size for path in left for file in path.rglob("*"))
        fact = f"{len(left)} of interrupted pulls take {format_bytes(size)}; the next pull of each model removes them"
        mend = f"rm -r {' '.join(shlex.quote(str(path)) for path in left)}"
        return [Finding("leftovers", Status.WARN, fact, mend)]
    under_way = ", ".join(str(builder) for builder in buildings.values())
    return [Finding("leftovers", Status.OK, f"none; under way: {under_way}" if under_way else "none")]


def _describe_hub(endpoint: str, *, offline: bool) -> Finding:
    parts = urlsplit(endpoint)
    # A password may stand in front of the host.
    shown = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return Finding("hub", Status.WARN, f"HF_ENDPOINT {endpoint!r} is not a URL", "unset HF_ENDPOINT")
    given = [name for name in ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN") if os.environ.get(name)]
    fact = f"{shown} (not checked)" + (f"; set: {', '.join(given)}" if given else "")
    if offline:
        fact += "; HF_HUB_OFFLINE is set: pulls use the cache only"
    return Finding("hub", Status.OK, fact)


def _check_disk(check: str, path: Path, mend: str) -> Finding:
    place = path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    fact = f"{path}: {format_bytes(free)} free"
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding(check, Status.WARN, f"{fact}, but {place} cannot be written to: nothing can be pulled", mend)
    if free < _LARGE_MODEL_BYTES:
        return Finding(check, Status.WARN, f"{fact}; BGE-M3 takes {format_bytes(_LARGE_MODEL_BYTES)}", mend)
    return Finding(check, Status.OK, fact)
