"""How long a request would wait, and whether it is taken: one queue before one engine, by a clock of its own."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from trivec_server.errors import Overloaded
from trivec_server.metrics import Metrics
from trivec_server.serving.admission import Admission
from trivec_server.serving.backlog import Backlog
from trivec_server.serving.ticket import Pending, Ticket
from trivec_server.settings import Limits
from trivec_server.types import ModelVersion

_LOOP = asyncio.new_event_loop()
_LOOP.close()
_STEP_S = 0.002
_DEADLINE_S = 5.0


def make_ticket(*, deadline_s: float | None = None, level: int = 1, now: float = 0.0) -> Ticket:
    deadline = None if deadline_s is None else now + deadline_s
    future = asyncio.Future[None](loop=_LOOP)
    ticket = Ticket(request_id="", rows=1, size_bytes=1, deadline=deadline, level=level, future=future)
    ticket.admitted_at = now
    return ticket


def make_slice(ticket: Ticket, tokens: int, now: float = 0.0) -> Pending[Ticket]:
    ids = np.zeros(tokens, np.int64)
    return Pending(ticket, ids, np.array([tokens]), np.zeros(1, np.int64), now)


@dataclass
class Node:
    """A queue, first come, first served, before an engine of which a function tells how long a batch takes."""

    limits: Limits = field(default_factory=Limits)
    batch_s: Callable[[int, int], float] = lambda texts, tokens: 0.04
    max_rows: int = 8
    backlog: Backlog = field(default_factory=Backlog)
    queue: list[Pending[Ticket]] = field(default_factory=list)
    running: list[Pending[Ticket]] = field(default_factory=list)
    now: float = 0.0
    begun_at: float = 0.0
    ends_at: float = 0.0
    left_work: bool = False
    in_time: int = 0
    late: int = 0
    refused: int = 0
    due: float = 0.0

    def __post_init__(self) -> None:
        metrics = Metrics().model(ModelVersion("m", 1))
        self.admission: Admission[Ticket] = Admission(self, self.limits, metrics)

    @property
    def backlog_s(self) -> float:
        return self.backlog.tokens * (self.backlog.seconds_per_token or 0.0)

    def put(self, tokens: int, *, deadline_s: float | None = None, level: int = 1) -> None:
        """One request; raises Overloaded."""
        ticket = make_ticket(deadline_s=deadline_s, level=level, now=self.now)
        self.admission.check_wait(ticket, tokens, 1)
        pending = make_slice(ticket, tokens, self.now)
        self.queue.append(pending)
        self.backlog.add([pending])

    def offer(self, tokens: int) -> None:
        """The same with the usual deadline, a refusal being counted."""
        try:
            self.put(tokens, deadline_s=_DEADLINE_S)
        except Overloaded:
            self.refused += 1

    def offer_many(self, rate: float) -> None:
        """The requests of one step at so many a second."""
        self.due += rate * _STEP_S
        while self.due >= 1:
            self.due -= 1
            self.offer(10)

    def step(self) -> None:
        """Time passes."""
        self.now += _STEP_S
        if self.running and self.now >= self.ends_at:
            tokens = sum(pending.tokens for pending in self.running)
            self.backlog.learn(tokens, self.now - self.begun_at, left_work=self.left_work)
            for pending in self.running:
                deadline = pending.ticket.deadline
                in_time = deadline is None or self.now <= deadline
                self.in_time += in_time
                self.late += not in_time
            self.running = []
        if not self.running:
            self._begin()

    def _begin(self) -> None:
        """As the server does, what is too late already is dropped."""
        alive = [each for each in self.queue if each.ticket.deadline is None or each.ticket.deadline > self.now]
        self.running, self.queue = alive[: self.max_rows], alive[self.max_rows :]
        self.backlog.recount(self.queue)
        self.left_work = bool(self.queue)
        if self.running:
            self.begun_at = self.now
            duration_s = self.batch_s(len(self.running), sum(each.tokens for each in self.running))
            self.ends_at = self.now + duration_s


ENGINES = {
    "fixed time a batch": (lambda texts, tokens: 0.04, 8, 200.0),
    "time by text, long batches": (lambda texts, tokens: 0.005 * texts, 400, 200.0),
    "time by token": (lambda texts, tokens: 0.0005 * tokens, 64, 200.0),
    "overhead and tokens": (lambda texts, tokens: 0.02 + 0.0001 * tokens, 32, 32 / (0.02 + 0.032)),
}


@pytest.mark.parametrize("kind", ENGINES)
def test_at_three_times_the_capacity_most_of_it_is_answered_in_time_and_the_rest_refused(kind: str) -> None:
    batch_s, max_rows, capacity = ENGINES[kind]
    node = Node(batch_s=batch_s, max_rows=max_rows)
    duration_s = 14.0
    while node.now < duration_s:
        node.offer_many(3 * capacity)
        node.step()
    offered = node.in_time + node.late + node.refused + len(node.queue) + len(node.running)
    assert node.in_time >= 0.9 * capacity * duration_s
    assert node.refused >= 0.5 * offered
    while node.queue or node.running:
        node.step()
    assert node.late <= 0.03 * node.in_time


@pytest.mark.parametrize("kind", ENGINES)
def test_all_are_taken_again_within_two_seconds_of_an_overload(kind: str) -> None:
    batch_s, max_rows, capacity = ENGINES[kind]
    node = Node(batch_s=batch_s, max_rows=max_rows)
    while node.now < 10.0:
        node.offer_many(3 * capacity)
        node.step()
    refused_until = node.now
    while node.now < 16.0:
        before = node.refused
        node.offer_many(0.6 * capacity)
        if node.refused > before:
            refused_until = node.now
        node.step()
    assert refused_until < 12.0


def test_nothing_is_refused_before_anything_is_known() -> None:
    node = Node(limits=Limits(max_queue_time_s=0.001))
    for _ in range(10_000):
        node.put(1000, deadline_s=0.001)


def test_small_batches_of_a_fast_engine_do_not_make_it_look_slow() -> None:
    """One text at a time takes as long as a batch of 32: light load says nothing about what a queue will take."""
    node = Node(batch_s=lambda texts, tokens: 0.01, max_rows=32)
    for _ in range(100):
        node.put(10)
        while node.queue or node.running:
            node.step()
    for _ in range(10_000):
        node.put(10, deadline_s=5.0)


def known(**limits: float) -> Node:
    """A node whose engine takes 10 ms a token, as it has learnt, and that is idle."""
    node = Node(limits=Limits(**limits), batch_s=lambda texts, tokens: 0.01 * tokens, max_rows=1)  # type: ignore[arg-type]
    for _ in range(20):
        node.put(10)
    while node.queue or node.running:
        node.step()
    return node


def test_a_wait_longer_than_the_limit_is_refused_whatever_the_deadline() -> None:
    node = known(max_queue_time_s=1.0)
    for _ in range(11):
        node.put(9)
    node.put(9)
    with pytest.raises(Overloaded, match=r"about 1\.1 s of work wait; the limit is 1 s"):
        node.put(9)


def test_an_idle_server_takes_what_can_hardly_be_done() -> None:
    known(max_queue_time_s=0.001).put(100_000, deadline_s=0.001)


def test_a_refusal_says_when_to_come_back() -> None:
    node = known()
    for _ in range(60):
        node.put(10)
    with pytest.raises(Overloaded, match=r"deadline is in 5\.00 s") as refusal:
        node.put(10, deadline_s=5.0)
    assert 1.0 < refusal.value.retry_after_s <= 5.0


def test_work_of_lower_priority_does_not_count() -> None:
    node = known()
    for _ in range(60):
        node.put(10, level=2)
    node.put(10, deadline_s=1.0, level=1)
    with pytest.raises(Overloaded):
        node.put(10, deadline_s=5.0, level=2)


def test_work_that_will_let_a_short_request_pass_does_not_count() -> None:
    node = known()
    node.put(4000)
    node.put(10, deadline_s=1.0)
    with pytest.raises(Overloaded):
        node.put(4000, deadline_s=30.0)


def test_several_engines_share_the_work() -> None:
    node = known()
    for _ in range(60):
        node.put(10)
    ticket = make_ticket(deadline_s=5.0, now=node.now)
    with pytest.raises(Overloaded):
        node.admission.check_wait(ticket, 10, 1)
    node.admission.check_wait(ticket, 10, 4)


def test_a_slower_engine_is_noticed() -> None:
    node = known()
    node.batch_s = lambda texts, tokens: 0.04 * tokens
    for _ in range(30):
        node.put(10)
    for _ in range(6000):
        node.step()
    before = node.backlog.seconds_per_token
    assert before is not None
    assert before > 0.03


def worked_off(backlog: Backlog, batches: int, *, left_work: bool) -> None:
    """Batches of 1000 tokens at 10 microseconds each."""
    for _ in range(batches):
        backlog.learn(1000, 0.01, left_work=left_work)


def test_one_batch_that_stood_still_hardly_changes_the_estimate() -> None:
    backlog = Backlog()
    worked_off(backlog, 100, left_work=True)
    backlog.learn(1000, 30.0, left_work=False)
    assert backlog.seconds_per_token is not None
    assert backlog.seconds_per_token < 2e-5
    assert backlog.batch_s < 0.05


def test_batches_of_a_server_without_a_queue_mend_an_estimate_that_is_too_slow() -> None:
    backlog = Backlog()
    backlog.learn(8, 2.0, left_work=False)
    worked_off(backlog, 1, left_work=False)
    assert backlog.seconds_per_token is not None
    assert backlog.seconds_per_token < 5e-5
    worked_off(backlog, 40, left_work=False)
    assert backlog.seconds_per_token < 1.1e-5
    assert backlog.batch_s < 0.02


def test_an_engine_that_has_become_slow_is_known_soon() -> None:
    backlog = Backlog()
    worked_off(backlog, 100, left_work=True)
    for _ in range(20):
        backlog.learn(1000, 1.0, left_work=True)
    assert backlog.seconds_per_token is not None
    assert backlog.seconds_per_token > 0.5e-3


def test_a_small_batch_without_more_work_says_nothing_of_slowness() -> None:
    backlog = Backlog()
    worked_off(backlog, 100, left_work=True)
    for _ in range(100):
        backlog.learn(10, 0.01, left_work=False)
    assert backlog.seconds_per_token == pytest.approx(1e-5)
