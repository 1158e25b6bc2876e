"""
What gRPC is told of several servers: how to spread calls over them, whom to leave out, what to send again.

gRPC does it itself, by a service config (github.com/grpc/proposal A2, A6, A17, A50, A58); here it is written.
"""

import json
from typing import Literal

from trivec.v1 import embedding_pb2

from trivec_client.jobs import Rpc
from trivec_client.retry import RetryPolicy

Balancing = Literal["round_robin", "least_loaded"]
BALANCINGS: dict[Balancing, dict[str, object]] = {
    "round_robin": {"round_robin": {}},
    # Weighs each server by its own load report (ORCA, in the trailing metadata of its answers): answers per second by
    # share of its capacity in use. Without reports it is round robin.
    "least_loaded": {
        "weighted_round_robin": {
            "blackoutPeriod": "1s",
            "weightUpdatePeriod": "0.2s",
            "weightExpirationPeriod": "10s",
        }
    },
}
"""gRPC's load balancing policies with their settings, by our names."""

SERVICE_NAME = embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].full_name
SENDS_PER_TRY = 2
"""How often gRPC sends one try of a unary call, where there are other servers to send it to."""

_EJECTION: dict[str, object] = {
    # A server that ends none of its calls well, at least five within 0.3 s, gets no more for 3 s: by then pings have
    # told whether it hangs. One good answer is enough to stay, since of servers that are overloaded, or get wrong
    # requests, most answers are failures. Never more than a third of the servers, rounded up, whatever fails.
    "interval": "0.3s",
    "baseEjectionTime": "3s",
    "maxEjectionTime": "15s",
    "maxEjectionPercent": 33,
    "failurePercentageEjection": {
        "threshold": 99,
        "enforcementPercentage": 100,
        "minimumHosts": 2,
        "requestVolume": 5,
    },
}

CLUSTER_OPTIONS: tuple[tuple[str, int], ...] = (
    # A server that hangs, or that the network lost, is left within 2.5 s: nothing heard for 1 s, then a ping unanswered
    # for 1.5 s. The health watch keeps every connection in use, so that pings go out even between calls.
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_500),
    ("grpc.http2.ping_timeout_ms", 1_500),
    # An attempt to connect that is not answered, and the wait before the next: who is back is found within 3 s.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    # gRPC keeps a call until it is answered, to send it again; calls larger than this it would send once only.
    ("grpc.per_rpc_retry_buffer_size", 256 << 20),
)


def service_config(balancing: Balancing, health_service: str, retry: RetryPolicy) -> str:
    """
    The service config, in JSON, of a channel to several servers.

    Args:
        balancing: how to spread calls.
        health_service: the name in the servers' health service; calls go only to those that say SERVING of it.
        retry: whether and how soon to send a call again, to another server, that ended in UNAVAILABLE. Streams are
            left out: gRPC does not send again what has been answered in part.
    """
    unary = [{"service": SERVICE_NAME, "method": rpc.value} for rpc in Rpc if rpc is not Rpc.EMBED_STREAM]
    config: dict[str, object] = {
        # The first that gRPC knows: the name is to change once the policy is no longer experimental in its C core.
        "loadBalancingConfig": [
            {"outlier_detection_experimental": {**_EJECTION, "childPolicy": [BALANCINGS[balancing]]}},
            BALANCINGS[balancing],
        ],
        "healthCheckConfig": {"serviceName": health_service},
    }
    if retry.max_attempts > 1:
        # Of failures in a row gRPC sends a hundred again, then none until it has seen as many successes as it takes.
        config["retryThrottling"] = {"maxTokens": 200, "tokenRatio": 0.2}
        config["methodConfig"] = [
            {
                "name": unary,
                "retryPolicy": {
                    "maxAttempts": SENDS_PER_TRY,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "0.01s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    return json.dumps(config)
