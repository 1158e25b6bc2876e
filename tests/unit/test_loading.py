"""Loading one version: which engine instances are asked for, and what they must have in common."""

from pathlib import Path

import pytest
from trivec_server.backends.interface import Engine, EngineRequest
from trivec_server.errors import LoadError
from trivec_server.repository.loading import LoadedVersion, load_version
from trivec_server.repository.model_config import read_model_config
from trivec_server.types import ModelVersion

from tests.scripted_engine import Script, ScriptedEngine
from tests.small_repository import make_repository


def load(tmp_path: Path, config: str, *scripts: Script) -> tuple[LoadedVersion, list[EngineRequest]]:
    """Loads a version whose engines have these scripts, in turn; gives what each was asked to be."""
    requests: list[EngineRequest] = []

    def build(request: EngineRequest) -> Engine:
        requests.append(request)
        return ScriptedEngine(scripts[len(requests) - 1])

    model_dir = make_repository(tmp_path, config=config) / "small"
    settings = read_model_config(model_dir / "config.pbtxt", "small")
    loaded = load_version(ModelVersion("small", 1), model_dir / "1", settings, {"scripted": build})
    for device in loaded.devices:
        device.close()
    return loaded, requests


def test_instances_share_the_cores_of_the_cpu(tmp_path: Path) -> None:
    _, requests = load(tmp_path, "instance_group { count: 2 kind: KIND_CPU }", Script(), Script())
    assert [request.instances for request in requests] == [2, 2]


def test_an_instance_on_each_gpu_has_it_to_itself(tmp_path: Path) -> None:
    loaded, requests = load(
        tmp_path, "instance_group { kind: KIND_GPU gpus: [ 1, 3 ] }", Script(device="cuda:1"), Script(device="cuda:3")
    )
    assert [(request.device_index, request.instances) for request in requests] == [(1, 1), (3, 1)]
    assert loaded.info.device == "cuda:1, cuda:3"


def test_the_smallest_token_budget_of_the_instances_counts(tmp_path: Path) -> None:
    loaded, _ = load(tmp_path, "instance_group { count: 2 }", Script(token_budget=900), Script(token_budget=700))
    assert loaded.info.token_budget == 700


def test_every_note_of_the_instances_is_kept_once(tmp_path: Path) -> None:
    loaded, _ = load(tmp_path, "instance_group { count: 2 }", Script(notes=("a", "b")), Script(notes=("b", "c")))
    assert loaded.info.notes == ("a", "b", "c")


def test_instances_that_would_give_different_numbers_are_refused(tmp_path: Path) -> None:
    scripts = Script(device="cuda:0", precision="float16"), Script(precision="bfloat16")
    with pytest.raises(LoadError, match="one instance is scripted on cuda:0 in float16, another scripted on cpu in bf"):
        load(tmp_path, "instance_group [ { kind: KIND_GPU gpus: 0 }, { kind: KIND_CPU } ]", *scripts)
    assert [script.closed for script in scripts] == [1, 1]
