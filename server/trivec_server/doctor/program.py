"""How the user starts this Trivec, for commands that can be pasted as they are."""

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from trivec_server.settings import ServeSettings


def trivec(*arguments: str | Path) -> str:
    """The line that runs `trivec` with these arguments."""
    return shlex.join([*_program(), *map(str, arguments)])


def trivec_serve(settings: ServeSettings, changes: Mapping[str, str | int]) -> str:
    """The line that serves the same repository with other values of some flags."""
    given = settings.model_repositories
    roots = () if given == ServeSettings().model_repositories else given
    repositories = (part for root in roots for part in ("--model-repository", root))
    return trivec("serve", *repositories, *(str(part) for change in changes.items() for part in change))


def _program() -> list[str]:
    script = Path(sys.executable).parent / "trivec"
    on_path = shutil.which("trivec")
    if on_path is not None and Path(on_path).parent.resolve() == script.parent.resolve():
        return ["trivec"]
    if not script.exists():
        return [sys.executable, "-m", "trivec_server"]
    here = Path.cwd()
    return [str(script.relative_to(here) if script.is_relative_to(here) else script)]
