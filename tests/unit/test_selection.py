"""The batcher's decision, as a pure function: what it takes, what it leaves, what it drops, when it waits."""

import asyncio
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trivec_server.serving.request import EmbedTask
from trivec_server.serving.selection import BatchLimits, Selection, select
from trivec_server.serving.ticket import EmbedTicket, Pending
from trivec_server.types import Mode

_LOOP = asyncio.new_event_loop()
_LOOP.close()
SECONDS_PER_TOKEN = 0.001

PADS = BatchLimits(token_budget=4096, max_rows=16, preferred_rows=16, max_delay_s=0.0, pads=True, hidden_size=1024)
PACKS = replace(PADS, pads=False)


def make_slice(
    *lengths: int,
    at: float = 0.0,
    level: int = 1,
    deadline: float | None = None,
    delay_at: float | None = None,
    group: str | None = None,
) -> Pending[EmbedTicket]:
    """One request's texts of these lengths, queued at an instant. Each text's tokens are its row number."""
    task = EmbedTask(request_id="r", modes=Mode.DENSE, texts=["t"] * len(lengths), deadline=deadline)
    ticket = EmbedTicket(task, level, asyncio.Future(loop=_LOOP))
    rows = np.arange(len(lengths))
    token_ids = np.repeat(rows, lengths)
    return Pending(ticket, token_ids, np.array(lengths, np.int64), rows, at, delay_at, group)


def decide(
    queue: list[Pending[EmbedTicket]], limits: BatchLimits = PADS, *, now: float = 0.0, may_grow: bool = True
) -> Selection[EmbedTicket]:
    return select(queue, now, limits, seconds_per_token=SECONDS_PER_TOKEN, may_grow=may_grow)


def lengths_of(selection: Selection[EmbedTicket]) -> list[int]:
    """The lengths of the texts taken."""
    return [
        int(length)
        for pending, chosen in selection.taken
        for length in (pending.lengths if chosen is None else pending.lengths[chosen])
    ]


def taken_whole(selection: Selection[EmbedTicket]) -> list[Pending[EmbedTicket]]:
    return [pending for pending, _ in selection.taken]


@dataclass
class Queue:
    """Takes one batch after the other, as the batcher does, and notes what was taken."""

    waiting: list[Pending[EmbedTicket]]
    batches: list[list[Pending[EmbedTicket]]] = field(default_factory=list)

    def take(self, limits: BatchLimits, now: float = 0.0) -> list[Pending[EmbedTicket]]:
        selection = decide(self.waiting, limits, now=now, may_grow=False)
        touched = {id(pending) for pending, _ in selection.taken} | {id(pending) for pending in selection.dropped}
        left = [pending for pending in self.waiting if id(pending) not in touched]
        batch = []
        for pending, chosen in selection.taken:
            part, rest = (pending, None) if chosen is None else pending.split(chosen)
            batch.append(part)
            left += [] if rest is None else [rest]
        self.waiting = left
        self.batches.append(batch)
        return batch


slices = st.builds(
    lambda lengths, at, level, delay_at, group: make_slice(
        *lengths, at=at, level=level, delay_at=delay_at, group=group
    ),
    st.lists(st.integers(2, 200), min_size=1, max_size=8),
    st.floats(0, 5),
    st.integers(1, 3),
    st.none() | st.floats(0, 10),
    st.none() | st.sampled_from("ab"),
)
queues = st.lists(slices, min_size=1, max_size=8)
any_limits = st.builds(
    BatchLimits,
    token_budget=st.integers(2, 2000),
    max_rows=st.integers(1, 16),
    preferred_rows=st.just(4),
    max_delay_s=st.just(0.0),
    pads=st.booleans(),
    hidden_size=st.sampled_from([32, 1024]),
)


@given(queues, any_limits)
def test_every_text_is_taken_exactly_once(waiting: list[Pending[EmbedTicket]], limits: BatchLimits) -> None:
    queue = Queue(waiting)
    texts = sum(len(pending.rows) for pending in waiting)
    while queue.waiting:
        assert queue.take(limits, now=6.0), "a queue that is not empty must give a batch"
    seen: dict[int, list[int]] = {id(pending.ticket): [] for pending in waiting}
    for part in (part for batch in queue.batches for part in batch):
        seen[id(part.ticket)] += part.rows.tolist()
        assert part.token_ids.tolist() == np.repeat(part.rows, part.lengths).tolist(), "tokens stay with their row"
    assert all(len(rows) == len(set(rows)) for rows in seen.values())
    assert sum(map(len, seen.values())) == texts


@given(queues, any_limits)
def test_a_batch_stays_within_the_token_budget_unless_it_is_one_text(
    waiting: list[Pending[EmbedTicket]], limits: BatchLimits
) -> None:
    queue = Queue(waiting)
    while queue.waiting:
        lengths = [int(length) for part in queue.take(limits, now=6.0) for length in part.lengths]
        cost = len(lengths) * max(lengths) if limits.pads else sum(lengths)
        assert cost <= limits.token_budget or len(lengths) == 1


@given(queues, any_limits)
def test_a_batch_has_at_most_max_rows_texts(waiting: list[Pending[EmbedTicket]], limits: BatchLimits) -> None:
    queue = Queue(waiting)
    while queue.waiting:
        assert sum(len(part.rows) for part in queue.take(limits, now=6.0)) <= limits.max_rows


@given(queues, any_limits)
def test_a_batch_holds_slices_of_one_group_only(waiting: list[Pending[EmbedTicket]], limits: BatchLimits) -> None:
    queue = Queue(waiting)
    while queue.waiting:
        assert len({part.group for part in queue.take(limits, now=6.0)}) == 1


@given(queues, any_limits)
def test_where_requests_are_not_divided_each_is_taken_whole_and_one_too_large_alone(
    waiting: list[Pending[EmbedTicket]], limits: BatchLimits
) -> None:
    queue = Queue(list(waiting))
    limits = replace(limits, pads=False, splits=False)
    while queue.waiting:
        batch = queue.take(limits, now=6.0)
        assert all(part in waiting for part in batch)
        rows, tokens = sum(len(part.rows) for part in batch), sum(part.tokens for part in batch)
        assert len(batch) == 1 or (rows <= limits.max_rows and tokens <= limits.token_budget)
    assert sum(map(len, queue.batches)) == len(waiting)


@given(queues, any_limits)
def test_an_engine_that_pads_gets_texts_of_similar_length_or_few_tokens(
    waiting: list[Pending[EmbedTicket]], limits: BatchLimits
) -> None:
    queue = Queue(waiting)
    limits = replace(limits, pads=True)
    while queue.waiting:
        lengths = [int(length) for part in queue.take(limits, now=6.0) for length in part.lengths]
        is_similar = min(lengths) >= min(0.75 * max(lengths), max(lengths) - 16) - 1
        assert is_similar or len(lengths) * max(lengths) <= 64


def test_similar_lengths_of_different_requests_share_a_batch() -> None:
    queue = Queue([make_slice(100, 10), make_slice(98, 12), make_slice(11, 99)])
    batches = [sorted(int(x) for part in queue.take(PADS, now=1.0) for x in part.lengths) for _ in range(2)]
    assert sorted(batches) == [[10, 11, 12], [98, 99, 100]]
    assert not queue.waiting


def test_an_engine_that_does_not_pad_mixes_lengths() -> None:
    assert sorted(lengths_of(decide([make_slice(500), make_slice(3), make_slice(90)], PACKS))) == [3, 90, 500]


def test_a_text_larger_than_the_budget_runs_alone() -> None:
    for limits in (PADS, PACKS):
        queue = Queue([make_slice(5000), make_slice(5000)])
        tight = replace(limits, token_budget=1000)
        assert [sum(len(part.rows) for part in queue.take(tight)) for _ in range(2)] == [1, 1]


ROWS = replace(PACKS, token_budget=4, max_rows=4, preferred_rows=4, splits=False)
"""As for tensors: a row is a token."""


def make_rows(count: int, at: float = 0.0, group: str | None = None, level: int = 1) -> Pending[EmbedTicket]:
    return make_slice(*[1] * count, at=at, group=group, level=level)


def test_undivided_requests_fill_a_batch_and_what_does_not_fit_is_passed_over() -> None:
    first, second, third = make_rows(2, at=0.0), make_rows(3, at=0.1), make_rows(2, at=0.2)
    assert taken_whole(decide([first, second, third], ROWS, now=1.0)) == [first, third]


def test_an_undivided_request_above_the_limits_runs_alone_in_its_turn() -> None:
    large, small = make_rows(9, at=0.0), make_rows(1, at=0.8)
    queue = Queue([small, large])
    assert queue.take(ROWS, now=1.0) == [small]
    assert queue.take(ROWS, now=1.0) == [large]
    assert taken_whole(decide([make_rows(1, at=4.9), large], ROWS, now=5.0)) == [large]


def test_an_undivided_request_is_not_passed_over_for_ever() -> None:
    """One with as many rows as fit, while single rows keep coming as fast as they are served."""
    large, now = make_rows(4, at=0.0), 0.0
    queue = Queue([large, make_rows(1), make_rows(1)])
    while large not in queue.take(ROWS, now):
        now += 4 * SECONDS_PER_TOKEN
        assert now < 1, "starved"
        queue.waiting += [make_rows(1, at=now) for _ in range(4)]


def test_the_group_of_the_most_urgent_slice_is_taken() -> None:
    old, new, other = make_rows(1, at=0.0, group="a"), make_rows(1, at=2.0, group="a"), make_rows(1, at=1.0, group="b")
    assert taken_whole(decide([other, new, old], ROWS, now=3.0)) == [new, old]
    urgent = make_rows(1, at=3.0, group="b", level=0)
    assert taken_whole(decide([old, new, urgent, other], ROWS, now=3.0)) == [urgent, other]


def test_nothing_is_taken_from_an_empty_queue() -> None:
    selection = decide([])
    assert (list(selection.taken), list(selection.dropped), selection.wake_at) == ([], [], None)


def test_the_lowest_priority_level_is_taken_first() -> None:
    late, early = make_slice(*[50] * 16, at=5.0, level=1), make_slice(*[50] * 16, at=0.0, level=2)
    assert taken_whole(decide([early, late], now=6.0)) == [late]
    assert taken_whole(decide([early, late], PACKS, now=6.0)) == [late]


def test_of_equal_levels_and_sizes_the_one_that_waited_longer_is_taken_first() -> None:
    new, old = make_slice(*[50] * 16, at=5.0), make_slice(*[50] * 16, at=1.0)
    assert taken_whole(decide([new, old], now=6.0)) == [old]


def test_a_short_request_passes_a_long_one_that_came_a_moment_earlier() -> None:
    long, short = make_slice(*[1000] * 16, at=0.0), make_slice(*[20] * 16, at=0.01)
    assert taken_whole(decide([long, short], now=0.2)) == [short]


@pytest.mark.parametrize("limits", [PADS, PACKS])
def test_a_long_text_among_an_endless_stream_of_short_ones_is_served(limits: BatchLimits) -> None:
    """The engine never rests, and more short texts wait at every instant; the long one's turn still comes."""
    short_rows, service_s, now = 16, 16 * 20 * SECONDS_PER_TOKEN, 0.0
    long = make_slice(2000, at=0.0)
    queue = Queue([long, make_slice(*[20] * short_rows, at=0.0), make_slice(*[20] * short_rows, at=0.0)])
    long_service_s = 2000 * SECONDS_PER_TOKEN
    # Short requests wait two batches, so their response ratio stays below 3: the long text overtakes them by then.
    bound_s = 4 * long_service_s
    while not any(part.ticket is long.ticket for part in queue.take(limits, now)):
        assert now <= bound_s, "starved"
        now += service_s
        queue.waiting.append(make_slice(*[20] * short_rows, at=now))


def test_all_texts_of_a_large_request_are_served_although_others_keep_coming() -> None:
    large = make_slice(*[20] * 200, at=0.0)
    queue = Queue([large])
    now, served = 0.0, 0
    while served < 200:
        served += sum(len(part.rows) for part in queue.take(PADS, now) if part.ticket is large.ticket)
        now += 16 * 20 * SECONDS_PER_TOKEN
        queue.waiting.append(make_slice(*[20] * 8, at=now))
        assert now < 60, "starved"


DELAYS = replace(PADS, max_delay_s=0.5, preferred_rows=4)


def test_a_small_batch_waits_until_the_oldest_text_has_waited_max_delay() -> None:
    queue = [make_slice(10, at=1.25), make_slice(10, at=1.0)]
    early = decide(queue, DELAYS, now=1.25)
    assert (list(early.taken), early.wake_at) == ([], 1.5)
    assert lengths_of(decide(queue, DELAYS, now=1.5)) == [10, 10]


def test_a_batch_of_a_preferred_size_does_not_wait() -> None:
    assert len(lengths_of(decide([make_slice(10, 10, 10, 10, at=1.0)], DELAYS, now=1.0))) == 4


def test_a_full_batch_does_not_wait() -> None:
    limits = replace(DELAYS, preferred_rows=16, max_rows=2)
    assert len(lengths_of(decide([make_slice(10, 10, 10, at=1.0)], limits, now=1.0))) == 2


def test_a_batch_that_spends_the_token_budget_does_not_wait() -> None:
    for limits in (replace(DELAYS, token_budget=100), replace(DELAYS, token_budget=100, pads=False)):
        assert lengths_of(decide([make_slice(90, 90, at=1.0)], limits, now=1.0)) == [90]


def test_without_padding_what_does_not_fit_into_the_rest_is_passed_over_for_what_does() -> None:
    limits = replace(PACKS, token_budget=100)
    assert lengths_of(decide([make_slice(70, 50, 20, 40, 8)], limits)) == [70, 20, 8]
    assert lengths_of(decide([make_slice(70, at=0.0), make_slice(50, 30, at=1.0)], limits, now=2.0)) == [70, 30]


def test_without_padding_a_text_above_the_budget_is_taken_alone_after_its_neighbours() -> None:
    queue = Queue([make_slice(500, 60, 30)])
    limits = replace(PACKS, token_budget=100)
    batches = [sum(part.tokens for part in queue.take(limits)) for _ in range(2)]
    assert batches == [90, 500]


def test_while_one_group_waits_for_company_another_that_need_not_is_taken() -> None:
    limits = replace(ROWS, max_delay_s=0.5)
    waiting, full = make_rows(1, at=1.0, group="a"), make_rows(4, at=1.25, group="b")
    assert taken_whole(decide([waiting, full], limits, now=1.25)) == [full]
    late = make_rows(1, at=0.5, group="b", level=2)
    assert taken_whole(decide([waiting, late], limits, now=1.25)) == [late]


def test_of_several_groups_that_wait_the_first_delay_to_end_wakes() -> None:
    limits = replace(ROWS, max_delay_s=0.5)
    queue = [make_rows(1, at=1.25, group="a", level=1), make_rows(1, at=1.0, group="b", level=2)]
    assert decide(queue, limits, now=1.25) == Selection(dropped=[], wake_at=1.5)


def test_nothing_waits_when_no_more_work_can_arrive() -> None:
    assert lengths_of(decide([make_slice(10, at=1.0)], DELAYS, now=1.0, may_grow=False)) == [10]


def test_without_a_delay_whatever_waits_is_taken_at_once() -> None:
    assert lengths_of(decide([make_slice(10, at=1.0)], now=1.0)) == [10]


def test_expired_and_abandoned_work_is_dropped_and_never_taken() -> None:
    expired, abandoned, alive = make_slice(10, deadline=1.0), make_slice(10), make_slice(10, deadline=9.0)
    abandoned.ticket.abandoned = True
    selection = decide([expired, abandoned, alive], now=1.0)
    assert taken_whole(selection) == [alive]
    assert list(selection.dropped) == [expired, abandoned]


def test_a_queue_of_dead_work_only_is_dropped() -> None:
    expired = make_slice(10, deadline=1.0)
    assert decide([expired], DELAYS, now=2.0) == Selection(dropped=[expired])


def test_dead_work_is_dropped_also_while_the_living_waits_for_company() -> None:
    expired, alive = make_slice(10, deadline=1.0), make_slice(10, at=2.0)
    assert decide([expired, alive], DELAYS, now=2.0) == Selection(dropped=[expired], wake_at=2.5)


def test_a_delayed_request_is_served_after_those_of_its_level_that_are_not() -> None:
    delayed = make_slice(*[50] * 16, at=0.0, delay_at=2.0)
    fresh = make_slice(*[50] * 16, at=5.0)
    assert taken_whole(decide([delayed, fresh], now=1.0 + 5.0)) == [fresh]
    assert taken_whole(decide([delayed, fresh], now=1.0)) == [delayed]


def test_a_delayed_request_still_goes_before_lower_levels() -> None:
    """Triton: a delayed request waits for those of the same or a higher level, not for those of a lower one."""
    delayed = make_slice(*[50] * 16, at=0.0, level=1, delay_at=2.0)
    lower = make_slice(*[50] * 16, at=5.0, level=2)
    assert taken_whole(decide([delayed, lower], now=6.0)) == [delayed]


@given(queues, any_limits)
def test_the_most_urgent_level_is_in_every_batch_that_leaves_work_behind(
    waiting: list[Pending[EmbedTicket]], limits: BatchLimits
) -> None:
    queue = Queue([replace_delay(pending) for pending in waiting])
    while queue.waiting:
        lowest = min(pending.ticket.level for pending in queue.waiting)
        assert lowest in [part.ticket.level for part in queue.take(limits, now=6.0)]


def replace_delay(pending: Pending[EmbedTicket]) -> Pending[EmbedTicket]:
    pending.delay_at = None
    return pending
