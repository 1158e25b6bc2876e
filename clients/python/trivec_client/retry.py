"""When a failed request is sent again: decided here, without I/O, for both clients."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from trivec_client.errors import DeadlineExceededError, OverloadedError, TrivecClientError


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """
    How often and how soon a failed request is sent again.

    UNAVAILABLE is tried again after an exponential backoff. RESOURCE_EXHAUSTED is tried again only where the server
    names a wait (google.rpc.RetryInfo): that is a full queue, while without a wait it is a message too large, which
    stays too large. Nothing else is tried again. The call's `timeout_s` bounds all tries together.

    Attributes:
        max_attempts: tries that end in UNAVAILABLE, the first included. 1: never again.
        initial_backoff_s: the wait after the first failure.
        max_backoff_s: the longest wait of ours; a wait that the server names may be longer.
        multiplier: how much longer each wait is than the last.
        jitter: each wait is made longer by up to this share of it, at random, so that clients do not come back at once.
        overload_timeout_s: how long to go on after the first refusal under load. 0: never again.
    """

    max_attempts: int = 5
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    multiplier: float = 2.0
    jitter: float = 0.25
    overload_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts: {self.max_attempts} is below 1")
        if self.multiplier < 1:
            raise ValueError(f"multiplier: {self.multiplier} is below 1")
        for name in ("initial_backoff_s", "max_backoff_s", "jitter", "overload_timeout_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative")


class Attempts:
    """The tries of one request."""

    def __init__(
        self, policy: RetryPolicy, *, deadline_s: float | None, now_s: Callable[[], float], random: Callable[[], float]
    ) -> None:
        """`deadline_s` is an instant on the clock that `now_s` reads; None: no deadline."""
        self._policy = policy
        self._deadline_s = deadline_s
        self._now_s = now_s
        self._random = random
        self._failures = 0
        self._unavailable = 0
        self._overloaded_since_s: float | None = None

    def timeout_s(self) -> float | None:
        """
        Seconds left for the next try; None: no limit.

        Raises:
            DeadlineExceededError: none are left.
        """
        if self._deadline_s is None:
            return None
        left_s = self._deadline_s - self._now_s()
        if left_s <= 0:
            raise DeadlineExceededError(grpc.StatusCode.DEADLINE_EXCEEDED, "timeout_s passed before the call was sent")
        return left_s

    def delay_s(self, error: TrivecClientError) -> float:
        """
        Seconds to wait before the next try.

        Raises:
            TrivecClientError: `error` itself, where there is to be no next try.
        """
        now_s = self._now_s()
        if not self._may_go_on(error, now_s):
            raise error
        backoff_s = min(
            self._policy.initial_backoff_s * self._policy.multiplier**self._failures, self._policy.max_backoff_s
        )
        self._failures += 1
        delay_s = max(backoff_s, error.retry_after_s or 0.0) * (1 + self._policy.jitter * self._random())
        if self._deadline_s is not None and now_s + delay_s >= self._deadline_s:
            raise error
        return delay_s

    def _may_go_on(self, error: TrivecClientError, now_s: float) -> bool:
        if error.code is grpc.StatusCode.UNAVAILABLE:
            self._unavailable += 1
            return self._unavailable < self._policy.max_attempts
        if isinstance(error, OverloadedError):
            if self._overloaded_since_s is None:
                self._overloaded_since_s = now_s
            return now_s - self._overloaded_since_s < self._policy.overload_timeout_s
        return False
