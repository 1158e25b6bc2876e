"""When a failed request is sent again: decided here, without I/O, for both clients."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from trivec_client.errors import DeadlineExceededError, OverloadedError, TrivecClientError

RESEND_RESERVE = 100
"""Resends by `attempt_timeout_s` that a client may save up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    How often and how soon a failed request is sent again.

    UNAVAILABLE is tried again after an exponential backoff, and so is CANCELLED by the server. RESOURCE_EXHAUSTED is
    tried again only where the server names a wait (google.rpc.RetryInfo): that is a full queue, while without a wait it
    is a message too large, which stays too large. Nothing else is tried again. The call's `timeout_s` bounds all tries
    together.

    Of several servers, another is tried before any wait: gRPC sends what ended in UNAVAILABLE once more at once, which
    counts as an attempt, and the first refusal under load is not waited for.

    Attributes:
        max_attempts: tries that end in UNAVAILABLE or run into `attempt_timeout_s`, the first included. 1: never again.
        initial_backoff_s: the wait after the first failure.
        max_backoff_s: the longest wait of ours; a wait that the server names may be longer.
        multiplier: how much longer each wait is than the last.
        jitter: each wait is made longer by up to this share of it, at random, so that clients do not come back at once.
        overload_timeout_s: how long to go on after the first refusal under load. 0: never again.
        attempt_timeout_s: how long one try may take before the request is sent again, of several servers to another.
            None: as long as the call; a server that hangs is then left when it does not answer pings. A value must be
            above what the slowest request takes, or that one never succeeds. After a refusal under load the request's
            next tries take as long as the call, and so does the last try of a call with a deadline.
        resend_share: how many resends `attempt_timeout_s` may cause: 100, and for each request that begins this share
            of one more. Past them a try may take as long as the call: servers that are slow because there is too much
            to do are not given more.
    """

    max_attempts: int = 5
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    multiplier: float = 2.0
    jitter: float = 0.25
    overload_timeout_s: float = 300.0
    attempt_timeout_s: float | None = None
    resend_share: float = 0.2

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts: {self.max_attempts} is below 1")
        if self.multiplier < 1:
            raise ValueError(f"multiplier: {self.multiplier} is below 1")
        for name in ("initial_backoff_s", "max_backoff_s", "jitter", "overload_timeout_s", "resend_share"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative")
        if self.attempt_timeout_s is not None and not self.attempt_timeout_s > 0:
            raise ValueError(f"attempt_timeout_s: {self.attempt_timeout_s} is not above zero")


class ResendBudget:
    """How many more tries of a client may be cut short; safe to share between threads. See `resend_share`."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._left: float = RESEND_RESERVE
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A request begins."""
        with self._lock:
            self._left = min(self._left + self._share, RESEND_RESERVE)

    def spend(self) -> None:
        """A try was cut short. Tries that began while there was some left may make it less than nothing."""
        with self._lock:
            self._left -= 1

    @property
    def is_spent(self) -> bool:
        """Whether no more tries may be cut short."""
        return self._left < 1


class Attempts:
    """The tries of one request."""

    def __init__(
        self,
        policy: RetryPolicy,
        budget: ResendBudget,
        *,
        deadline_s: float | None,
        now_s: Callable[[], float],
        random: Callable[[], float],
        sends_per_try: int = 1,
        has_other_servers: bool = False,
    ) -> None:
        """
        Args:
            policy: the rules.
            budget: the client's, for all its requests.
            deadline_s: an instant on the clock that `now_s` reads; None: no deadline.
            now_s: the clock.
            random: chance, in [0, 1).
            sends_per_try: how often gRPC sends a try before it ends in UNAVAILABLE.
            has_other_servers: whether the next try can go to another server.
        """
        self._policy = policy
        self._budget = budget
        budget.earn()
        self._deadline_s = deadline_s
        self._now_s = now_s
        self._random = random
        self._sends_per_try = sends_per_try
        self._has_other_servers = has_other_servers
        self._backoffs = 0
        self._failed = 0
        self._overloaded_since_s: float | None = None
        self._is_cut_short = False

    def timeout_s(self) -> float | None:
        """
        Seconds for the next try; None: no limit.

        Raises:
            DeadlineExceededError: none are left.
        """
        # A server refuses what it cannot answer in the time given: after a refusal a try is given all there is.
        is_limited = not (self._budget.is_spent or self._overloaded_since_s is not None)
        attempt_s = self._policy.attempt_timeout_s if is_limited else None
        if self._deadline_s is not None and self._failed + 1 >= self._policy.max_attempts:
            # After the last try there is no other: it may as well have the time that is left.
            attempt_s = None
        if self._deadline_s is None:
            self._is_cut_short = attempt_s is not None
            return attempt_s
        left_s = self._deadline_s - self._now_s()
        if left_s <= 0:
            raise DeadlineExceededError(grpc.StatusCode.DEADLINE_EXCEEDED, "timeout_s passed before the call was sent")
        self._is_cut_short = attempt_s is not None and attempt_s < left_s
        return attempt_s if self._is_cut_short else left_s

    def delay_s(self, error: TrivecClientError) -> float:
        """
        Seconds to wait before the next try.

        Raises:
            TrivecClientError: `error` itself, where there is to be no next try.
        """
        now_s = self._now_s()
        if error.code is grpc.StatusCode.DEADLINE_EXCEEDED and self._is_cut_short:
            return self._after_attempt_timeout(error)
        if error.code is grpc.StatusCode.UNAVAILABLE:
            self._count(error, self._sends_per_try)
            self._backoffs += self._sends_per_try
        elif isinstance(error, OverloadedError):
            if self._overloaded_since_s is None:
                self._overloaded_since_s = now_s
                if self._has_other_servers and self._policy.overload_timeout_s:
                    return 0.0
            if now_s - self._overloaded_since_s >= self._policy.overload_timeout_s:
                raise error
            self._backoffs += 1
        else:
            raise error
        backoff_s = min(
            self._policy.initial_backoff_s * self._policy.multiplier ** (self._backoffs - 1), self._policy.max_backoff_s
        )
        delay_s = max(backoff_s, error.retry_after_s or 0.0) * (1 + self._policy.jitter * self._random())
        if self._deadline_s is not None and now_s + delay_s >= self._deadline_s:
            raise error
        return delay_s

    def _after_attempt_timeout(self, error: TrivecClientError) -> float:
        """Time enough has passed already: the next try begins at once."""
        error.message = f"no answer within attempt_timeout_s, {self._policy.attempt_timeout_s:g} s"
        self._count(error, 1)
        self._budget.spend()
        return 0.0

    def _count(self, error: TrivecClientError, sends: int) -> None:
        self._failed += sends
        if self._failed >= self._policy.max_attempts:
            raise error
