"""One folder for several: who pulls into it takes turns, and who serves from it sees whole models only."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trivec_client import TrivecClient
from trivec_server.repository.manifest import read_manifest, verify_files
from trivec_server.repository.pull import pull

from tests.hub_server import serve_hub
from tests.repository_calls import Index, RepositoryCalls
from tests.serving_process import serve
from tests.tiny_model import write_tiny_model
from tests.wire.pull_process import MODEL, WEIGHTS, Pulls

POLLING = ("--model-control-mode", "poll", "--repository-poll-secs", "0.05", "--repository-stability-secs", "0.2")
NAME = "tiny-m3"


@pytest.fixture
def pulls(tmp_path: Path) -> Iterator[Pulls]:
    write_tiny_model(tmp_path / "checkpoint")
    with serve_hub({MODEL: tmp_path / "checkpoint"}) as hub:
        yield Pulls(hub, tmp_path)


def start_pull(pulls: Pulls, host: str) -> "subprocess.Popen[str]":
    """`trivec pull` with a cache of its own, as on another host."""
    return subprocess.Popen(
        [sys.executable, "-m", "trivec_server", "pull", MODEL, "--model-repository", str(pulls.repository)],
        env={**pulls.environment, "HF_HOME": str(pulls.cache.with_name(host))},
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: "subprocess.Popen[str]", words: str) -> str:
    """The line of the process's standard error that has these words."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return line
    raise AssertionError(f"it ended before it said {words!r}: {''.join(lines)}")


def finish(process: "subprocess.Popen[str]") -> str:
    """The rest of what a pull that succeeds has to say."""
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors


def stalled_pull(pulls: Pulls) -> "subprocess.Popen[str]":
    """A pull in the middle of its download, until the hub goes on."""
    pulls.hub.stalls[WEIGHTS] = 5000
    process = start_pull(pulls, "first")
    assert pulls.hub.stalled.wait(60)
    return process


def check_whole(repository: Path) -> None:
    """The model is there in one version, and nothing else is left."""
    assert [path.name for path in repository.iterdir()] == [NAME]
    assert {path.name for path in (repository / NAME).iterdir()} == {"1", "config.pbtxt"}
    verify_files(repository / NAME / "1", read_manifest(repository / NAME / "1"))


def test_of_two_pulls_at_once_one_downloads_and_both_succeed(pulls: Pulls) -> None:
    first = stalled_pull(pulls)
    second = start_pull(pulls, "second")
    said = read_until(second, "waiting for")
    assert f"waiting for process {first.pid} on " in said
    assert "expires in" in said
    pulls.hub.released.set()
    assert "is ready" in finish(first)
    assert "already: nothing to do" in finish(second)
    assert len(pulls.hub.downloads(WEIGHTS)) == 1
    check_whole(pulls.repository)


def test_who_waits_goes_on_when_the_other_is_killed(pulls: Pulls) -> None:
    first = stalled_pull(pulls)
    second = start_pull(pulls, "second")
    read_until(second, "waiting for")
    first.kill()
    first.communicate()
    assert "is ready" in finish(second)
    check_whole(pulls.repository)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_waits_and_is_told_to_stop_disturbs_nobody(pulls: Pulls, number: signal.Signals) -> None:
    first = stalled_pull(pulls)
    second = start_pull(pulls, "second")
    read_until(second, "waiting for")
    second.send_signal(number)
    second.communicate()
    assert second.returncode != 0
    pulls.hub.released.set()
    finish(first)
    check_whole(pulls.repository)


def test_of_two_exports_at_once_one_is_made_and_both_succeed(pulls: Pulls) -> None:
    pulls.run()
    command = [sys.executable, "-m", "trivec_server", "export", NAME, "--engine", "onnxruntime", "--precision", "fp16"]
    exports = [
        subprocess.Popen([*command, "--model-repository", str(pulls.repository)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [finish(export) for export in exports]
    assert sorted("nothing to do" in each for each in said) == [False, True]
    assert {path.name for path in (pulls.repository / NAME).iterdir()} == {"1", "2", "config.pbtxt"}


def copy_in_one_step(source: Path, repository: Path, name: str) -> None:
    """As a deployment that takes care does it."""
    draft = repository / f".draft-{name}"
    shutil.copytree(source, draft)
    config = draft / "config.pbtxt"
    config.write_text(config.read_text().replace(f'name: "{source.name}"', f'name: "{name}"'))
    draft.rename(repository / name)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A model directory that was pulled elsewhere."""
    write_tiny_model(tmp_path / "source", seed=8)
    return pull(str(tmp_path / "source"), tmp_path / "elsewhere", name="made", report=lambda _: None).parent


def test_a_polling_server_sees_nothing_of_a_pull_until_all_is_there(
    pulls: Pulls, made: Path, mini_repository: Path
) -> None:
    pulls.repository.mkdir()
    (pulls.repository / "m3-mini").symlink_to((mini_repository / "m3-mini").resolve())
    with serve(pulls.repository, *POLLING) as server, RepositoryCalls(server.target) as calls:

        def check_unseen(probe: str) -> None:
            """Once the server has found what was put there later, it has looked at the pull's traces as well."""
            copy_in_one_step(made, pulls.repository, probe)
            index = calls.wait_until_ready(probe)
            assert {name for name, _ in index} == {"m3-mini", *(f"probe-{n}" for n in range(int(probe[-1]) + 1))}

        pulls.hub.stalls[WEIGHTS] = 5000
        process = pulls.start(wait_at="checksums")
        assert pulls.hub.stalled.wait(60)
        assert list(pulls.repository.glob(f".lock-{NAME}"))
        check_unseen("probe-0")
        pulls.hub.released.set()
        assert process.stdout is not None
        assert any("checksums" in line for line in process.stdout)
        assert list(pulls.repository.glob(f".building-{NAME}.*/version/model.onnx"))
        check_unseen("probe-1")
        process.communicate("\n")
        assert process.returncode == 0
        calls.wait_until_ready(NAME)
        with TrivecClient(server.target, model=NAME) as client:
            assert client.encode(["hello world"], max_length=64)["dense_vecs"] is not None


def test_a_polling_server_serves_a_model_that_is_copied_slowly_only_when_it_is_whole(
    pulls: Pulls, made: Path, mini_repository: Path
) -> None:
    """Its largest file comes in two halves, long after the manifest; each step lasts until the server has seen it."""
    pulls.repository.mkdir()
    (pulls.repository / "m3-mini").symlink_to((mini_repository / "m3-mini").resolve())
    target = pulls.repository / "made"
    with serve(pulls.repository, *POLLING) as server, RepositoryCalls(server.target) as calls:

        def wait_for_reason(words: str) -> None:
            def is_named(index: Index) -> bool:
                assert index.get(("made", "1"), ("", ""))[0] != "READY"
                return any(name == "made" and words in reason for (name, _), (_, reason) in index.items())

            calls.wait_for(is_named)

        target.mkdir()
        shutil.copy(made / "config.pbtxt", target)
        wait_for_reason("no version")
        (target / "1").mkdir()
        wait_for_reason("being written: made/1/manifest.json: not found")
        shutil.copy(made / "1" / "manifest.json", target / "1")
        wait_for_reason("being written: made/1/")
        data = (made / "1" / "model.onnx.data").read_bytes()
        for name in ("model.onnx", "tokenizer.json"):
            shutil.copy(made / "1" / name, target / "1")
        with (target / "1" / "model.onnx.data").open("wb", buffering=0) as file:
            file.write(data[: len(data) // 2])
            wait_for_reason(f"being written: made/1/model.onnx.data: {len(data) // 2} of {len(data)} bytes")
            file.write(data[len(data) // 2 :])
        calls.wait_until_ready("made")
