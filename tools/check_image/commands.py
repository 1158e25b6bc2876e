"""Programs of the system: which are needed, and how they are run."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence


class CheckError(Exception):
    """What the image, or the machine that it is tried on, does not fulfil; one line for the user."""


_PACKAGES = {
    "buildah": "buildah",
    "crun": "crun",
    "debootstrap": "debootstrap",
    "nsenter": "util-linux",
    "tar": "tar",
    "unshare": "util-linux",
}
"""The programs by the Debian packages that bring them."""


def check_machine() -> None:
    """
    Says what is missing here.

    Raises:
        CheckError: this is not root, or a program is not installed.
    """
    missing = sorted({package for program, package in _PACKAGES.items() if shutil.which(program) is None})
    if missing:
        raise CheckError(
            f"the image is built and run with programs that are missing: apt-get install {' '.join(missing)}"
        )
    if os.geteuid() != 0:
        raise CheckError("building and running images here needs root: debootstrap, mounts and namespaces")


def run(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, log: int | None = None
) -> "subprocess.CompletedProcess[str]":
    """
    Runs a command to its end and takes what it prints; with `log` both outputs go to that file descriptor.

    Raises:
        CheckError: its exit code is not 0; says the end of its output.
    """
    done = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE if log is None else log,
        stderr=subprocess.PIPE if log is None else log,
        text=True,
        encoding="utf-8",
        env=None if environment is None else {**os.environ, **environment},
    )
    if done.returncode:
        end = (done.stderr or done.stdout or "its output is above").strip()[-800:]
        raise CheckError(f"`{' '.join(command[:3])} ...` ended with {done.returncode}: {end}")
    return done
