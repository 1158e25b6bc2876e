"""What the server would encrypt with, and whom it would let in."""

import shlex
import stat
import time
from pathlib import Path

from trivec_server.doctor.finding import Finding, Status
from trivec_server.errors import SecurityFileError
from trivec_server.settings import ServeSettings, TlsSettings
from trivec_server.transport.access_file import read_access_file


def check_security(settings: ServeSettings) -> list[Finding]:
    """The address and its encryption, the certificates and the access file, and who can read what is secret."""
    findings = [*_check_address(settings)]
    if settings.tls is not None:
        findings += [_check_certificate(settings.tls), *_check_others(settings.tls.private_key, "the private key")]
    if settings.access_file is not None:
        has_client_ca = settings.tls is not None and settings.tls.client_ca is not None
        findings.append(_check_access_file(settings.access_file, has_client_ca=has_client_ca))
        findings += _check_others(settings.access_file, "the access file")
    return findings


def _check_address(settings: ServeSettings) -> list[Finding]:
    from trivec_server.transport.addresses import is_loopback  # noqa: PLC0415 - needs the server's packages

    if settings.tls is not None:
        return []
    try:
        is_local = is_loopback(settings.host)
    except (OSError, UnicodeError):
        # The check of the ports says so.
        return []
    if is_local:
        return []
    if settings.allow_insecure:
        fact = f"plain text on {settings.host}, as --allow-insecure says"
        return [Finding("encryption", Status.OK, fact)]
    fact = f"--host {settings.host} is not loopback, and there is neither TLS nor --allow-insecure"
    mend = "give --tls-certificate and --tls-private-key, or --allow-insecure behind a proxy that ends TLS"
    return [Finding("encryption", Status.FAIL, fact, mend)]


def _check_certificate(tls: TlsSettings) -> Finding:
    from trivec_server.transport.tls import ENDING_S, certificate_end, utc  # noqa: PLC0415 - the same

    try:
        end = certificate_end(tls)
    except SecurityFileError as error:
        return Finding("certificate", Status.FAIL, str(error))
    fact = f"{tls.certificate} ends {utc(end)}"
    if end - time.time() < ENDING_S:
        return Finding("certificate", Status.WARN, f"{fact}: in less than two weeks; renew it")
    return Finding("certificate", Status.OK, fact)


def _check_access_file(path: Path, *, has_client_ca: bool) -> Finding:
    try:
        table = read_access_file(path, has_client_ca=has_client_ca)
    except SecurityFileError as error:
        return Finding("access file", Status.FAIL, str(error))
    count = len(table.identities)
    return Finding("access file", Status.OK, f"{path} has {count} {'identity' if count == 1 else 'identities'}")


def _check_others(path: Path, what: str) -> list[Finding]:
    """Whether users who have no business with a file can read or change it."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return []
    if not mode & (stat.S_IROTH | stat.S_IWOTH):
        return []
    can = "change" if mode & stat.S_IWOTH else "read"
    return [
        Finding(
            "permissions",
            Status.WARN,
            f"every user of this machine can {can} {what}, {path}",
            shlex.join(["chmod", "o-rwx", str(path)]),
        )
    ]
