"""The options of `trivec serve` that say which models are loaded, in processes started as a user starts them."""

import http.client
import shutil
from pathlib import Path

import pytest

from tests.command_line import trivec
from tests.onnx_models import write_identity
from tests.serving_process import ServingProcess, serve


def make_tensors(repository: Path, *names: str) -> Path:
    """Small models that load at once."""
    for name in names:
        write_identity(repository / name / "1" / "model.onnx")
    return repository


def make_broken(repository: Path, name: str) -> Path:
    """A model that cannot be loaded."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text('backend: "absent"\nmax_batch_size: 1\n')
    return repository


def is_ready(server: ServingProcess) -> bool:
    """What a probe over HTTP finds."""
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=60)
    connection.request("GET", "/v2/health/ready")
    status = connection.getresponse().status
    connection.close()
    assert status in (200, 400)
    return status == 200


def models(server: ServingProcess) -> dict[str, list[str]]:
    """What `trivec models` shows, by name: the columns behind it."""
    listed = trivec("models", "--target", server.target)
    assert listed.code == 0, listed.err
    return {line.split()[0]: line.split(maxsplit=9)[1:] for line in listed.out.splitlines()[1:]}


def test_explicit_control_loads_nothing_by_itself(tmp_path: Path) -> None:
    with serve(make_tensors(tmp_path / "r", "a"), "--model-control-mode", "explicit") as server:
        assert "RepositoryModelLoad loads one" in server.greeting
        assert models(server) == {}
        assert is_ready(server)
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model-control-mode=explicit", "--load-model=a", "--load-model=c"], {"a", "c"}),
        (["--model-control-mode=explicit", "--load-model=*"], {"a", "b", "c"}),
        (["--load-model=b"], {"b"}),
    ],
)
def test_the_models_named_are_loaded_at_the_start(tmp_path: Path, flags: list[str], expected: set[str]) -> None:
    with serve(make_tensors(tmp_path / "r", "a", "b", "c"), *flags) as server:
        shown = models(server)
        assert set(shown) == expected
        assert all(columns[:3] == ["1", "READY", "onnxruntime"] for columns in shown.values())


@pytest.mark.parametrize(
    ("flags", "ready"),
    [
        ([], False),
        (["--no-strict-readiness"], True),
        (["--strict-readiness=false"], True),
        (["--strict-readiness"], False),
    ],
)
def test_strict_readiness_asks_for_every_model(tmp_path: Path, flags: list[str], ready: bool) -> None:
    with serve(make_broken(make_tensors(tmp_path / "r", "good"), "bad"), *flags) as server:
        assert is_ready(server) is ready
        assert models(server)["bad"][1] == "UNAVAILABLE"
        assert "backend `absent`" in models(server)["bad"][-1]


@pytest.mark.parametrize("flag", ["--exit-on-error", "--exit-on-error=true"])
def test_a_model_that_fails_ends_the_server_if_it_was_told_so(tmp_path: Path, flag: str) -> None:
    repository = make_broken(make_tensors(tmp_path / "r", "good"), "bad")
    done = trivec("serve", "--model-repository", repository, "--grpc-port", "0", "--metrics-port", "0", flag)
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert last.startswith(
        "error: not every model could be loaded, and --exit-on-error is set: bad/1: backend `absent`"
    )
    assert "good" not in last


def test_several_repositories_are_served_as_one(tmp_path: Path) -> None:
    first, second = make_tensors(tmp_path / "one", "a", "b"), make_tensors(tmp_path / "two", "b", "c")
    with serve(first, "--model-repository", str(second)) as server:
        states = {name: columns[1] for name, columns in models(server).items()}
        assert states == {"a": "READY", "b": "UNAVAILABLE", "c": "READY"}
        assert "model appears in two or more repositories" in models(server)["b"][-1]


def test_the_doctor_looks_at_all_repositories(tmp_path: Path) -> None:
    roots = [make_tensors(tmp_path / "one", "a", "b"), make_tensors(tmp_path / "two", "b", "c")]
    variable = {"TRIVEC_MODEL_REPOSITORY": ":".join(map(str, roots))}
    done = trivec("doctor", "--grpc-port", "0", "--metrics-port", "0", environment=variable)
    assert "b: model appears in two or more repositories" in done.out
    for name in "abc":
        assert f"model {name}/1" in done.out


def test_polling_follows_the_repository(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    repository.mkdir()
    flags = ("--model-control-mode", "poll", "--repository-poll-secs", "0.1", "--repository-stability-secs", "0.1")
    with serve(repository, *flags) as server:
        assert "looked at again and again" in server.greeting
        make_tensors(tmp_path / "made", "a", "b")
        for name in "ab":
            (tmp_path / "made" / name).rename(repository / name)
        _until(server, "a", "READY")
        shutil.rmtree(repository / "a")
        _until(server, "a", "UNAVAILABLE")
        assert server.stop() == 0


def _until(server: ServingProcess, name: str, state: str) -> None:
    """Asks until a model has this state; each question takes longer than a poll."""
    for _ in range(100):
        if models(server).get(name, ["", ""])[1] == state:
            return
    raise AssertionError(f"{name} never was {state}: {server.log}")


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--load-model=*", "--load-model=a"], "`*` is every model"),
        (["--model-repository=.", "--model-repository=./"], "names the same directory twice"),
        (["--model-control-mode=sometimes"], "is not one of 'none', 'poll', 'explicit'"),
        (["--repository-poll-secs=0"], "0.0 is not in the range"),
        (["--repository-poll-secs=nan"], "nan is not a number of seconds"),
        (["--repository-stability-secs=-1"], "-1.0 is not in the range"),
        (["--strict-readiness=perhaps"], "'perhaps' is not a valid boolean"),
    ],
)
def test_options_that_make_no_sense_are_one_line(flags: list[str], fault: str) -> None:
    done = trivec("serve", *flags)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert fault in line


@pytest.mark.parametrize("mode", ["none", "explicit"])
def test_a_model_to_load_that_is_not_there_is_one_line(tmp_path: Path, mode: str) -> None:
    repository = make_tensors(tmp_path / "r", "a")
    done = trivec("serve", "--model-repository", repository, "--model-control-mode", mode, "--load-model", "b")
    assert done.code == 1
    assert done.err.splitlines()[-1] == f"error: model `b` is not in {repository}; models there: a"


@pytest.mark.parametrize("command", [["pull", "m3-mini"], ["export", "a", "--engine", "openvino"]])
def test_a_command_that_writes_works_on_one_repository(tmp_path: Path, command: list[str]) -> None:
    variable = {"TRIVEC_MODEL_REPOSITORY": f"{tmp_path / 'one'}:{tmp_path / 'two'}"}
    done = trivec(*command, environment=variable)
    assert done.code == 2
    assert "this command works on one repository, not on 2" in done.err
    assert not list(tmp_path.iterdir())


def test_the_doctor_shows_no_password(tmp_path: Path) -> None:
    variables = {
        "TRIVEC_CACHE_REDIS_PASSWORD": "hush-1",
        "TRIVEC_CACHE_CONFIG": "redis,password=hush-2",
        "TRIVEC_MODEL_REPOSITORY": str(make_tensors(tmp_path, "a")),
    }
    done = trivec("doctor", "--grpc-port", "0", "--metrics-port", "0", environment=variables)
    assert "TRIVEC_CACHE_REDIS_PASSWORD=..." in done.out
    assert "hush" not in done.out + done.err
