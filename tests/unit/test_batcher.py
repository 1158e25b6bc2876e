"""The work between admission and the engines: nothing lost, nothing twice, nobody left waiting."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trivec_server.backends.interface import TokenBatch
from trivec_server.errors import ComputeError, InvalidRequest, TrivecError
from trivec_server.metrics import Metrics
from trivec_server.serving.batcher import Batch, Batcher, halve
from trivec_server.serving.embed_run import modes_of
from trivec_server.serving.request import EmbedTask
from trivec_server.serving.selection import BatchLimits
from trivec_server.serving.ticket import EmbedTicket, Pending
from trivec_server.serving.tokenizer import Tokenizer
from trivec_server.serving.tokenizing import TextInbox, TextSliceMaker
from trivec_server.types import InputType, Mode, ModelVersion, Truncation

from tests.small_repository import ids_of, write_tokenizer

MAX_TOKENS = 64
LIMITS = BatchLimits(token_budget=4096, max_rows=16, preferred_rows=16, max_delay_s=0.0, pads=False, hidden_size=1024)
_LOOP = asyncio.new_event_loop()
_LOOP.close()


class Panic(BaseException):
    """What a panic in the tokenizer's native code is in Python: no Exception."""


class PickyTokenizer(Tokenizer):
    """A tokenizer that cannot bear some texts."""

    def encode(self, texts: Sequence[str], input_types: Sequence[InputType] | InputType) -> list[bytes]:
        if any("poison" in text for text in texts):
            raise ValueError("poison")
        if any("panic" in text for text in texts):
            raise Panic
        return super().encode(texts, input_types)


@dataclass
class Fixture:
    """A batcher, and what became of failed tickets."""

    batcher: Batcher[EmbedTicket]
    failures: dict[int, TrivecError] = field(default_factory=dict)

    def take(self) -> Batch[EmbedTicket]:
        batch = self.batcher.take()
        assert batch is not None
        return batch


def make_fixture(path: Path, limits: BatchLimits = LIMITS) -> Fixture:
    failures: dict[int, TrivecError] = {}
    metrics = Metrics().model(ModelVersion("small", 1))
    slice_maker = TextSliceMaker(
        PickyTokenizer(path / "tokenizer.json"),
        max_tokens=MAX_TOKENS,
        vocabulary_size=1000,
        result_bytes=lambda task, texts, tokens: 0,
        fail=lambda ticket, error: failures.__setitem__(id(ticket), error),
        metrics=metrics,
    )
    return Fixture(Batcher("test", limits, TextInbox(), slice_maker), failures)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer.json")
    return tmp_path


@pytest.fixture
def fixture(path: Path) -> Iterator[Fixture]:
    fixture = make_fixture(path)
    fixture.batcher.start()
    yield fixture
    with ThreadPoolExecutor() as pool:
        closing = pool.submit(fixture.batcher.close)
        while fixture.batcher.take() is not None:
            pass
        closing.result()


def ticket(*texts: str, modes: Mode = Mode.DENSE, truncation: Truncation = Truncation.ERROR) -> EmbedTicket:
    size = sum(map(len, texts))
    task = EmbedTask(request_id="r", modes=modes, texts=texts, truncation=truncation, size_bytes=size)
    return EmbedTicket(task, 1, asyncio.Future(loop=_LOOP))


def texts_of(batch: Batch[EmbedTicket]) -> list[list[int]]:
    ends = np.cumsum(batch.tokens.lengths).tolist()
    return [
        batch.tokens.token_ids[end - length : end].tolist()
        for end, length in zip(ends, batch.tokens.lengths.tolist(), strict=True)
    ]


def test_what_is_submitted_together_is_taken_together(fixture: Fixture) -> None:
    fixture.batcher.submit([ticket("w10", "w11"), ticket("w12")])
    assert sorted(texts_of(fixture.take())) == [[0, 10, 2], [0, 11, 2], [0, 12, 2]]


def test_the_modes_of_a_batch_are_the_union_of_its_requests(fixture: Fixture) -> None:
    fixture.batcher.submit([ticket("w10", modes=Mode.DENSE), ticket("w11", modes=Mode.SPARSE)])
    assert modes_of(fixture.take()) == Mode.DENSE | Mode.SPARSE


def test_an_engine_that_waits_gets_what_is_submitted_later(fixture: Fixture) -> None:
    with ThreadPoolExecutor() as pool:
        taking = pool.submit(fixture.take)
        fixture.batcher.submit([ticket("w10")])
        assert texts_of(taking.result(30)) == [[0, 10, 2]]


def test_what_waits_is_tokenized_while_the_engine_is_busy(fixture: Fixture) -> None:
    """No thread is in `take`: the batcher's own one does it."""
    fixture.batcher.submit([ticket("w10 w11")])
    patience = threading.Event()
    while fixture.batcher.queued_tokens != 4:
        patience.wait(0.001)
    fixture.take()
    assert fixture.batcher.queued_tokens == 0


def test_abandoned_work_is_discarded_at_once(fixture: Fixture) -> None:
    gone, kept = ticket("w10"), ticket("w11")
    fixture.batcher.submit([gone, kept])
    gone.abandoned = True
    fixture.batcher.discard_abandoned()
    assert texts_of(fixture.take()) == [[0, 11, 2]]
    assert fixture.batcher.queued_tokens == 0


def test_a_request_at_fault_fails_alone(fixture: Fixture) -> None:
    long, good = ticket("w10 " * 100), ticket("w11")
    fixture.batcher.submit([long, good])
    assert texts_of(fixture.take()) == [[0, 11, 2]]
    assert isinstance(fixture.failures[id(long)], InvalidRequest)
    assert id(good) not in fixture.failures


@pytest.mark.parametrize("poison", ["poison", "panic"])
def test_a_text_that_the_tokenizer_cannot_bear_fails_its_own_request(fixture: Fixture, poison: str) -> None:
    bad, one, other = ticket("w10", poison), ticket("w11"), ticket("w12")
    fixture.batcher.submit([one, bad, other])
    assert sorted(texts_of(fixture.take())) == [[0, 11, 2], [0, 12, 2]]
    assert list(fixture.failures) == [id(bad)]
    failure = fixture.failures[id(bad)]
    assert isinstance(failure, ComputeError)
    assert poison not in str(failure)
    assert (one.tokens, other.tokens) == (3, 3)


def test_a_small_request_need_not_wait_for_all_of_a_large_one(fixture: Fixture) -> None:
    large = ticket(*["w10" + " " * 200_000] * 20)
    small = ticket("w11")
    fixture.batcher.submit([large, small])
    taken = texts_of(fixture.take()) + texts_of(fixture.take())
    assert [0, 11, 2] in taken
    assert len(taken) < 20


def test_closing_serves_what_was_submitted_and_then_ends_every_engine(path: Path) -> None:
    fixture = make_fixture(path)
    fixture.batcher.start()
    with ThreadPoolExecutor() as pool:
        engines = [pool.submit(drain, fixture.batcher) for _ in range(3)]
        fixture.batcher.submit([ticket("w10"), ticket(*["w11"] * 40)])
        fixture.batcher.close()
        rows = sum(len(batch.tokens.lengths) for engine in engines for batch in engine.result(30))
    assert rows == 41


def test_closing_ends_a_wait_for_company(path: Path) -> None:
    fixture = make_fixture(path, replace(LIMITS, max_delay_s=3600.0))
    fixture.batcher.start()
    with ThreadPoolExecutor() as pool:
        engine = pool.submit(drain, fixture.batcher)
        fixture.batcher.submit([ticket("w10")])
        pool.submit(fixture.batcher.close)
        assert [texts_of(batch) for batch in engine.result(30)] == [[[0, 10, 2]]]


def test_of_work_submitted_to_several_engines_every_text_is_taken_once(path: Path) -> None:
    fixture = make_fixture(path)
    fixture.batcher.start()
    random = np.random.default_rng(3)
    tickets = [ticket(*(f"w{10 + number}" for _ in range(random.integers(1, 30)))) for number in range(300)]
    with ThreadPoolExecutor() as pool:
        engines = [pool.submit(drain, fixture.batcher) for _ in range(3)]
        for each in tickets:
            fixture.batcher.submit([each])
        fixture.batcher.close()
        slices = [part for engine in engines for batch in engine.result(60) for part in batch.slices]
    rows: dict[int, list[int]] = {id(each): [] for each in tickets}
    for part in slices:
        rows[id(part.ticket)] += part.rows.tolist()
    for number, each in enumerate(tickets):
        assert sorted(rows[id(each)]) == list(range(each.task.text_count))
        assert each.tokens == each.task.text_count * len(ids_of(f"w{10 + number}"))
    assert fixture.batcher.queued_tokens == 0


def drain(batcher: Batcher[EmbedTicket]) -> list[Batch[EmbedTicket]]:
    batches = []
    while (batch := batcher.take()) is not None:
        batches.append(batch)
    return batches


@given(st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=5), min_size=1, max_size=5).filter(
    lambda slices: sum(map(len, slices)) > 1
))  # fmt: skip
def test_halves_hold_every_text_of_a_batch_once_and_in_order(slices: list[list[int]]) -> None:
    pieces = []
    for lengths in slices:
        rows = np.arange(len(lengths))
        owner = ticket(*["t"] * len(lengths))
        pieces.append(Pending(owner, np.repeat(rows, lengths), np.array(lengths, np.int64), rows, 0.0))
    tokens = TokenBatch(
        np.concatenate([piece.token_ids for piece in pieces]), np.concatenate([piece.lengths for piece in pieces])
    )
    first, second = halve(Batch(pieces, tokens, 0.0))
    assert len(first.tokens.lengths) == len(tokens.lengths) // 2
    assert texts_of(first) + texts_of(second) == texts_of(Batch(pieces, tokens, 0.0))
    whole = [(id(piece.ticket), row) for piece in pieces for row in piece.rows.tolist()]
    assert [(id(part.ticket), row) for half in (first, second) for part in half.slices for row in part.rows] == whole
