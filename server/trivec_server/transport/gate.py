"""Who may call what over one port: the access file, and the rule for calls that manage the server."""

from dataclasses import dataclass

from trivec_server.errors import PermissionDenied
from trivec_server.metrics.security import AuthFailure, SecurityMetrics
from trivec_server.settings import Management, ServeSettings
from trivec_server.transport.access import Access, CallContext, Caller
from trivec_server.transport.access_file import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementRule:
    """
    Which calls over one port may manage the server.

    Attributes:
        allows_anyone: Whoever reaches the port may.
        allows_admins: Identities with the scope admin may.
        hint: What a caller that may not is told to do, after "needs ".
    """

    allows_anyone: bool
    allows_admins: bool
    hint: str


def main_port_rule(settings: ServeSettings, *, is_loopback: bool) -> ManagementRule:
    """The rule of the port that everything is served on. `is_loopback`: only this machine reaches it."""
    if settings.management is Management.OFF:
        return _OFF
    ways: list[str] = []
    if settings.management_port is not None:
        ways.append("the server's management port")
    if settings.access_file is not None:
        ways.append("an identity with the scope admin")
    return ManagementRule(
        allows_anyone=is_loopback and not ways,
        allows_admins=True,
        hint=" or ".join(ways) or _NO_WAY,
    )


_NO_WAY = "a server that was started with --management-port, or with --access-file and an identity with the scope admin"
_OFF = ManagementRule(
    allows_anyone=False, allows_admins=False, hint="a server that was started without --management off"
)
MANAGEMENT_PORT_RULE = ManagementRule(allows_anyone=True, allows_admins=True, hint="")


class Gate:
    """Admits the calls of one port."""

    def __init__(self, access: Access | None, rule: ManagementRule, metrics: SecurityMetrics) -> None:
        """Without `access` nobody is asked who they are."""
        self._access = access
        self._rule = rule
        self._metrics = metrics
        self.asks = access is not None

    def admit(self, context: CallContext, method: str, needs: Scope | None) -> Caller | None:
        """
        Admits a call, to be released at its end; None: whoever it is. `needs` None: `require` will tell.

        Raises:
            Unauthenticated, PermissionDenied, LimitOfIdentity: it is not admitted.
        """
        if self._access is None:
            if needs is Scope.ADMIN:
                self._check_management(None, method)
            return None
        caller = self._access.admit(context, method, Scope.INFER if needs is Scope.INFER else None)
        try:
            if needs is Scope.ADMIN:
                self._check_management(caller, method)
        except PermissionDenied:
            self._access.release(caller)
            raise
        return caller

    def require(self, caller: Caller | None, method: str, needs: Scope) -> None:
        """
        Checks a call that was admitted without knowing what it needs.

        Raises:
            PermissionDenied: it lacks the scope.
        """
        if needs is Scope.ADMIN:
            self._check_management(caller, method)
        elif self._access is not None and caller is not None:
            self._access.check_scope(caller.identity, method, needs)

    def recheck(self, caller: Caller, method: str) -> None:
        """
        Checks the caller of a stream again.

        Raises:
            Unauthenticated, PermissionDenied: it may not go on.
        """
        if self._access is not None:
            self._access.recheck(caller, method)

    def take_message(self, caller: Caller) -> None:
        """
        Counts a message of a stream.

        Raises:
            LimitOfIdentity: the identity's rate is reached.
        """
        if self._access is not None:
            self._access.take_message(caller)

    def release(self, caller: Caller) -> None:
        """The call has ended."""
        if self._access is not None:
            self._access.release(caller)

    def _check_management(self, caller: Caller | None, method: str) -> None:
        rule = self._rule
        is_admin = caller is not None and Scope.ADMIN in caller.identity.scopes
        if rule.allows_anyone or (rule.allows_admins and is_admin):
            return
        self._metrics.auth_failed(AuthFailure.MANAGEMENT)
        raise PermissionDenied(f"{method} manages the server, which needs {rule.hint}")
