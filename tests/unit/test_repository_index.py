"""The repository's index, and where models are found."""

from pathlib import Path

import pytest
from trivec_server.errors import CommandError
from trivec_server.repository.index import IndexEntry, list_index
from trivec_server.repository.records import State, VersionRecord
from trivec_server.repository.roots import Roots
from trivec_server.types import ModelVersion


def record(name: str, version: int, state: State, cause: str = "", note: str = "") -> VersionRecord:
    return VersionRecord(key=ModelVersion(name, version), state=state, cause=cause, note=note)


def test_versions_and_models_never_loaded_stand_together_by_name() -> None:
    records = [record("b", 2, State.READY), record("b", 10, State.LOADING), record("d", 1, State.UNLOADING, "unloaded")]
    places = {"a": [Path("r/a")], "b": [Path("r/b")], "c": [Path("r/c"), Path("s/c")]}
    assert list_index(records, places) == [
        IndexEntry(name="a"),
        IndexEntry(name="b", version="2", state="READY"),
        IndexEntry(name="b", version="10", state="LOADING"),
        IndexEntry(name="c", state="UNAVAILABLE", reason="model appears in two or more repositories"),
        IndexEntry(name="d", version="1", state="UNLOADING", reason="unloaded"),
    ]


def test_a_model_without_any_version_has_none_in_the_index() -> None:
    (entry,) = list_index([record("a", 0, State.UNAVAILABLE, "why")], {})
    assert entry == IndexEntry(name="a", version="", state="UNAVAILABLE", reason="why")


@pytest.mark.parametrize(
    ("cause", "note", "reason"),
    [("", "", ""), ("one", "", "one"), ("", "two", "two"), ("one", "two", "one; two")],
)
def test_a_reason_is_what_caused_the_state_and_what_is_noted(cause: str, note: str, reason: str) -> None:
    assert record("a", 1, State.READY, cause, note).reason == reason


def test_models_are_found_in_all_repositories(tmp_path: Path) -> None:
    for name in ("one/a", "one/b", "two/b", "two/.c"):
        (tmp_path / name).mkdir(parents=True)
    roots = Roots([tmp_path / "one", tmp_path / "two"])
    assert roots.models() == {"a": [tmp_path / "one/a"], "b": [tmp_path / "one/b", tmp_path / "two/b"]}
    assert roots.find("a") == [tmp_path / "one/a"]
    assert roots.find("c") == []


@pytest.mark.parametrize("name", ["", ".", "..", ".c", "../two/b", "a/1", "a\0", "a\n", "x" * 256])
def test_what_is_no_name_of_a_model_is_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "a" / "1").mkdir(parents=True)
    (tmp_path / ".c").mkdir()
    assert Roots([tmp_path]).find(name) == []


def test_a_repository_that_is_missing_is_an_error_and_not_one_without_models(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="does not exist"):
        Roots([tmp_path, tmp_path / "absent"]).models()
