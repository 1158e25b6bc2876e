"""ModelStatistics: what a version has counted, field by field as Triton fills them."""

from inference import grpc_service_pb2 as pb

from trivec_server.metrics.statistics import ComputeTotals, StatisticsSnapshot, Total
from trivec_server.types import ModelVersion


def describe_statistics(key: ModelVersion, counted: StatisticsSnapshot) -> pb.ModelStatistics:
    """The counts of one version. A request here has one response: there are no statistics by response."""
    failures = counted.failures.values()
    statistics = pb.ModelStatistics(
        name=key.name,
        version=str(key.version),
        last_inference=counted.last_inference_ms,
        inference_count=counted.inference_count,
        execution_count=counted.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(counted.success),
            fail=_duration(Total(sum(total.count for total in failures), sum(total.ns for total in failures))),
            queue=_duration(counted.queue),
            cache_hit=_duration(counted.cache_hit),
            cache_miss=_duration(counted.cache_miss),
        ),
    )
    _set_stages(statistics.inference_stats, counted.compute)
    for rows, totals in sorted(counted.batches.items()):
        _set_stages(statistics.batch_stats.add(batch_size=rows), totals)
    return statistics


def _set_stages(message: pb.InferStatistics | pb.InferBatchStatistics, totals: ComputeTotals) -> None:
    message.compute_input.CopyFrom(_duration(totals.compute_input))
    message.compute_infer.CopyFrom(_duration(totals.compute_infer))
    message.compute_output.CopyFrom(_duration(totals.compute_output))


def _duration(total: Total) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=total.ns)
