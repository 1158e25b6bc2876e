"""The series of TLS and of who calls."""

from prometheus_client import CollectorRegistry, Counter, Gauge

_RESULTS = ("success", "failure")


class SecurityMetrics:
    """What a server without TLS or without an access file does not use stays without samples."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._expiry = Gauge(
            "trivec_certificate_expiry_timestamp_seconds",
            "When the first of the certificates in use of a chain ends, as Unix time.",
            ("certificate",),
            registry=registry,
        )
        self._certificate_reloads = Counter(
            "trivec_certificate_reloads", "Changed certificates taken up, or refused.", ("result",), registry=registry
        )

    def show_certificate(self, expires_at: float) -> None:
        """Shows when the server's certificate ends, in seconds since 1970; the counter of reloads, too."""
        for result in _RESULTS:
            self._certificate_reloads.labels(result)
        self._expiry.labels("server").set(expires_at)

    def certificate_reloaded(self, *, succeeded: bool) -> None:
        """Counts changed files that were taken up, or refused."""
        self._certificate_reloads.labels(_RESULTS[not succeeded]).inc()
