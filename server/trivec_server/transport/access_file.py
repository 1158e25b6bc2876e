"""
The access file: who may call, for what, and how often.

A token is 256 random bits, so that its SHA-256 gives nothing away and need not be slow.
"""

import enum
import hmac
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from trivec_server.errors import SecurityFileError
from trivec_server.repository.scan import shown_name

MAX_CONCURRENT = 1_000_000
_MAX_REQUESTS_PER_S = 1e6
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_KEYS = frozenset({"name", "token_sha256", "certificate", "scopes", "requests_per_s", "burst", "max_concurrent"})


class Scope(enum.Enum):
    """What an identity may do: ask models, or manage the server."""

    INFER = "infer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    One entry. With both `token_digest` and `certificate`, a caller must show both. A limit of None: none.

    Attributes:
        token_digest: The SHA-256 of its token.
        certificate: The common name, or a subject alternative name, of its certificate.
        burst: How many requests `requests_per_s` lets through at once after a pause.
        max_concurrent: Calls under way at a time; a stream counts as one.
    """

    name: str
    scopes: frozenset[Scope]
    token_digest: bytes | None = None
    certificate: str | None = None
    requests_per_s: float | None = None
    burst: int = 1
    max_concurrent: int | None = None


class AccessTable:
    """The identities of one reading of the file."""

    def __init__(self, identities: tuple[Identity, ...]) -> None:
        self.identities = identities
        self._with_token = tuple((each.token_digest, each) for each in identities if each.token_digest is not None)
        self._by_certificate = {
            each.certificate: each for each in identities if each.certificate is not None and each.token_digest is None
        }
        self.asks_certificates = any(each.certificate is not None for each in identities)

    def find(self, token_digest: bytes | None, names: frozenset[str]) -> Identity | None:
        """
        Whose credentials these are. A token that is not known is not made good by a certificate.

        Args:
            token_digest: The SHA-256 of the token shown; None: none was.
            names: The names in the certificate shown.
        """
        if token_digest is None:
            return next((self._by_certificate[name] for name in sorted(names) if name in self._by_certificate), None)
        found = None
        # All of them, whatever is found: the time that it takes tells nothing.
        for digest, identity in self._with_token:
            if hmac.compare_digest(digest, token_digest):
                found = identity
        if found is not None and found.certificate is not None and found.certificate not in names:
            return None
        return found


def token_digest(token: str) -> bytes:
    """The SHA-256 of a token."""
    return sha256(token.encode()).digest()


def is_identity_name(name: str) -> bool:
    """Whether an identity may have that name, which is shown in logs and metrics."""
    return _NAME.fullmatch(name) is not None


def read_access_file(path: Path, *, has_client_ca: bool) -> AccessTable:
    """
    Reads the file. `has_client_ca`: whether clients are asked for certificates.

    Raises:
        SecurityFileError: it cannot be read, or is wrong; names the file, and the line or the entry.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SecurityFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SecurityFileError(f"{path}: is not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise SecurityFileError(f"{path}: is not TOML: {error}") from error
    except (ValueError, RecursionError):
        fault = "is not TOML that can be read: a number is too long, or lists too deep"
        raise SecurityFileError(f"{path}: {fault}") from None
    entries = content.pop("identity", None)
    if content:
        raise SecurityFileError(
            f"{path}: `{shown_name(next(iter(content)))}` is not known; entries begin with [[identity]]"
        )
    if not isinstance(entries, list) or not entries:
        raise SecurityFileError(f"{path}: has no [[identity]]; `trivec token NAME` makes one")
    identities = tuple(
        _Entry(path, number, entry).identity(has_client_ca=has_client_ca) for number, entry in enumerate(entries, 1)
    )
    _check_unique(path, identities)
    return AccessTable(identities)


def _check_unique(path: Path, identities: tuple[Identity, ...]) -> None:
    names: set[str] = set()
    shown: dict[object, str] = {}
    for number, identity in enumerate(identities, 1):
        where = f'{path}: [[identity]] {number} ("{identity.name}")'
        if identity.name in names:
            raise SecurityFileError(f"{where}: the name is taken by an entry before it")
        names.add(identity.name)
        proof: object = identity.token_digest or identity.certificate
        if proof in shown:
            what = "token_sha256" if identity.token_digest else "certificate"
            raise SecurityFileError(f'{where}: {what} is that of "{shown[proof]}"; two callers could not be told apart')
        shown[proof] = identity.name


class _Entry:
    """One [[identity]] as it stands in the file."""

    def __init__(self, path: Path, number: int, entry: object) -> None:
        self._where = f"{path}: [[identity]] {number}"
        if not isinstance(entry, dict):
            raise SecurityFileError(f"{self._where}: is not a table")
        self._given: Mapping[str, Any] = entry

    def identity(self, *, has_client_ca: bool) -> Identity:
        name = self._name()
        self._where += f' ("{name}")'
        for key in self._given:
            if key not in _KEYS:
                raise self._fault(shown_name(key), f"is not known; there are {', '.join(sorted(_KEYS))}")
        digest, certificate = self._digest(), self._certificate(has_client_ca=has_client_ca)
        if digest is None and certificate is None:
            raise self._fault("token_sha256", "is missing, and so is certificate: nobody could be this identity")
        rate = self._rate()
        if rate is None and "burst" in self._given:
            raise self._fault("burst", "is of no use without requests_per_s")
        return Identity(
            name=name,
            scopes=self._scopes(),
            token_digest=digest,
            certificate=certificate,
            requests_per_s=rate,
            burst=self._count("burst") or math.ceil(rate or 1),
            max_concurrent=self._count("max_concurrent"),
        )

    def _name(self) -> str:
        name = self._given.get("name")
        if not isinstance(name, str) or not is_identity_name(name):
            raise self._fault("name", "must be 1 to 64 letters, digits or any of . _ @ -")
        return name

    def _digest(self) -> bytes | None:
        given = self._given.get("token_sha256")
        if given is None:
            return None
        if not isinstance(given, str) or not _DIGEST.fullmatch(given):
            # What stands there may be the token itself: it is not shown.
            raise self._fault("token_sha256", "must be 64 hexadecimal digits, the SHA-256 of the token")
        return bytes.fromhex(given)

    def _certificate(self, *, has_client_ca: bool) -> str | None:
        given = self._given.get("certificate")
        if given is None:
            return None
        if not isinstance(given, str) or not given:
            raise self._fault("certificate", "must be the common name or a subject alternative name of a certificate")
        if not has_client_ca:
            raise self._fault("certificate", "needs --tls-client-ca: clients are not asked for certificates")
        return given

    def _scopes(self) -> frozenset[Scope]:
        given = self._given.get("scopes")
        known = [scope.value for scope in Scope]
        if not isinstance(given, list) or not given or any(each not in known for each in given):
            raise self._fault("scopes", f"must be a list of {' and '.join(known)}, or of one of them")
        return frozenset(map(Scope, given))

    def _rate(self) -> float | None:
        given = self._given.get("requests_per_s")
        if given is None:
            return None
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= _MAX_REQUESTS_PER_S:
            raise self._fault("requests_per_s", f"must be a number above 0, at most {_MAX_REQUESTS_PER_S:,.0f}")
        return float(given)

    def _count(self, key: str) -> int | None:
        given = self._given.get(key)
        if given is None:
            return None
        if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MAX_CONCURRENT:
            raise self._fault(key, f"must be a whole number from 1 to {MAX_CONCURRENT:,}")
        return given

    def _fault(self, key: str, what: str) -> SecurityFileError:
        return SecurityFileError(f"{self._where}: {key} {what}")
