"""Who calls: credentials to an identity of the access file, its scopes, and its limits."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trivec_server.errors import LimitOfIdentity, PermissionDenied, SecurityFileError, Unauthenticated
from trivec_server.logs import get_logger
from trivec_server.metrics.security import AuthFailure, IdentityMetrics, SecurityMetrics
from trivec_server.transport.access_file import AccessTable, Identity, Scope, read_access_file, token_digest
from trivec_server.transport.watched_files import WatchedFiles

_log = get_logger(__name__)

_AUTHORIZATION = "authorization"
_SCHEME = "bearer "
_NAMES_OF_PEER = ("x509_common_name", "x509_subject_alternative_name")
_BUSY_RETRY_S = 0.1
"""When to try again past a limit of concurrency: nobody knows when a call will end."""


class CallContext(Protocol):
    """What is asked of gRPC's context."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """The call's metadata."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS knows of the peer."""


class _Use:
    """What an identity uses now. Owned by the event loop."""

    def __init__(self, metrics: IdentityMetrics) -> None:
        self.metrics = metrics
        self.running = 0
        self._tokens = float("inf")
        self._filled_at = 0.0

    def take(self, identity: Identity) -> None:
        """
        Counts a request, and takes it out of the rate.

        Raises:
            LimitOfIdentity: there is none left.
        """
        rate = identity.requests_per_s
        if rate is None:
            self.metrics.requests.inc()
            return
        now = time.monotonic()
        self._tokens = min(float(identity.burst), self._tokens + (now - self._filled_at) * rate)
        self._filled_at = now
        if self._tokens < 1:
            self.metrics.rate_refusals.inc()
            raise LimitOfIdentity(
                f"{identity.name} has sent more than its {rate:g} requests a second, {identity.burst} at once; try "
                "again later",
                retry_after_s=(1 - self._tokens) / rate,
            )
        self._tokens -= 1
        self.metrics.requests.inc()

    def enter(self, identity: Identity) -> None:
        """
        Counts a call that begins.

        Raises:
            LimitOfIdentity: as many as may be are under way, or the rate is reached.
        """
        limit = identity.max_concurrent
        if limit is not None and self.running >= limit:
            self.metrics.concurrency_refusals.inc()
            raise LimitOfIdentity(
                f"{identity.name} has its {limit} calls under way; wait until one is answered",
                retry_after_s=_BUSY_RETRY_S,
            )
        self.take(identity)
        self.running += 1

    def leave(self) -> None:
        """Counts a call that has ended."""
        self.running -= 1


@dataclass(slots=True)
class Caller:
    """Who has been admitted, by what, and when: `table` is the reading of the file that said so."""

    identity: Identity
    use: _Use
    table: AccessTable
    token_digest: bytes | None
    names: frozenset[str]


class Access:
    """The access file in use."""

    def __init__(self, path: Path, metrics: SecurityMetrics, *, has_client_ca: bool) -> None:
        """
        Raises:
            SecurityFileError: the file cannot be read, or is wrong.
        """
        self._path = path
        self._metrics = metrics
        self._has_client_ca = has_client_ca
        self._files = WatchedFiles([path])
        self._table = read_access_file(path, has_client_ca=has_client_ca)
        self._uses: dict[str, _Use] = {}
        metrics.show_access()
        self._show()

    def admit(self, context: CallContext, method: str, needs: Scope | None) -> Caller:
        """
        Admits a call, which counts as under way until `release`. `needs` None: any identity will do here.

        Raises:
            Unauthenticated: there are no credentials, or nobody has them.
            PermissionDenied: the identity lacks the scope.
            LimitOfIdentity: a limit of the identity is reached.
        """
        table = self._table
        digest = self._shown_token(context)
        names = _names_of_peer(context) if table.asks_certificates else frozenset()
        identity = self._find(table, digest, names)
        if needs is not None:
            self.check_scope(identity, method, needs)
        use = self._use(identity)
        use.enter(identity)
        return Caller(identity, use, table, digest, names)

    def recheck(self, caller: Caller, method: str) -> None:
        """
        Checks a stream's caller again, which must still be in the file.

        Raises:
            Unauthenticated: it is not.
            PermissionDenied: it has lost the scope.
        """
        if caller.table is self._table:
            return
        table = self._table
        identity = self._find(table, caller.token_digest, caller.names)
        self.check_scope(identity, method, Scope.INFER)
        if identity.name != caller.identity.name:
            caller.use.leave()
            caller.use = self._use(identity)
            caller.use.running += 1
        caller.identity, caller.table = identity, table

    def take_message(self, caller: Caller) -> None:
        """
        Counts a message of a stream.

        Raises:
            LimitOfIdentity: the identity's rate is reached.
        """
        caller.use.take(caller.identity)

    def release(self, caller: Caller) -> None:
        """Counts an admitted call as ended."""
        caller.use.leave()

    def check_scope(self, identity: Identity, method: str, needs: Scope) -> None:
        """
        Raises:
            PermissionDenied: the identity lacks the scope.
        """
        if needs in identity.scopes:
            return
        self._metrics.auth_failed(AuthFailure.SCOPE)
        raise PermissionDenied(f"{method} needs the scope {needs.value}, which {identity.name} does not have")

    def look(self) -> None:
        """Takes up a changed file; one that is wrong is logged and counted, and the old one stays. For one thread."""
        if not self._files.have_changed():
            return
        try:
            table = read_access_file(self._path, has_client_ca=self._has_client_ca)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the file, it is looked at again
            if self._files.refuse(str(error)):
                surprise = None if isinstance(error, SecurityFileError) else error
                _log.error("changed access file refused, the old one stays", reason=str(error), exc_info=surprise)
                self._metrics.access_reloaded(succeeded=False)
            return
        if table.identities == self._table.identities:
            self._metrics.access_current(is_current=True)
            return
        self._table = table
        self._metrics.access_reloaded(succeeded=True)
        self._show()

    def _show(self) -> None:
        names = [identity.name for identity in self._table.identities]
        for name in names:
            self._metrics.identity(name)
        _log.info("access file in use", file=str(self._path), identities=len(names))

    def _shown_token(self, context: CallContext) -> bytes | None:
        found: str | None = None
        for key, value in context.invocation_metadata() or ():
            if key == _AUTHORIZATION and isinstance(value, str) and value[: len(_SCHEME)].lower() == _SCHEME:
                if found is not None:
                    self._metrics.auth_failed(AuthFailure.UNKNOWN_CREDENTIALS)
                    raise Unauthenticated("there are several tokens: send one `authorization: Bearer TOKEN`")
                found = value
        return None if found is None else token_digest(found[len(_SCHEME) :].strip())

    def _find(self, table: AccessTable, digest: bytes | None, names: frozenset[str]) -> Identity:
        identity = table.find(digest, names)
        if identity is not None:
            return identity
        if digest is None and not names:
            self._metrics.auth_failed(AuthFailure.NO_CREDENTIALS)
            raise Unauthenticated("no token: send the metadata `authorization: Bearer TOKEN`")
        self._metrics.auth_failed(AuthFailure.UNKNOWN_CREDENTIALS)
        what = "certificate" if digest is None else "token"
        raise Unauthenticated(f"the {what} is not known here; ask whoever runs the server for one")

    def _use(self, identity: Identity) -> _Use:
        use = self._uses.get(identity.name)
        if use is None:
            use = self._uses[identity.name] = _Use(self._metrics.identity(identity.name))
        return use


def _names_of_peer(context: CallContext) -> frozenset[str]:
    """The names in the certificate that the peer has shown."""
    known = context.auth_context()
    return frozenset(name.decode(errors="replace") for key in _NAMES_OF_PEER for name in known.get(key, ()))
