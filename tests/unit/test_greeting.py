"""What `trivec serve` prints once its first models are loaded, where no model of texts is among them."""

import pytest
from trivec_server.greeting import greet
from trivec_server.lifecycle import Started
from trivec_server.repository.records import State, VersionRecord
from trivec_server.settings import ControlMode
from trivec_server.types import ModelVersion


def started(mode: ControlMode, *records: VersionRecord) -> Started:
    return Started(
        host="127.0.0.1", grpc_port=1, metrics_port=2, default_model=None, control_mode=mode, records=records
    )


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (ControlMode.NONE, "No model serves."),
        (ControlMode.POLL, "No model serves yet; the repository is looked at again"),
        (ControlMode.EXPLICIT, "No model serves yet; inference.GRPCInferenceService/RepositoryModelLoad loads one"),
    ],
)
def test_a_server_without_models_says_how_one_comes(mode: ControlMode, words: str) -> None:
    assert greet(started(mode)).splitlines()[-1].startswith(words)


def test_a_model_that_failed_is_listed_with_its_reason() -> None:
    failed = VersionRecord(key=ModelVersion("a", 0), state=State.UNAVAILABLE, cause="no version")
    lines = greet(started(ControlMode.NONE, failed)).splitlines()
    assert lines[1:] == ["  a: UNAVAILABLE: no version", "No model serves."]
