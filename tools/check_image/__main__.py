"""`python -m tools.check_image`: builds the target `cpu`, looks at it, runs it, and prints its figures last."""

import shutil
import sys
import tempfile
from pathlib import Path

from tools.check_image.building import build, close_store, make_base, open_store, read_base
from tools.check_image.commands import CheckError, check_machine
from tools.check_image.container import Place, models_volume
from tools.check_image.contents import UID, faults, largest
from tools.check_image.serving import try_image

_PROJECT = Path(__file__).parents[2]
_CACHE = _PROJECT / ".image"
_SHOWN_PACKAGES = 12


def main() -> int:
    """Returns the exit code."""
    try:
        check_machine()
        _CACHE.mkdir(exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="work-", dir=_CACHE))
        try:
            return _check(work)
        finally:
            shutil.rmtree(work)
    except CheckError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _check(work: Path) -> int:
    name, release = read_base((_PROJECT / "Dockerfile").read_text(encoding="utf-8"))
    store = open_store(work)
    try:
        make_base(store, name, release, _CACHE)
        image = build(store, _PROJECT, "cpu", work)
        print(f"{image.megabytes:.0f} MB, of which the largest packages are:")
        for package, megabytes in largest(image.root, _SHOWN_PACKAGES):
            print(f"  {package:24} {megabytes:4.0f} MB")
        found = faults(image, _PROJECT)
        for fault in found:
            print(f"error: {fault}", file=sys.stderr)
        if found:
            return 1
        served = try_image(image, Place(work, models_volume(work / "models", UID)))
    finally:
        close_store(store)
    print(f"image_build_s {image.build_s:.0f}")
    print(f"image_cpu_mb {image.megabytes:.0f}")
    print(f"image_start_s {served.start_s:.1f}")
    print(f"image_stop_s {served.stop_s:.1f}")
    print(f"image_rss_mb {served.rss_mb:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
