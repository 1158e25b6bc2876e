"""`trivec doctor` on machines that are in order and on those that are not."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from trivec_server import cli
from trivec_server.repository.manifest import ModelFacts, Source, read_manifest, write_manifest
from trivec_server.settings import TlsSettings
from trivec_server.types import Mode

from tests.command_line import trivec
from tests.onnx_models import write_identity
from tests.rpc.credentials import AccessFile, Authority
from tests.serving_process import serve
from tests.tiny_model import write_tiny_tokenizer

CONFIG = 'backend: "onnxruntime"\nmax_batch_size: 8\n'
Findings = dict[str, list[dict[str, Any]]]
"""By the check's name."""

Report = tuple[int, Findings]
"""The exit code and the findings."""

HUB_SOURCE = Source(kind="hub", name="org/Tiny-M3", revision="0123abc")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one model that is in order, as far as one can tell without loading it."""
    model = tmp_path / "repository" / "tiny"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG)
    write_version(model / "1")
    return model.parent


def write_version(directory: Path, source: Source = HUB_SOURCE) -> None:
    write_tiny_tokenizer(directory / "tokenizer.json")
    (directory / "model.onnx").write_bytes(np.arange(1000).tobytes())
    facts = ModelFacts(
        architecture="xlm-roberta",
        pooling="cls",
        precision="float16",
        modes=Mode.HYBRID,
        dense_dimension=32,
        multi_vector_dimension=32,
        vocabulary_size=40,
        max_tokens=64,
    )
    write_manifest(directory, facts, source, ["model.onnx", "tokenizer.json"])


class Doctor:
    """Runs the command in this process. The ports are any free ones, unless the flags say otherwise."""

    ports = ("--grpc-port", "0", "--metrics-port", "0")

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, repository: Path, *flags: str) -> Report:
        self._capsys.readouterr()
        code = cli.run(["doctor", "--json", "--model-repository", str(repository), *self.ports, *flags])
        return read_report(code, self._capsys.readouterr().out)

    def apart(self, repository: Path, **environment: str) -> Report:
        """In a process of its own, with these variables set."""
        flags = ("--json", "--model-repository", repository, *self.ports)
        done = trivec("doctor", *flags, environment=environment)
        return read_report(done.code, done.out)


def read_report(code: int, out: str) -> Report:
    findings: Findings = {}
    document = json.loads(out)
    assert document["serves"] == (code == 0)
    for finding in document["findings"]:
        findings.setdefault(finding["check"], []).append(finding)
    return code, findings


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


def only_fault(findings: Findings) -> dict[str, Any]:
    """The only finding that is not ok."""
    faults = [finding for each in findings.values() for finding in each if finding["status"] != "ok"]
    assert len(faults) == 1, faults
    return faults[0]


def mend_of(finding: dict[str, Any]) -> list[str]:
    """The arguments of the `trivec` that mends it."""
    words = shlex.split(finding["mend"])
    program = next(number for number, word in enumerate(words) if word.endswith(("trivec", "trivec_server")))
    return words[program + 1 :]


def test_a_machine_in_order_passes(examine: Doctor, mini_repository: Path) -> None:
    code, findings = examine(mini_repository)
    assert code == 0
    assert {finding["status"] for each in findings.values() for finding in each} == {"ok"}


def test_every_subject_is_checked(examine: Doctor, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, findings = examine(repository)
    assert list(findings) == [
        "python",
        "packages",
        "extras",
        "engine onnxruntime",
        "engine openvino",
        "cpu",
        "environment",
        "gRPC port",
        "metrics port",
        "repository",
        "model tiny/1",
        "leftovers",
        "memory",
        "disk of the repository",
        "hub",
        "hub cache",
    ]


def test_text_output_has_a_line_a_finding_and_sums_up(repository: Path) -> None:
    done = trivec("doctor", "--model-repository", repository / "nowhere", "--grpc-port", "0", "--metrics-port", "0")
    lines = done.out.splitlines()
    assert all(line.startswith(("ok    ", "FAIL  ", "      mend: ")) for line in lines[:-1])
    assert lines[0].startswith("ok    python: 3.")
    assert lines[-1] == "`trivec serve` would fail: 1 failure and no warnings"


def test_a_missing_repository_fails_and_the_mend_makes_one(examine: Doctor, tmp_path: Path) -> None:
    missing = tmp_path / "a repository"
    code, findings = examine(missing)
    assert code == 1
    fault = only_fault(findings)
    assert fault["fact"].startswith(f"model repository {missing} does not exist")
    assert mend_of(fault) == ["pull", "m3-mini", "--model-repository", str(missing)]


def test_an_empty_repository_fails(examine: Doctor, tmp_path: Path) -> None:
    code, findings = examine(tmp_path)
    assert code == 1
    assert mend_of(only_fault(findings)) == ["pull", "m3-mini", "--model-repository", str(tmp_path)]


def test_a_damaged_file_is_named_and_pulled_again_from_its_source(examine: Doctor, repository: Path) -> None:
    damaged = repository / "tiny" / "1" / "model.onnx"
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1
    damaged.write_bytes(content)
    code, findings = examine(repository)
    assert code == 1
    fault = only_fault(findings)
    assert fault["check"] == "model tiny/1"
    assert fault["fact"].startswith(f"{damaged}: damaged: its SHA-256 is ")
    source = ["org/Tiny-M3", "--model-repository", str(repository), "--name", "tiny", "--revision", "0123abc"]
    assert mend_of(fault) == ["pull", *source, "--precision", "float16"]


def test_a_truncated_file_is_named_with_its_sizes(examine: Doctor, repository: Path) -> None:
    path = repository / "tiny" / "1" / "model.onnx"
    os.truncate(path, 7000)
    code, findings = examine(repository)
    assert code == 1
    assert only_fault(findings)["fact"].startswith(f"{path}: truncated: 7000 of 8000 bytes")


def test_the_mend_of_a_damaged_mini_model_mends_it(examine: Doctor, mini_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(mini_repository / "m3-mini", repository / "m3-mini")
    (repository / "m3-mini" / "1" / "tokenizer.json").unlink()
    _, findings = examine(repository)
    assert trivec(*mend_of(only_fault(findings))).code == 0
    code, _ = examine(repository)
    assert code == 0


def test_a_file_that_is_no_tokenizer_is_named(examine: Doctor, repository: Path) -> None:
    version = repository / "tiny" / "1"
    write_version(version)
    (version / "tokenizer.json").write_text("{}")
    facts = json.loads((version / "manifest.json").read_text())
    source, model = facts["source"], facts["model"]
    write_manifest(
        version,
        ModelFacts(**{**model, "modes": Mode.HYBRID}),
        Source(**source),
        ["model.onnx", "tokenizer.json"],
    )
    code, findings = examine(repository)
    assert code == 1
    assert only_fault(findings)["fact"].startswith("tokenizer.json is not a readable tokenizer")


def test_an_empty_version_is_not_whole(examine: Doctor, repository: Path) -> None:
    (repository / "tiny" / "2").mkdir()
    code, findings = examine(repository)
    assert code == 1
    fault = only_fault(findings)
    assert fault["check"] == "model tiny/2"
    assert "manifest.json: not found, so the version is not whole" in fault["fact"]
    assert fault["mend"].startswith(f"rm -r {repository / 'tiny' / '2'} && ")
    assert mend_of(fault)[:2] == ["pull", "SOURCE"]


def test_a_version_that_the_policy_leaves_out_is_of_no_concern(examine: Doctor, repository: Path) -> None:
    (repository / "tiny" / "2").mkdir()
    (repository / "tiny" / "config.pbtxt").write_text(CONFIG + "version_policy { specific { versions: 1 } }\n")
    code, _ = examine(repository)
    assert code == 0


def test_a_version_that_the_policy_names_and_is_not_there_is_a_warning(examine: Doctor, repository: Path) -> None:
    (repository / "tiny" / "config.pbtxt").write_text(CONFIG + "version_policy { specific { versions: [ 1, 5 ] } }\n")
    code, findings = examine(repository)
    assert code == 0
    assert "asks for version 5" in findings["model tiny/5"][0]["fact"]
    assert findings["models"][0]["fact"] == "tiny/5 would not be served; tiny/1 would"


def test_a_broken_model_beside_a_good_one_is_a_warning(examine: Doctor, repository: Path) -> None:
    (repository / "broken").mkdir()
    code, findings = examine(repository)
    assert code == 0
    (verdict,) = findings["models"]
    assert (verdict["status"], verdict["fact"]) == ("warn", "broken would not be served; tiny would")


def test_a_model_without_a_version_is_called_by_its_name(examine: Doctor, repository: Path) -> None:
    shutil.rmtree(repository / "tiny" / "1")
    code, findings = examine(repository)
    assert code == 1
    assert only_fault(findings)["check"] == "model tiny"


@pytest.mark.parametrize("directory", ["tiny", "tiny/../tiny"])
def test_a_model_given_as_the_repository_is_told_from_one(examine: Doctor, repository: Path, directory: str) -> None:
    code, findings = examine(repository / directory)
    assert code == 1
    fault = only_fault(findings)
    assert fault["fact"].endswith("this looks like a model's directory; give its parent")
    assert Path(mend_of(fault)[-1]).resolve() == repository.resolve()


def test_a_model_without_versions_given_as_the_repository_is_told_from_one(examine: Doctor, repository: Path) -> None:
    shutil.rmtree(repository / "tiny" / "1")
    _, findings = examine(repository / "tiny")
    assert mend_of(only_fault(findings)) == ["serve", "--model-repository", str(repository)]


def test_a_typo_in_a_config_is_named_with_its_place(examine: Doctor, repository: Path) -> None:
    config = repository / "tiny" / "config.pbtxt"
    config.write_text('backend: "onnxruntime"\nmax_bath_size: 8\n')
    code, findings = examine(repository)
    assert code == 1
    fault = only_fault(findings)
    assert fault["fact"].startswith(f"{config}:2:1: unknown field `max_bath_size`")
    assert fault["mend"] == f"edit {config}"


@pytest.mark.parametrize(
    ("setting", "fact"),
    [
        (
            'parameters { key: "max_tokens" value { string_value: "65" } }',
            "config.pbtxt: max_tokens is 65, but the model takes at most 64",
        ),
        (
            'parameters { key: "pooling" value { string_value: "mean" } }',
            "config.pbtxt says pooling mean, the model has cls",
        ),
        (
            'output { name: "dense" data_type: TYPE_FP32 dims: 33 }',
            "config.pbtxt says dense dimension 33, the model has 32",
        ),
    ],
)
def test_a_config_that_disagrees_with_the_model_is_to_be_edited(
    examine: Doctor, repository: Path, setting: str, fact: str
) -> None:
    config = repository / "tiny" / "config.pbtxt"
    config.write_text(f"{CONFIG}{setting}\n")
    code, findings = examine(repository)
    assert code == 1
    fault = only_fault(findings)
    assert fault["fact"].startswith(fact)
    assert fault["mend"] == f"edit {config}"


def test_the_mend_of_a_missing_config_writes_it(examine: Doctor, mini_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(mini_repository / "m3-mini", repository / "m3-mini")
    (repository / "m3-mini" / "config.pbtxt").unlink()
    _, findings = examine(repository)
    assert trivec(*mend_of(only_fault(findings))).code == 0
    code, _ = examine(repository)
    assert code == 0


def test_a_field_without_effect_is_a_warning(examine: Doctor, repository: Path) -> None:
    (repository / "tiny" / "config.pbtxt").write_text(CONFIG + 'runtime: "x"\n')
    code, findings = examine(repository)
    assert code == 0
    assert only_fault(findings)["status"] == "warn"


def test_an_unknown_backend_fails(examine: Doctor, repository: Path) -> None:
    (repository / "tiny" / "config.pbtxt").write_text(CONFIG.replace("onnxruntime", "onnxrntime"))
    code, findings = examine(repository)
    assert code == 1
    assert only_fault(findings)["fact"].startswith("backend `onnxrntime` in config.pbtxt is not known")


@pytest.mark.parametrize("flags", [(), ("--load",)])
def test_a_model_that_takes_tensors_needs_its_file(examine: Doctor, tmp_path: Path, flags: tuple[str, ...]) -> None:
    repository = tmp_path / "repository"
    write_identity(repository / "little" / "1" / "model.onnx")
    config = repository / "little" / "config.pbtxt"
    config.write_text('backend: "onnxruntime"\ninput { name: "x" data_type: TYPE_FP32 dims: [ -1, -1 ] }\n')
    code, findings = examine(repository, *flags)
    (finding,) = findings["model little/1"]
    assert (code, finding["status"]) == (0, "ok")
    assert finding["fact"].startswith("model.onnx, ")
    (repository / "little" / "1" / "model.onnx").unlink()
    code, findings = examine(repository, *flags)
    (finding,) = findings["model little/1"]
    assert (code, finding["mend"]) == (1, f"edit {config}")
    assert "model.onnx: not found; put the model there" in finding["fact"]


def test_models_that_would_not_be_loaded_are_not_checked(examine: Doctor, repository: Path) -> None:
    (repository / "broken").mkdir()
    assert "model broken" in examine(repository)[1]
    code, findings = examine(repository, "--load-model", "tiny")
    assert code == 0
    assert "model broken" not in findings


def test_a_model_to_load_that_is_not_there_fails(
    examine: Doctor, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIVEC_LOAD_MODEL", "tny")
    code, findings = examine(repository)
    assert code == 1
    serve = ["serve", "--model-repository", str(repository)]
    assert mend_of(only_fault(findings)) == [*serve, "--load-model", "tiny"]


def test_a_model_that_needs_more_memory_than_there_is_fails(examine: Doctor, repository: Path) -> None:
    instances = 64
    group = f"instance_group {{ kind: KIND_CPU count: {instances} }}\n"
    (repository / "tiny" / "config.pbtxt").write_text(CONFIG + group)
    # Zeros, of which nothing lies on the disk.
    with (repository / "tiny" / "1" / "model.onnx").open("wb") as weights:
        weights.truncate(psutil.virtual_memory().total // instances)
    manifest = read_manifest(repository / "tiny" / "1")
    write_manifest(repository / "tiny" / "1", manifest.model, manifest.source, list(manifest.files))
    code, findings = examine(repository)
    assert code == 1
    assert only_fault(findings)["check"] == "memory"


def test_loading_finds_what_checksums_cannot(examine: Doctor, repository: Path) -> None:
    assert examine(repository)[0] == 0
    code, findings = examine(repository, "--load")
    assert code == 1
    assert "model.onnx cannot be loaded by ONNX Runtime" in only_fault(findings)["fact"]


def test_loading_a_sound_model_passes(examine: Doctor, mini_repository: Path) -> None:
    code, findings = examine(mini_repository, "--load")
    assert code == 0
    assert findings["model m3-mini/1"][0]["fact"].endswith("loaded and self-checked")


@pytest.mark.parametrize(("flag", "check"), [("--grpc-port", "gRPC port"), ("--metrics-port", "metrics port")])
def test_a_port_in_use_fails_and_the_mend_names_a_free_one(
    examine: Doctor, repository: Path, flag: str, check: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        code, findings = examine(repository, flag, str(port))
        assert code == 1
        fault = only_fault(findings)
        assert fault["check"] == check
        assert fault["fact"].startswith(f"127.0.0.1:{port} is in use by process {os.getpid()} (")
        *command, free = mend_of(fault)
        assert command == ["serve", "--model-repository", str(repository), flag]
        socket.create_server(("127.0.0.1", int(free))).close()


def test_the_mends_of_both_ports_are_one_command_with_two_ports(examine: Doctor, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as grpc, socket.create_server(("127.0.0.1", 0)) as metrics:
        ports = [holder.getsockname()[1] for holder in (grpc, metrics)]
        code, findings = examine(repository, "--grpc-port", str(ports[0]), "--metrics-port", str(ports[1]))
    assert code == 1
    mend = mend_of(findings["gRPC port"][0])
    assert mend == mend_of(findings["metrics port"][0])
    assert [mend[-4], mend[-2]] == ["--grpc-port", "--metrics-port"]
    assert len({mend[-3], mend[-1], *map(str, ports)}) == 4


def test_ports_that_a_trivec_holds_are_warnings(examine: Doctor, mini_repository: Path, tmp_path: Path) -> None:
    with serve(mini_repository, log_path=tmp_path / "log") as server:
        port = server.target.rpartition(":")[2]
        flags = ("--grpc-port", port, "--metrics-port", str(server.metrics_port))
        code, findings = examine(mini_repository, *flags)
    assert code == 0
    for check in ("gRPC port", "metrics port"):
        (finding,) = findings[check]
        assert finding["status"] == "warn"
        assert finding["fact"].endswith(": Trivec already serves there")


def test_one_port_for_both_endpoints_fails(examine: Doctor, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    code, findings = examine(repository, "--grpc-port", str(port), "--metrics-port", str(port))
    assert code == 1
    assert only_fault(findings)["fact"] == f"--grpc-port and --metrics-port are both {port}"


@pytest.mark.parametrize(
    ("host", "fact"),
    [
        ("192.0.2.1", "192.0.2.1 is not an address of this machine"),
        ("no such host", "--host 'no such host' cannot be resolved"),
    ],
)
def test_a_host_that_cannot_be_bound_fails(examine: Doctor, repository: Path, host: str, fact: str) -> None:
    code, findings = examine(repository, "--host", host, "--grpc-port", "8001", "--allow-insecure")
    assert code == 1
    assert only_fault(findings)["fact"].startswith(fact)


def test_plain_text_beyond_this_machine_fails(examine: Doctor, repository: Path) -> None:
    code, findings = examine(repository, "--host", "0.0.0.0")  # noqa: S104 - the fault
    assert code == 1
    assert only_fault(findings)["fact"].startswith("--host 0.0.0.0 is not loopback")


@pytest.fixture
def secured(tmp_path: Path) -> TlsSettings:
    """A pair that is in order, and its key is the owner's alone."""
    tls = Authority(tmp_path).server()
    tls.private_key.chmod(0o600)
    return tls


def flags_of(tls: TlsSettings) -> tuple[str, ...]:
    return "--tls-certificate", str(tls.certificate), "--tls-private-key", str(tls.private_key)


def test_certificate_and_access_file_in_order_are_named(
    examine: Doctor, repository: Path, secured: TlsSettings, tmp_path: Path
) -> None:
    access = AccessFile(tmp_path / "access.toml").write(reader={})
    access.path.chmod(0o640)
    code, findings = examine(repository, *flags_of(secured), "--access-file", str(access.path))
    assert code == 0
    assert findings["certificate"][0]["fact"].startswith(f"{secured.certificate} ends ")
    assert findings["access file"][0]["fact"] == f"{access.path} has 1 identity"
    assert "permissions" not in findings


def test_a_certificate_that_ends_soon_is_a_warning_and_one_that_has_ended_fails(
    examine: Doctor, repository: Path, secured: TlsSettings, tmp_path: Path
) -> None:
    for days, code, status in ((10, 0, "warn"), (-1, 1, "fail")):
        Authority(tmp_path).server(days=days)
        secured.private_key.chmod(0o600)
        ended, findings = examine(repository, *flags_of(secured))
        assert (ended, only_fault(findings)["check"], only_fault(findings)["status"]) == (code, "certificate", status)


def test_a_wrong_access_file_fails_with_the_entry(examine: Doctor, repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.touch(0o600)
    path.write_text('[[identity]]\nname = "a"\nscopes = ["infer"]\n')
    code, findings = examine(repository, "--access-file", str(path))
    assert code == 1
    assert '[[identity]] 1 ("a"): token_sha256 is missing' in only_fault(findings)["fact"]


def test_a_key_that_every_user_can_read_is_a_warning_whose_mend_mends(
    examine: Doctor, repository: Path, secured: TlsSettings
) -> None:
    secured.private_key.chmod(0o644)
    code, findings = examine(repository, *flags_of(secured))
    assert code == 0
    fault = only_fault(findings)
    assert fault["fact"].startswith("every user of this machine can read the private key")
    subprocess.run(shlex.split(fault["mend"]), check=True)
    _, findings = examine(repository, *flags_of(secured))
    assert "permissions" not in findings


def test_a_misspelt_variable_is_a_warning_with_the_name_meant(
    examine: Doctor, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIVEC_GRPC_PROT", "9000")
    code, findings = examine(repository)
    assert code == 0
    assert only_fault(findings)["fact"] == "TRIVEC_GRPC_PROT is not known; did you mean TRIVEC_GRPC_PORT?"


def test_a_value_that_serve_refuses_fails(examine: Doctor, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVEC_DRAIN_GRACE_S", "soon")
    code, findings = examine(repository)
    assert code == 1
    assert only_fault(findings)["mend"] == "unset TRIVEC_DRAIN_GRACE_S"


def test_variables_that_kubernetes_sets_for_a_service_are_known(
    examine: Doctor, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "TRIVEC_PORT": "tcp://192.0.2.1:8001",
        "TRIVEC_PORT_8001_TCP_ADDR": "192.0.2.1",
        "TRIVEC_SERVICE_HOST": "192.0.2.1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, findings = examine(repository)
    assert code == 0
    assert findings["environment"][0]["status"] == "ok"


def test_what_a_killed_pull_left_is_a_warning(examine: Doctor, repository: Path) -> None:
    left = repository / ".building-m3-mini.0123456789abcdef"
    left.mkdir()
    (left / "model.onnx").write_bytes(bytes(5000))
    code, findings = examine(repository)
    assert code == 0
    fault = only_fault(findings)
    assert "5.00 kB" in fault["fact"]
    assert fault["mend"] == f"rm -r {left}"


@pytest.fixture
def pull_under_way(repository: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that builds in the repository, and holds the model's lock."""
    hold = (
        "import sys; from pathlib import Path; from trivec_server.repository.building import open_site\n"
        "with open_site(Path(sys.argv[1]), 'tiny', print): print('building', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, repository], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        yield process
        process.send_signal(signal.SIGTERM)


def test_a_pull_under_way_is_no_leftover(
    examine: Doctor, repository: Path, pull_under_way: "subprocess.Popen[str]"
) -> None:
    assert list(repository.glob(".building-tiny.*"))
    code, findings = examine(repository)
    assert code == 0
    builder = f"process {pull_under_way.pid} on {socket.gethostname()}"
    assert findings["leftovers"][0]["fact"] == f"none; under way: {builder}"


def write_distribution(directory: Path, name: str, version: str) -> None:
    """The metadata of an installed package, which shadows the real one."""
    info = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_two_builds_of_one_engine_fail(examine: Doctor, repository: Path, tmp_path: Path) -> None:
    write_distribution(tmp_path, "onnxruntime-gpu", "1.31.1")
    code, findings = examine.apart(repository, PYTHONPATH=str(tmp_path))
    assert code == 1
    fault = only_fault(findings)
    assert fault["fact"].startswith("onnxruntime and onnxruntime-gpu are both installed")
    assert "uninstall -y onnxruntime onnxruntime-gpu" in fault["mend"]


def test_a_package_that_is_too_old_fails(examine: Doctor, repository: Path, tmp_path: Path) -> None:
    write_distribution(tmp_path, "safetensors", "0.1.0")
    code, findings = examine.apart(repository, PYTHONPATH=str(tmp_path))
    assert code == 1
    fault = only_fault(findings)
    assert fault["fact"].startswith("safetensors 0.1.0 is installed; trivec needs >=")
    assert fault["mend"].endswith("-m pip install 'trivec[server]'")


def test_an_engine_that_cannot_be_imported_fails_with_its_reason(
    examine: Doctor, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    code, findings = examine.apart(repository, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "libgomp.so.1" in findings["engine onnxruntime"][0]["fact"]


def test_an_engine_that_ends_its_process_fails_and_the_other_checks_go_on(
    examine: Doctor, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    code, findings = examine.apart(repository, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "SIGILL" in findings["engine onnxruntime"][0]["fact"]
    assert findings["hub"]


def test_the_hub_is_shown_without_its_password(examine: Doctor, repository: Path) -> None:
    environment = {"HF_ENDPOINT": "http://user:password@127.0.0.1:9/hub", "HF_HUB_OFFLINE": "1"}
    _, findings = examine.apart(repository, **environment)
    fact = findings["hub"][0]["fact"]
    assert fact.startswith("http://127.0.0.1:9/hub (not checked)")
    assert "HF_HUB_OFFLINE" in fact


def test_unfinished_downloads_are_told(examine: Doctor, repository: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.incomplete").write_bytes(bytes(3000))
    _, findings = examine.apart(repository, HF_HUB_CACHE=str(tmp_path / "cache"))
    assert "3.00 kB of unfinished downloads" in findings["hub cache"][0]["fact"]
