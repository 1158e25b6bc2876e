"""The repository's Dockerfile as a list of instructions."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction, with its lines put together; `stage` is the target that it belongs to, before the first none."""

    stage: str
    name: str
    text: str


def instructions() -> list[Instruction]:
    """All of them, in order."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    whole = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    found = []
    stage = ""
    for line in filter(None, map(str.strip, whole.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stage = rest.rpartition(" AS ")[2]
        found.append(Instruction(stage, name, rest))
    return found


def stages() -> dict[str, str]:
    """What each target is made from, in order."""
    return {each.stage: each.text.partition(" ")[0] for each in instructions() if each.name == "FROM"}


def pairs(name: str) -> dict[str, str]:
    """What all instructions ENV or LABEL set."""
    words = [word for each in instructions() if each.name == name for word in _WORD.findall(each.text)]
    return {key: value.strip('"') for key, value in words}


_WORD = re.compile(r'([\w.]+)=("[^"]*"|\S*)')
