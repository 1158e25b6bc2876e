"""TLS: the server's certificate and key, checked before they are used, and taken up anew when their files change."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from trivec_server.errors import SecurityFileError
from trivec_server.logs import get_logger
from trivec_server.metrics.security import SecurityMetrics
from trivec_server.settings import TlsSettings
from trivec_server.transport.watched_files import WatchedFiles

_log = get_logger(__name__)

_DAY_S = 24 * 3600
ENDING_S = 14 * _DAY_S
"""How long before a certificate's end it is said to end soon."""
_MEND_PAIR = "give --tls-certificate and --tls-private-key files that belong together"


@dataclass(frozen=True, slots=True)
class _Pair:
    """
    What the files hold. `expires_at`: when the first of the chain's certificates ends that have not yet, in seconds
    since 1970. `doubts`: what is wrong with those that may not matter.
    """

    configuration: grpc.ServerCertificateConfiguration
    expires_at: float
    digest: bytes
    doubts: tuple[str, ...]


class Certificates:
    """The pair in use. A changed one is for connections from then on; those that are open go on."""

    def __init__(self, settings: TlsSettings, metrics: SecurityMetrics) -> None:
        """
        Raises:
            SecurityFileError: a file is missing, wrong or out of date.
        """
        self._settings = settings
        self._metrics = metrics
        self._files = WatchedFiles(
            [path for path in (settings.certificate, settings.private_key, settings.client_ca) if path is not None]
        )
        self._pair = _read(settings)
        self._warned_at = float("-inf")
        self._show()

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for one server, which ask for the pair in use at each new connection."""
        given = self._pair.configuration

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            current = self._pair.configuration
            if current is given:
                return None
            given = current
            return current

        return grpc.dynamic_ssl_server_credentials(
            given,
            fetch,  # type: ignore[arg-type] # the stubs leave out that None stands for no change
            require_client_authentication=self._settings.client_ca is not None,
        )

    def look(self) -> None:
        """Takes up what has changed; what cannot be used is logged and counted. For one thread at a time."""
        if self._files.have_changed():
            self._reload()
        self._warn_of_end()

    def _reload(self) -> None:
        try:
            pair = _read(self._settings)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the files, they are looked at again
            if self._files.refuse(str(error)):
                surprise = None if isinstance(error, SecurityFileError) else error
                _log.error("changed certificate refused, the old one stays", reason=str(error), exc_info=surprise)
                self._metrics.certificate_reloaded(succeeded=False)
            return
        if pair.digest == self._pair.digest:
            self._metrics.certificate_current(is_current=True)
            return
        self._pair = pair
        self._warned_at = float("-inf")
        self._metrics.certificate_reloaded(succeeded=True)
        self._show()

    def _show(self) -> None:
        self._metrics.show_certificate(self._pair.expires_at)
        _log.info(
            "certificate in use",
            file=str(self._settings.certificate),
            ends=utc(self._pair.expires_at),
            client_certificates=self._settings.client_ca is not None,
        )
        for doubt in self._pair.doubts:
            _log.warning("certificate of no use", reason=doubt)
        self._warn_of_end()

    def _warn_of_end(self) -> None:
        """Once a day."""
        now = time.time()
        left_s = self._pair.expires_at - now
        if left_s < ENDING_S and now - self._warned_at > _DAY_S:
            self._warned_at = now
            say = _log.error if left_s <= 0 else _log.warning
            say(
                "certificate has ended" if left_s <= 0 else "certificate ends soon",
                file=str(self._settings.certificate),
                ends=utc(self._pair.expires_at),
            )


def certificate_end(settings: TlsSettings) -> float:
    """
    Checks the files; gives when the first of the chain's certificates ends that have not yet, seconds since 1970.

    Raises:
        SecurityFileError: a file is missing, wrong or out of date.
    """
    return _read(settings).expires_at


def _read(settings: TlsSettings) -> _Pair:
    """
    Raises:
        SecurityFileError: a file is missing, wrong or out of date.
    """
    chain_pem = _bytes_of(settings.certificate)
    key_pem = _bytes_of(settings.private_key)
    ca_pem = None if settings.client_ca is None else _bytes_of(settings.client_ca)
    chain = _certificates(settings.certificate, chain_pem)
    _check_key(settings, key_pem, chain[0])
    now = datetime.now(UTC)
    fault = _fault_of_dates(settings.certificate, chain[0], now)
    if fault is not None:
        raise SecurityFileError(fault)
    # Clients may not need those behind it: an old root, signed across, is often left there.
    others = [(settings.certificate, certificate) for certificate in chain[1:]]
    if settings.client_ca is not None and ca_pem is not None:
        others += [(settings.client_ca, certificate) for certificate in _certificates(settings.client_ca, ca_pem)]
    faults = [_fault_of_dates(path, certificate, now) for path, certificate in others]
    ends = [certificate.not_valid_after_utc for certificate in chain]
    return _Pair(
        grpc.ssl_server_certificate_configuration([(key_pem, chain_pem)], root_certificates=ca_pem),
        min(end for end in ends if end > now).timestamp(),
        sha256(b"\0".join((chain_pem, key_pem, ca_pem or b""))).digest(),
        tuple(fault for fault in faults if fault is not None),
    )


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecurityFileError(f"{path}: cannot be read: {error.strerror}") from error


def _certificates(path: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise SecurityFileError(f"{path}: holds no certificate that can be read; it must be PEM") from error


def _check_key(settings: TlsSettings, pem: bytes, certificate: x509.Certificate) -> None:
    path = settings.private_key
    try:
        key = load_pem_private_key(pem, None)
        key_public = _public(key.public_key())
    except UnsupportedAlgorithm as error:
        raise SecurityFileError(f"{path}: the private key is of a kind that is not supported: {error}") from error
    except TypeError as error:
        raise SecurityFileError(f"{path}: the private key has a passphrase; write it without one") from error
    except ValueError as error:
        raise SecurityFileError(f"{path}: holds no private key that can be read; it must be PEM") from error
    try:
        certified = _public(certificate.public_key())
    except (UnsupportedAlgorithm, ValueError) as error:
        raise SecurityFileError(
            f"{settings.certificate}: the key of the first certificate is of a kind that is not supported: {error}"
        ) from error
    if key_public != certified:
        raise SecurityFileError(
            f"{path}: is not the private key of the first certificate in {settings.certificate}; {_MEND_PAIR}"
        )


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _fault_of_dates(path: Path, certificate: x509.Certificate, now: datetime) -> str | None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    name = certificate.subject.rfc4514_string() or "without a name"
    if ends <= now:
        return f"{path}: the certificate {name} ended at {utc(ends.timestamp())}; renew it"
    if begins > now:
        return (
            f"{path}: the certificate {name} begins at {utc(begins.timestamp())}, which is yet to come; look at this "
            "machine's clock"
        )
    return None


def utc(timestamp: float) -> str:
    """An instant for a reader."""
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M} UTC"
