"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.command_line import trivec

# How long an example takes says something of the machine, nothing of the code. In CI the examples are the same in each
# run, so that a change fails by its own fault; elsewhere they are new ones each time.
settings.register_profile(
    "trivec", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("trivec")

_BUILT = Path(__file__).parents[1] / "model_repository" / "m3-mini"


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user() -> Iterator[None]:
    """Whoever runs the tests may have TRIVEC_* variables set for a server of their own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in [name for name in os.environ if name.startswith("TRIVEC_")]:
            monkeypatch.delenv(name)
        yield


@pytest.fixture(scope="session")
def mini_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """
    A model repository with m3-mini alone, to read only: the one of `make serve` if it is built, else one made now.
    """
    repository = tmp_path_factory.mktemp("mini-repository")
    if (_BUILT / "1" / "manifest.json").exists():
        (repository / "m3-mini").symlink_to(_BUILT)
    else:
        done = trivec("pull", "m3-mini", "--model-repository", repository)
        assert done.code == 0, done.err
    return repository
