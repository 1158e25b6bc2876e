"""The series of connections, of which gRPC tells nothing: the system is asked at each scrape. And of calls refused."""

from collections.abc import Collection

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge

REFUSALS = ("calls", "unread", "slow", "watches")
"""
Too many calls under way; too much of answers unread on the connection; a request that did not arrive in time; too many
watches of health.
"""


class ConnectionSeries:
    """One server's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._refused = Counter(
            "trivec_refused_calls",
            "Calls ended for their client's sake, before their model was asked.",
            ("reason",),
            registry=registry,
        )
        for reason in REFUSALS:
            self._refused.labels(reason)

    def refused(self, reason: str) -> None:
        """Counts a call; `reason` is one of REFUSALS."""
        self._refused.labels(reason).inc()

    def watch(self, ports: Collection[int], limit: int) -> None:
        """Shows how many connections these ports have, from now on."""
        open_now = Gauge("trivec_connections", "Open connections to the gRPC port.", registry=self._registry)
        open_now.set_function(lambda: count_connections(ports))
        most = Gauge(
            "trivec_connections_limit", "The most that there may be: more are closed at once.", registry=self._registry
        )
        most.set(limit)


def count_connections(ports: Collection[int]) -> int:
    """The connections that this process holds on ports it listens on."""
    held = psutil.Process().net_connections(kind="tcp")
    return sum(1 for one in held if one.status == psutil.CONN_ESTABLISHED and one.laddr and one.laddr.port in ports)
