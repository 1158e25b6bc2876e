"""Some hundreds of cases of each kind; `make fuzz` has the rest."""

from collections.abc import Callable

import pytest

from tests.fuzz.calls import FuzzedServer, fuzz_calls, fuzz_loads
from tests.fuzz.files import Tally, fuzz_access_file, fuzz_config_json, fuzz_manifest, fuzz_pbtxt
from tests.fuzz.subjects import METHODS


@pytest.mark.parametrize("run", [fuzz_calls, fuzz_loads])
def test_no_message_makes_an_internal_error_or_harms_the_server(run: Callable[[int], FuzzedServer]) -> None:
    server = run(320)
    # Else the cases would be of no worth: some must get through, some must not.
    assert server.codes["OK"] > server.cases / 20
    assert server.codes["INVALID_ARGUMENT"] > server.cases / 20


@pytest.mark.parametrize("run", [fuzz_pbtxt, fuzz_config_json, fuzz_manifest, fuzz_access_file])
def test_a_file_is_read_or_refused_in_one_line(run: Callable[[int], Tally]) -> None:
    tally = run(200)
    assert 0 < tally.taken < tally.cases


def test_every_rpc_of_both_services_is_sent_to() -> None:
    assert len(METHODS) == len({method.path for method in METHODS}) == 26
