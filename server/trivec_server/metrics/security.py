"""The series of TLS and of who calls."""

import enum
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge

_RESULTS = ("success", "failure")
_SERVER, _ACCESS = "server", "access"
"""Labels, so that a server without the files has no samples."""


class AuthFailure(enum.Enum):
    """Why a call was not admitted."""

    NO_CREDENTIALS = "no_credentials"
    UNKNOWN_CREDENTIALS = "unknown_credentials"
    SCOPE = "scope"
    MANAGEMENT = "management"


@dataclass(frozen=True, slots=True)
class IdentityMetrics:
    """The series of one identity."""

    requests: Counter
    rate_refusals: Counter
    concurrency_refusals: Counter


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
        self._certificate_current = Gauge(
            "trivec_certificate_current",
            "1 while the files hold the certificate in use, 0 once what they hold was refused.",
            ("certificate",),
            registry=registry,
        )
        self._access_reloads = Counter(
            "trivec_access_reloads", "Changed access files taken up, or refused.", ("result",), registry=registry
        )
        self._access_current = Gauge(
            "trivec_access_file_current",
            "1 while the file says what counts, 0 once what it says was refused.",
            ("file",),
            registry=registry,
        )
        self._auth_failures = Counter("trivec_auth_failures", "Calls not admitted.", ("reason",), registry=registry)
        for reason in AuthFailure:
            self._auth_failures.labels(reason.value)
        self._identity_requests = Counter(
            "trivec_identity_requests",
            "Calls, and messages of streams, that an identity's limits let through.",
            ("identity",),
            registry=registry,
        )
        self._identity_refusals = Counter(
            "trivec_identity_refusals",
            "Calls, and messages of streams, past a limit of their identity.",
            ("identity", "limit"),
            registry=registry,
        )

    def show_certificate(self, expires_at: float) -> None:
        """Shows when the server's certificate ends, in seconds since 1970; the counter of reloads, too."""
        for result in _RESULTS:
            self._certificate_reloads.labels(result)
        self._expiry.labels(_SERVER).set(expires_at)
        self.certificate_current(is_current=True)

    def certificate_current(self, *, is_current: bool) -> None:
        """Shows whether the files hold the certificate in use."""
        self._certificate_current.labels(_SERVER).set(is_current)

    def certificate_reloaded(self, *, succeeded: bool) -> None:
        """Counts changed files that were taken up, or refused."""
        self.certificate_current(is_current=succeeded)
        self._certificate_reloads.labels(_RESULTS[not succeeded]).inc()

    def show_access(self) -> None:
        """Shows the counter of reloads of the access file, and that it is in use."""
        for result in _RESULTS:
            self._access_reloads.labels(result)
        self.access_current(is_current=True)

    def access_current(self, *, is_current: bool) -> None:
        """Shows whether the file says what counts."""
        self._access_current.labels(_ACCESS).set(is_current)

    def access_reloaded(self, *, succeeded: bool) -> None:
        """Counts a changed access file that was taken up, or refused."""
        self.access_current(is_current=succeeded)
        self._access_reloads.labels(_RESULTS[not succeeded]).inc()

    def auth_failed(self, reason: AuthFailure) -> None:
        """Counts a call that was not admitted."""
        self._auth_failures.labels(reason.value).inc()

    def identity(self, name: str) -> IdentityMetrics:
        """The series of one identity, from now on shown. For any thread."""
        return IdentityMetrics(
            requests=self._identity_requests.labels(name),
            rate_refusals=self._identity_refusals.labels(name, "rate"),
            concurrency_refusals=self._identity_refusals.labels(name, "concurrency"),
        )
