"""When a failed request is sent again: decided here, without I/O, for both clients."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from trivec_client.errors import DeadlineExceededError, OverloadedError, TrivecClientError

HEDGE_RESERVE = 100
"""Hedges that a client may save up."""
_MOST_LATE = 0.8
"""Of the latest sends, hedges included; of two servers one may be silent."""
_JUDGED_WEIGHT = 1 / 32
"""Of one send in the moving average of those that are late."""


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
        max_attempts: tries that end in UNAVAILABLE, and hedges, the first try included. 1: never again.
        initial_backoff_s: the wait after the first failure.
        max_backoff_s: the longest wait of ours; a wait that the server names may be longer.
        multiplier: how much longer each wait is than the last.
        jitter: each wait is made longer by up to this share of it, at random, so that clients do not come back at once.
        overload_timeout_s: how long to go on after the first refusal under load. 0: never again.
        hedging_delay_s: a request that is not answered after so long is sent once more, of several servers to the next
            one, and so on after each further delay, or after the wait that a server asks for. The first answer counts,
            and the other sends are cancelled (gRPC A6; J. Dean and L. A. Barroso, The Tail at Scale, 2013). None: it is
            sent once; a server that hangs is then left when it does not answer pings.
        hedge_share: how many hedges there may be: 100, and for each request that begins this share of one more.
            Servers that are slow because there is too much to do are not given more: there are none either while four
            in five of the latest sends, hedges included, are not answered within `hedging_delay_s`.
    """

    max_attempts: int = 5
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    multiplier: float = 2.0
    jitter: float = 0.25
    overload_timeout_s: float = 300.0
    hedging_delay_s: float | None = None
    hedge_share: float = 0.2

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts: {self.max_attempts} is below 1")
        if self.multiplier < 1:
            raise ValueError(f"multiplier: {self.multiplier} is below 1")
        for name in ("initial_backoff_s", "max_backoff_s", "jitter", "overload_timeout_s", "hedge_share"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative")
        if self.hedging_delay_s is not None and not self.hedging_delay_s > 0:
            raise ValueError(f"hedging_delay_s: {self.hedging_delay_s} is not above zero")


class HedgeBudget:
    """
    Which hedges a client may send; safe to share between threads. See `hedge_share`.

    Beside a server that is silent others answer in time, hedges at the latest. Where nearly nothing is answered in
    time, all servers are busy, and hedges would only add to that.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._left: float = HEDGE_RESERVE
        self._late_share = 0.0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A request begins."""
        with self._lock:
            self._left = min(self._left + self._share, HEDGE_RESERVE)

    def judge(self, *, is_late: bool) -> None:
        """Whether a send was not answered within the hedging delay, or was."""
        with self._lock:
            self._late_share += _JUDGED_WEIGHT * (is_late - self._late_share)

    def spend(self) -> bool:
        """Takes one hedge, if there is one."""
        with self._lock:
            if self._left < 1 or self._late_share > _MOST_LATE:
                return False
            self._left -= 1
            return True


class Attempts:
    """The tries of one request."""

    def __init__(
        self,
        policy: RetryPolicy,
        budget: HedgeBudget,
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
        budget.begin()
        self._deadline_s = deadline_s
        self._now_s = now_s
        self._random = random
        self._sends_per_try = sends_per_try
        self._has_other_servers = has_other_servers
        self._backoffs = 0
        self._failed = 0
        self._is_judged = False
        self._pushback_s = 0.0
        self._overloaded_since_s: float | None = None

    def timeout_s(self) -> float | None:
        """
        Seconds for the next try; None: no limit.

        Raises:
            DeadlineExceededError: none are left.
        """
        if self._deadline_s is None:
            return None
        left_s = self._deadline_s - self._now_s()
        if left_s <= 0:
            raise DeadlineExceededError(grpc.StatusCode.DEADLINE_EXCEEDED, "timeout_s passed before the call was sent")
        return left_s

    def hedging_delay_s(self) -> float | None:
        """Seconds to wait for an answer before `hedge` is asked; None: as long as it takes."""
        if self._policy.hedging_delay_s is None or self._failed + 1 >= self._policy.max_attempts:
            return None
        return max(self._policy.hedging_delay_s, self._pushback_s)

    def hedge(self) -> bool:
        """Whether the request, not answered after the delay, is sent once more, beside what is under way."""
        if not self._is_judged:
            self._is_judged = True
            self._budget.judge(is_late=True)
        is_over = self._deadline_s is not None and self._now_s() >= self._deadline_s
        if is_over or not self._budget.spend():
            return False
        self._failed += 1
        self._is_judged = False
        self._pushback_s = 0.0
        return True

    def is_decided_by(self, error: BaseException | None, *, is_latest: bool, has_others: bool) -> bool:
        """
        Whether a send that ended so, None if it was answered, decides how the try ends, rather than others under way.
        """
        if error is None:
            # Of one that others have joined it is known already that it is late.
            if is_latest and not self._is_judged:
                self._budget.judge(is_late=False)
            return True
        return not (has_others and isinstance(error, TrivecClientError) and self._waits_for_others(error))

    def _waits_for_others(self, error: TrivecClientError) -> bool:
        if error.code is grpc.StatusCode.UNAVAILABLE:
            # One of them was counted when it was sent, as a hedge.
            self._failed += self._sends_per_try - 1
            return True
        if isinstance(error, OverloadedError):
            self._pushback_s = error.retry_after_s or self._policy.initial_backoff_s
            return True
        return False

    def delay_s(self, error: TrivecClientError) -> float:
        """
        Seconds to wait before the next try.

        Raises:
            TrivecClientError: `error` itself, where there is to be no next try.
        """
        now_s = self._now_s()
        if error.code is grpc.StatusCode.UNAVAILABLE:
            self._failed += self._sends_per_try
            if self._failed >= self._policy.max_attempts:
                raise error
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
