"""
Three real nodes under load behind the real Envoy, the real nginx, and by client-side balancing, while they fail, stop
and change. Run by `make cluster-test`; the bounds are those of benchmarks/cluster/figures.py.
"""

import pytest

from benchmarks.cluster.ways import WAYS
from tests.cluster.conftest import Measured

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost_that_may_be_sent_again(measured: Measured, way: str) -> None:
    """By a killed, hung, drained, restarted, upgraded or cut off node; of a killed one nginx loses what was there."""
    assert not measured.missed(way, rf"(lost|inflight|calls)_{way}_\w+")


@pytest.mark.parametrize("way", WAYS)
def test_every_call_ends_and_gets_the_answer_of_its_own_texts(measured: Measured, way: str) -> None:
    assert not measured.missed(way, rf"(wrong|forgotten)_{way}")


@pytest.mark.parametrize("way", WAYS)
def test_after_an_upgrade_only_the_new_version_answers(measured: Measured, way: str) -> None:
    assert not measured.missed(way, rf"(stale|fresh)_{way}_upgrade")


@pytest.mark.parametrize("way", WAYS)
def test_events_make_the_slowest_calls_at_most_five_times_as_slow(measured: Measured, way: str) -> None:
    assert not measured.missed(way, rf"p99_{way}_\w+")


@pytest.mark.parametrize("way", WAYS)
def test_calls_leave_a_node_that_cannot_be_reached_and_come_back(measured: Measured, way: str) -> None:
    assert not measured.missed(way, rf"partition_(leave|return)_s_{way}")


@pytest.mark.parametrize("way", WAYS)
def test_equal_nodes_get_equally_many_calls(measured: Measured, way: str) -> None:
    assert not measured.missed(way, rf"balance_{way}")


def test_a_slow_node_gets_its_fair_smaller_share(measured: Measured) -> None:
    assert not measured.missed("sleeping", "(share|lost)_slow_node")


def test_three_nodes_answer_nearly_three_times_as_much_as_one(measured: Measured) -> None:
    assert not measured.missed("sleeping", "scaling_3_nodes")


def test_under_overload_the_nodes_go_on_at_full_speed_and_refuse_the_rest_at_once(measured: Measured) -> None:
    assert not measured.missed("sleeping", "(goodput|lost|refused)_overload|refusal_p99_s")


def test_all_is_well_soon_after_an_overload(measured: Measured) -> None:
    assert not measured.missed("sleeping", "recovery_s")


def test_nothing_grows_in_a_server_under_mixed_requests(measured: Measured) -> None:
    assert not measured.missed("soak", r"soak_\w+")
