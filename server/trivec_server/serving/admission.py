"""Whether a request is taken: limits on what is under way, and on the wait."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol

from trivec_server.errors import Overloaded
from trivec_server.metrics import ModelMetrics
from trivec_server.serving.backlog import Backlog
from trivec_server.serving.ticket import Ticket, TicketT
from trivec_server.settings import Limits

_MIN_RETRY_AFTER_S = 0.05
_MAX_RETRY_AFTER_S = 5.0
_MARGIN = 0.9
"""A request is taken if it is expected to be done within this share of the time that it has."""


@dataclass(slots=True)
class Admitted:
    """What the requests under way add up to. Owned by the event loop."""

    requests: int = 0
    rows: int = 0
    size_bytes: int = 0
    held_bytes: int = 0


class Units(NamedTuple):
    """What a version's rows, and the tokens in its queue, are called in messages."""

    rows: str
    tokens: str


TEXTS = Units("texts", "tokens")


class Queue(Protocol):
    """What is asked of the queue."""

    @property
    def backlog(self) -> Backlog:
        """The work in it."""

    @property
    def backlog_s(self) -> float:
        """How long one engine will take for it."""


class Admission(Generic[TicketT]):
    """Keeps the limits of one version."""

    def __init__(self, queue: Queue, limits: Limits, metrics: ModelMetrics, units: Units = TEXTS) -> None:
        self.admitted = Admitted()
        self._queue = queue
        self._limits = limits
        self._metrics = metrics
        self._units = units

    def check_room(self, ticket: TicketT, held_bytes: int) -> None:
        """
        Checks what is under way.

        Raises:
            Overloaded: a limit would be passed.
        """
        admitted, limits, units = self.admitted, self._limits, self._units
        if not admitted.requests:
            return
        if admitted.rows + ticket.rows > limits.max_queued_texts:
            self.refuse(f"{admitted.rows} {units.rows} are under way; the limit is {limits.max_queued_texts}")
        if admitted.size_bytes + ticket.size_bytes > limits.max_queued_bytes:
            self.refuse(f"{admitted.size_bytes:,} bytes are under way; the limit is {limits.max_queued_bytes:,}")
        if admitted.held_bytes + held_bytes > limits.max_held_bytes:
            self.refuse(f"results of {admitted.held_bytes:,} bytes are held; the limit is {limits.max_held_bytes:,}")
        queued = self._queue.backlog.tokens
        if queued >= limits.max_queued_tokens:
            self.refuse(f"{queued:,} {units.tokens} wait; the limit is {limits.max_queued_tokens:,}")

    def check_queue(self, ticket: TicketT, others: Collection[TicketT], max_queue_size: int) -> None:
        """
        Checks how many requests of its level wait; a `max_queue_size` of 0 is no limit.

        Raises:
            Overloaded: they are too many.
        """
        if max_queue_size:
            waiting = sum(1 for other in others if other.level == ticket.level and not other.started)
            if waiting >= max_queue_size:
                self.refuse(f"{waiting} requests wait; the model's max_queue_size is {max_queue_size}")

    def check_wait(self, ticket: Ticket, tokens: int, engines: int) -> None:
        """
        Checks for how long a request of about so many tokens would wait for so many engines.

        Raises:
            Overloaded: too long, or in vain: its deadline would pass.
        """
        backlog = self._queue.backlog
        wait_s = backlog.wait_s(ticket.level, tokens, engines)
        if wait_s > self._limits.max_queue_time_s:
            self.refuse(f"about {wait_s:.1f} s of work wait; the limit is {self._limits.max_queue_time_s:g} s")
        if ticket.deadline is None or not wait_s:
            return
        # The batch that runs now, at worst all of it, and its own. Where the wait is short, batches are, too.
        expected_s = wait_s + 2 * min(backlog.batch_s, wait_s)
        remaining_s = ticket.deadline - ticket.admitted_at
        if expected_s > _MARGIN * remaining_s:
            self.refuse(f"the answer would take about {expected_s:.2f} s; the deadline is in {remaining_s:.2f} s")

    def refuse(self, reason: str) -> None:
        """
        Refuses a request for load.

        Raises:
            Overloaded: always, with the time after which to try again.
        """
        self._metrics.rejected_requests.inc()
        retry_after_s = min(max(self._queue.backlog_s / 2, _MIN_RETRY_AFTER_S), _MAX_RETRY_AFTER_S)
        raise Overloaded(f"overloaded: {reason}; send the request again later", retry_after_s=retry_after_s)
