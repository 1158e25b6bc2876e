"""What is counted of a model version: each thing once, and durations that belong together together."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from trivec_server.metrics.statistics import (
    ComputeTotals,
    FailReason,
    ModelStatistics,
    StageTimes,
    StatisticsSnapshot,
    Total,
)

STAGES = StageTimes(1, 20, 300)


def test_nothing_has_been_counted_at_first() -> None:
    assert ModelStatistics().snapshot() == StatisticsSnapshot()
    assert set(StatisticsSnapshot().failures) == set(FailReason)


def test_a_request_that_succeeded_is_charged_with_every_duration_once() -> None:
    statistics = ModelStatistics()
    statistics.request_succeeded(3, 1000, 50, STAGES)
    statistics.request_succeeded(2, 500, 5, STAGES)
    snapshot = statistics.snapshot()
    assert snapshot.inference_count == 5
    assert (snapshot.success, snapshot.queue) == (Total(2, 1500), Total(2, 55))
    assert snapshot.compute == ComputeTotals(Total(2, 2), Total(2, 40), Total(2, 600))
    assert snapshot.execution_count == 0
    assert snapshot.last_inference_ms > 0


def test_a_request_out_of_the_response_cache_has_waited_but_not_computed() -> None:
    statistics = ModelStatistics()
    statistics.request_succeeded(0, 1000, 50, None)
    statistics.cache_looked_up(hit=True, ns=7)
    statistics.cache_looked_up(hit=False, ns=9)
    snapshot = statistics.snapshot()
    assert (snapshot.success.count, snapshot.queue.count, snapshot.inference_count) == (1, 1, 0)
    assert snapshot.compute == ComputeTotals()
    assert (snapshot.cache_hit, snapshot.cache_miss) == (Total(1, 7), Total(1, 9))


@pytest.mark.parametrize("reason", FailReason)
def test_a_failure_counts_under_its_reason_only(reason: FailReason) -> None:
    statistics = ModelStatistics()
    statistics.request_failed(reason, 30)
    statistics.request_failed(reason, 4)
    snapshot = statistics.snapshot()
    assert {each: total for each, total in snapshot.failures.items() if total.count} == {reason: Total(2, 34)}
    assert snapshot.success == snapshot.queue == Total()
    assert snapshot.last_inference_ms == 0


def test_batches_count_by_their_rows() -> None:
    statistics = ModelStatistics()
    for rows in (4, 1, 4):
        statistics.batch_executed(rows, STAGES)
    snapshot = statistics.snapshot()
    assert snapshot.execution_count == 3
    assert snapshot.batches == {
        4: ComputeTotals(Total(2, 2), Total(2, 40), Total(2, 600)),
        1: ComputeTotals(Total(1, 1), Total(1, 20), Total(1, 300)),
    }


def test_a_snapshot_does_not_change_any_more() -> None:
    statistics = ModelStatistics()
    statistics.batch_executed(1, STAGES)
    before = statistics.snapshot()
    statistics.batch_executed(1, STAGES)
    statistics.batch_executed(2, STAGES)
    statistics.request_failed(FailReason.OTHER, 1)
    assert set(before.batches) == {1}
    assert before.batches[1].compute_infer.count == 1
    assert before.failures[FailReason.OTHER].count == 0


def test_of_what_several_threads_count_nothing_is_lost_and_no_snapshot_is_of_two_instants() -> None:
    statistics = ModelStatistics()

    def count() -> None:
        for _ in range(200):
            statistics.request_succeeded(2, 1000, 50, STAGES)
            statistics.batch_executed(2, STAGES)
            statistics.request_failed(FailReason.BACKEND, 1)

    def look() -> None:
        for _ in range(200):
            seen = statistics.snapshot()
            compute = seen.compute
            assert seen.success.count == seen.queue.count == compute.compute_infer.count
            assert compute.compute_input.count == compute.compute_infer.count == compute.compute_output.count
            assert seen.inference_count == 2 * seen.success.count

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(work) for work in (count, look, count, look, count, count)]:
            done.result()
    snapshot = statistics.snapshot()
    assert (snapshot.success.count, snapshot.execution_count) == (800, 800)
    assert snapshot.failures[FailReason.BACKEND] == Total(800, 800)
