"""
Triton's own client calls a real Triton and this server, each with the same models: codes, messages, names, shapes and
values are the same, but for what `differences.py` names.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.triton.both_servers import ANSWERS, Group, Record, Records, call, triton, trivec
from tests.triton.differences import DIFFERENCES, Difference, expected

RECORDED: Records = [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]
GROUPS: tuple[Group, ...] = ("serving", "explicit")


@dataclass(frozen=True)
class Answers:
    """What each call came to, by its name."""

    triton: dict[str, Record]
    trivec: dict[str, Record]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("both-servers")
    with ThreadPoolExecutor(max_workers=2) as threads:
        from_triton = threads.submit(ask_triton, folder)
        from_trivec = threads.submit(ask_trivec, folder)
        return Answers(by_name(from_triton.result()), by_name(from_trivec.result()))


def ask_triton(folder: Path) -> Records:
    records: Records = []
    for group in GROUPS:
        with triton(group, folder) as target:
            records += call(target, group, "python", folder)
    return records


def ask_trivec(folder: Path) -> Records:
    records: Records = []
    for group in GROUPS:
        with trivec(group, folder) as target:
            records += call(target, group, "onnxruntime", folder)
    return records


def by_name(records: Records) -> dict[str, Record]:
    return {record["name"]: record for record in records}


def test_every_call_is_recorded(answers: Answers) -> None:
    names = [record["name"] for record in RECORDED]
    assert list(answers.triton) == names, "python -m tests.triton.both_servers writes them anew"
    assert list(answers.trivec) == names
    assert len(names) > 60


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda record: record["name"])
def test_the_answer_is_that_of_triton(answers: Answers, recorded: Record) -> None:
    name = recorded["name"]
    assert answers.trivec[name] == expected(answers.triton[name])


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.reason)
def test_a_difference_is_one(answers: Answers, difference: Difference) -> None:
    """The table names nothing that is the same after all."""
    named = [record for name, record in answers.triton.items() if difference.applies(name)]
    assert named
    assert all(difference.expected(record) != record for record in named)
