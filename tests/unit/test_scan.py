"""Scanning a model repository: what its directories are taken for, and what a version policy selects."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trivec_server.errors import CommandError
from trivec_server.repository.scan import ModelEntry, VersionSelection, scan_repository, select_versions
from trivec_server.types import VersionPolicy

CONFIG = 'backend: "onnxruntime"\nmax_batch_size: 8\n'

AddModel = Callable[..., Path]


@pytest.fixture
def add_model(tmp_path: Path) -> AddModel:
    def add(name: str, *versions: str, config: str | None = CONFIG) -> Path:
        path = tmp_path / name
        path.mkdir()
        for version in versions:
            (path / version).mkdir()
        if config is not None:
            (path / "config.pbtxt").write_text(config)
        return path

    return add


def only_model(root: Path) -> ModelEntry:
    (entry,) = scan_repository(root)
    return entry


class TestRepository:
    def test_models_come_by_name_with_settings_and_versions(self, tmp_path: Path, add_model: AddModel) -> None:
        add_model("b", "1")
        add_model("a", "10", "9")
        first, second = scan_repository(tmp_path)
        assert (first.name, second.name) == ("a", "b")
        assert first.settings is not None
        assert first.settings.name == "a"
        assert [(version.number, version.path) for version in first.versions] == [
            (9, tmp_path / "a" / "9"),
            (10, tmp_path / "a" / "10"),
        ]
        assert (first.error, first.problems) == (None, ())

    def test_files_and_hidden_directories_are_no_models(self, tmp_path: Path, add_model: AddModel) -> None:
        add_model("m", "1")
        (tmp_path / "README.md").touch()
        (tmp_path / ".building-x").mkdir()
        assert only_model(tmp_path).name == "m"

    def test_an_empty_repository_has_no_models(self, tmp_path: Path) -> None:
        assert scan_repository(tmp_path) == ()

    def test_a_model_may_be_a_link_to_a_directory(self, tmp_path: Path, add_model: AddModel) -> None:
        elsewhere = add_model(".elsewhere", "1")
        (tmp_path / "m").symlink_to(elsewhere)
        entry = only_model(tmp_path)
        assert (entry.name, entry.error, len(entry.versions)) == ("m", None, 1)

    def test_a_missing_repository_says_how_to_make_one(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match=r"absent does not exist; `trivec pull m3-mini` makes"):
            scan_repository(tmp_path / "absent")

    def test_a_file_is_no_repository(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CommandError, match=r"file is not a directory; `trivec pull m3-mini` makes"):
            scan_repository(tmp_path / "file")

    def test_a_repository_that_cannot_be_listed_names_the_reason(self, tmp_path: Path) -> None:
        loop = tmp_path / "loop"
        loop.symlink_to(loop)
        with pytest.raises(CommandError, match=r"loop cannot be read: "):
            scan_repository(loop)


class TestModel:
    """A wrong model is an entry with an error; the others are not affected."""

    def test_a_wrong_model_leaves_the_others_alone(self, tmp_path: Path, add_model: AddModel) -> None:
        add_model("bad", "1", config="max_bath_size: 1")
        add_model("good", "1")
        bad, good = scan_repository(tmp_path)
        assert bad.settings is None
        assert bad.error is not None
        assert bad.error.startswith(f"{tmp_path}/bad/config.pbtxt:1:1: unknown field `max_bath_size`")
        assert [version.number for version in bad.versions] == [1]
        assert good.error is None

    def test_a_missing_config_is_named(self, tmp_path: Path, add_model: AddModel) -> None:
        path = add_model("m", "1", config=None)
        assert str(only_model(tmp_path).error).startswith(f"{path}/config.pbtxt: not found")

    def test_a_config_that_is_a_directory_is_named(self, tmp_path: Path, add_model: AddModel) -> None:
        path = add_model("m", "1", "config.pbtxt", config=None)
        assert str(only_model(tmp_path).error).startswith(f"{path}/config.pbtxt: cannot be read")

    def test_a_model_without_versions_says_what_it_needs(self, tmp_path: Path, add_model: AddModel) -> None:
        path = add_model("m")
        assert only_model(tmp_path).error == (
            f"{path}: no version: it needs a directory named by a positive integer, such as {path}/1"
        )

    def test_a_link_that_leads_nowhere_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "m").symlink_to(tmp_path / "gone")
        assert only_model(tmp_path).error == f"{tmp_path}/m: a link to a directory that does not exist"

    @pytest.mark.parametrize("name", ["a\nb", b"a\xff".decode(errors="surrogateescape"), "a\u200bb"])
    def test_a_name_that_is_not_printable_is_an_error_on_one_line(
        self, tmp_path: Path, add_model: AddModel, name: str
    ) -> None:
        add_model(name, "1")
        error = str(only_model(tmp_path).error)
        assert "not a model name" in error
        assert error.isprintable()
        assert only_model(tmp_path).name == ascii(name)

    def test_a_name_may_be_in_any_script(self, tmp_path: Path, add_model: AddModel) -> None:
        add_model("模型 1", "1")
        assert only_model(tmp_path).error is None


class TestVersions:
    def test_what_triton_keeps_beside_versions_is_skipped_silently(self, tmp_path: Path, add_model: AddModel) -> None:
        path = add_model("m", "1", "configs", "warmup", "initial_state", ".building-2")
        (path / "README.md").touch()
        entry = only_model(tmp_path)
        assert [version.number for version in entry.versions] == [1]
        assert entry.problems == ()

    @pytest.mark.parametrize("name", ["v2", "-1", "1.0", "latest", "1 copy", "２", "0", "00", str(2**63), "9" * 200])
    def test_a_directory_that_is_not_a_positive_integer_is_a_problem(
        self, tmp_path: Path, add_model: AddModel, name: str
    ) -> None:
        path = add_model("m", "1", name)
        entry = only_model(tmp_path)
        assert [version.number for version in entry.versions] == [1]
        assert entry.error is None
        (problem,) = entry.problems
        assert problem.startswith(f"{path}/{name}: ignored: ")

    def test_an_unprintable_directory_is_a_problem_on_one_line(self, tmp_path: Path, add_model: AddModel) -> None:
        add_model("m", "1", "a\nb")
        (problem,) = only_model(tmp_path).problems
        assert problem.isprintable()

    def test_the_largest_version_is_read(self, tmp_path: Path, add_model: AddModel) -> None:
        add_model("m", str(2**63 - 1))
        assert [version.number for version in only_model(tmp_path).versions] == [2**63 - 1]

    def test_leading_zeros_are_left_out_with_a_warning(self, tmp_path: Path, add_model: AddModel) -> None:
        path = add_model("m", "007")
        entry = only_model(tmp_path)
        assert [(version.number, version.path) for version in entry.versions] == [(7, path / "007")]
        assert entry.problems == (f"{path}/007: leading zeros are left out: this is version 7",)

    def test_two_directories_for_one_version_are_an_error(self, tmp_path: Path, add_model: AddModel) -> None:
        path = add_model("m", "01", "1")
        assert only_model(tmp_path).error == f"{path}: 01 and 1 are the same version; remove one of them"

    def test_a_model_that_cannot_be_read_is_told_from_one_that_is_gone(self, tmp_path: Path) -> None:
        (tmp_path / "m").symlink_to(tmp_path / "m")
        (tmp_path / "n").symlink_to(tmp_path / "gone")
        entries = {entry.name: entry for entry in scan_repository(tmp_path)}
        assert {name: entry.is_unreadable for name, entry in entries.items()} == {"m": True, "n": False}
        assert "m: cannot be read: " in str(entries["m"].error)

    def test_a_version_that_cannot_be_read_is_still_one(self, tmp_path: Path, add_model: AddModel) -> None:
        path = add_model("m", "1")
        (path / "2").symlink_to(path / "2")
        assert [version.number for version in only_model(tmp_path).versions] == [1, 2]

    @pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("gone")])
    def test_a_number_that_is_no_directory_is_a_problem(
        self, tmp_path: Path, add_model: AddModel, make: Callable[[Path], None]
    ) -> None:
        path = add_model("m", "1")
        make(path / "2")
        entry = only_model(tmp_path)
        assert [version.number for version in entry.versions] == [1]
        assert entry.problems == (f"{path}/2: ignored: a version must be a directory",)


class TestSelectVersions:
    @pytest.mark.parametrize(
        ("policy", "selection"),
        [
            (VersionPolicy(), VersionSelection((9,))),
            (VersionPolicy(latest=2), VersionSelection((4, 9))),
            (VersionPolicy(latest=5), VersionSelection((1, 4, 9))),
            (VersionPolicy(latest=None), VersionSelection((1, 4, 9))),
            (VersionPolicy(latest=None, specific=(9, 1)), VersionSelection((1, 9))),
            (VersionPolicy(latest=None, specific=(8, 4, 2)), VersionSelection((4,), (2, 8))),
        ],
    )
    def test_a_policy_selects(self, policy: VersionPolicy, selection: VersionSelection) -> None:
        assert select_versions(policy, [9, 1, 4]) == selection

    def test_no_versions_select_none(self) -> None:
        assert select_versions(VersionPolicy(), []) == VersionSelection(())
        assert select_versions(VersionPolicy(latest=None, specific=(3,)), []) == VersionSelection((), (3,))

    @given(available=st.sets(st.integers(1, 50)), count=st.integers(1, 60))
    def test_latest_takes_the_highest(self, available: set[int], count: int) -> None:
        selected = select_versions(VersionPolicy(latest=count), available).selected
        assert len(selected) == min(count, len(available))
        assert not selected or min(selected) > max(available - set(selected), default=0)


DIRECTORY_NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)


@settings(max_examples=100, deadline=None)
@given(name=DIRECTORY_NAMES)
def test_any_name_of_a_directory_is_scanned(tmp_path_factory: pytest.TempPathFactory, name: bytes) -> None:
    root = tmp_path_factory.mktemp("repository")
    (root / os.fsdecode(name) / os.fsdecode(name)).mkdir(parents=True)
    for entry in scan_repository(root):
        assert entry.error is not None
        assert entry.error.isprintable()
        assert all(problem.isprintable() for problem in entry.problems)
