"""Requests through a pipeline with a response cache: what is known is not computed, and nobody can tell otherwise."""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trivec_server.backends.interface import EngineOutput, LexicalRows, TokenBatch
from trivec_server.errors import ComputeError, InvalidRequest
from trivec_server.metrics import CacheUsage
from trivec_server.metrics.statistics import StatisticsSnapshot
from trivec_server.serving.cache.row import CachedRow
from trivec_server.serving.cache.store import LocalStore
from trivec_server.serving.encode import lexical_weights
from trivec_server.serving.request import EmbedResult, VectorEncoding
from trivec_server.settings import MIB
from trivec_server.types import BatchingSettings, InputType, Mode, Truncation

from tests.cached_rows import arrays_of
from tests.cached_serving import CachedServing, HalvingScript, assert_embeds, cached_serving, until
from tests.scripted_engine import Script
from tests.small_repository import MAX_TOKENS, ids_of

EVERY_MODES = [Mode(value) for value in range(1, 8)]
HALF_ATOL = 1e-3
"""What float16 loses of a number up to 1."""

# --- texts that come again


@pytest.mark.parametrize("modes", EVERY_MODES)
async def test_a_text_that_comes_again_does_not_reach_the_engine(tmp_path: Path, modes: Mode) -> None:
    async with cached_serving(tmp_path) as served:
        for _ in range(2):
            assert_embeds(await served.embed("w20 w21 w20", modes=modes), [ids_of("w20 w21 w20")], modes)
        assert len(served.computed) == 1


async def test_only_the_texts_that_are_not_known_are_computed(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        await served.embed("w20", "w22 w22", modes=Mode.HYBRID)
        texts = ["w21", "w22 w22", "w23 w23 w23", "w20"]
        result = await served.embed(*texts, modes=Mode.HYBRID)
        assert_embeds(result, [ids_of(text) for text in texts], Mode.HYBRID)
        assert served.computed[1:] == [[ids_of("w21"), ids_of("w23 w23 w23")]]


async def test_without_a_cache_every_text_is_computed(tmp_path: Path) -> None:
    async with cached_serving(tmp_path, is_cached=False) as served:
        for _ in range(2):
            await served.embed("w20", "w20")
        assert served.computed == [[ids_of("w20")] * 2] * 2


async def test_a_large_request_is_put_together_of_known_and_new_texts(tmp_path: Path) -> None:
    # Several rounds of the tokenizer, which takes 256 Ki characters at a time.
    texts = [f"w{100 + number} " * 400 for number in range(300)]
    cut = [[*ids_of(text)[: MAX_TOKENS - 1], 2] for text in texts]
    async with cached_serving(tmp_path, batching=BatchingSettings(max_batch_size=8)) as served:
        await served.embed(*texts[::3], truncation=Truncation.RIGHT)
        result = await served.embed(*texts, truncation=Truncation.RIGHT)
        assert_embeds(result, cut, Mode.DENSE)
        assert sum(map(len, served.computed)) == 300
        assert result.truncated_count == 300


async def test_token_ids_share_the_entry_of_their_text(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        await served.embed("w20 w21")
        result = await served.embed(token_ids=[ids_of("w20 w21")])
        assert_embeds(result, [ids_of("w20 w21")], Mode.DENSE)
        assert len(served.computed) == 1


async def test_a_text_cut_to_length_shares_the_entry_of_what_is_left(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        await served.embed("w20 w21")
        result = await served.embed("w20 w21 w22", max_tokens=4, truncation=Truncation.RIGHT)
        assert_embeds(result, [ids_of("w20 w21")], Mode.DENSE)
        assert result.truncated.tolist() == [True]
        assert len(served.computed) == 1


async def test_a_text_that_is_too_long_is_refused_although_what_is_left_is_known(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        await served.embed("w20 w21")
        with pytest.raises(InvalidRequest, match="has 5 tokens"):
            await served.embed("w20 w21 w22", max_tokens=4)


async def test_a_known_text_is_answered_while_the_engine_is_busy(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        await served.embed("w20")
        async with served.busy():
            assert_embeds(await served.embed("w20"), [ids_of("w20")], Mode.DENSE)


# --- different requests


async def test_modes_do_not_share_entries(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        for modes in EVERY_MODES:
            assert_embeds(await served.embed("w20", modes=modes), [ids_of("w20")], modes)
        assert len(served.computed) == len(EVERY_MODES)


async def test_float16_does_not_share_the_entry_of_float32(tmp_path: Path) -> None:
    async with cached_serving(tmp_path, HalvingScript()) as served:
        for encoding, dtype in ((VectorEncoding.FLOAT16, np.float16), (VectorEncoding.FLOAT32, np.float32)) * 2:
            result = await served.embed("w20", modes=Mode.HYBRID, encoding=encoding)
            assert_embeds(result, [ids_of("w20")], Mode.HYBRID, atol=HALF_ATOL if dtype == np.float16 else 0)
            assert result.dense is not None
            assert result.multi_vector is not None
            assert result.dense.dtype == result.multi_vector[0].dtype == dtype
        assert len(served.computed) == 2


async def test_a_request_for_float16_may_be_of_known_and_new_texts(tmp_path: Path) -> None:
    async with cached_serving(tmp_path, HalvingScript()) as served:
        await served.embed("w20", modes=Mode.HYBRID, encoding=VectorEncoding.FLOAT16)
        async with served.busy():
            # The blocker wants float32, and so does this one: the batch is of float32.
            plain = await served.queue("w21", modes=Mode.HYBRID)
            half = await served.queue("w22", modes=Mode.HYBRID, encoding=VectorEncoding.FLOAT16)
        assert_embeds(await plain, [ids_of("w21")], Mode.HYBRID)
        assert_embeds(await half, [ids_of("w22")], Mode.HYBRID)
        texts = ["w20", "w22", "w23"]
        result = await served.embed(*texts, modes=Mode.HYBRID, encoding=VectorEncoding.FLOAT16)
        assert_embeds(result, [ids_of(text) for text in texts], Mode.HYBRID, atol=HALF_ATOL)


@pytest.mark.parametrize("encoding", [VectorEncoding.INT8, VectorEncoding.BINARY, VectorEncoding.FLOAT_LIST])
async def test_encodings_made_of_float32_share_its_entry(tmp_path: Path, encoding: VectorEncoding) -> None:
    async with cached_serving(tmp_path) as served:
        await served.embed("w20")
        await served.embed("w20", encoding=encoding)
        assert len(served.computed) == 1


async def test_a_prefix_makes_another_text(tmp_path: Path) -> None:
    async with cached_serving(tmp_path, prefixes=("w30 ", "w31 ")) as served:
        for kind, prefix in ((InputType.NONE, ""), (InputType.QUERY, "w30 "), (InputType.PASSAGE, "w31 ")):
            result = await served.embed("w20", input_types=kind)
            assert_embeds(result, [ids_of(f"{prefix}w20")], Mode.DENSE)
        assert len(served.computed) == 3


async def test_another_version_in_the_same_store_computes_its_own(tmp_path: Path) -> None:
    store = LocalStore(MIB)
    for content_digest in ("content", "other", "content"):
        async with cached_serving(tmp_path, store=store, content_digest=content_digest) as served:
            await served.embed("w20")
            is_first = content_digest == "other" or store.usage().hits == 0
            assert len(served.computed) == is_first


async def test_the_same_version_loaded_again_finds_its_entries(tmp_path: Path) -> None:
    store = LocalStore(MIB)
    for is_again in (False, True):
        async with cached_serving(tmp_path, store=store) as served:
            assert_embeds(await served.embed("w20"), [ids_of("w20")], Mode.DENSE)
            assert bool(served.computed) != is_again


# --- texts that stand several times in a batch


@pytest.mark.parametrize("modes", EVERY_MODES)
async def test_a_text_that_stands_in_a_request_several_times_is_computed_once(tmp_path: Path, modes: Mode) -> None:
    texts = ["w20 w21", "w22", "w20 w21", "w20 w21", "w23 w23"]
    async with cached_serving(tmp_path) as served:
        assert_embeds(await served.embed(*texts, modes=modes), [ids_of(text) for text in texts], modes)
        assert served.computed == [[ids_of("w20 w21"), ids_of("w22"), ids_of("w23 w23")]]


async def test_a_text_in_several_requests_of_a_batch_is_computed_once_for_all_that_they_want(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        async with served.busy():
            sent = [await served.queue("w20", "w21", modes=modes) for modes in EVERY_MODES]
        for modes, request in zip(EVERY_MODES, sent, strict=True):
            assert_embeds(await request, [ids_of("w20"), ids_of("w21")], modes)
        assert served.computed[1:] == [[ids_of("w20"), ids_of("w21")]]
        assert served.script.modes[1] == Mode.HYBRID


def with_lexical(output: EngineOutput, batch: TokenBatch) -> EngineOutput:
    """As an engine that makes the sparse vectors on its device."""
    if output.token_weights is None:
        return output
    rows = lexical_weights(batch.token_ids, output.token_weights, batch.lengths)
    bounds = np.cumsum([0, *(len(row.ids) for row in rows)]).astype(np.int64)
    lexical = LexicalRows(
        np.concatenate([row.ids for row in rows]), np.concatenate([row.weights for row in rows]), bounds
    )
    return replace(output, token_weights=None, lexical=lexical, non_finite_rows=np.empty(0, np.int64))


async def test_repeats_of_sparse_vectors_made_on_a_device_are_right(tmp_path: Path) -> None:
    # `w21` weighs nothing: its sparse vector is empty.
    texts = ["w20 w22", "w21", "w23", "w20 w22", "w21", "w24 w20"]
    async with cached_serving(tmp_path, Script(alter=with_lexical)) as served:
        for _ in range(2):
            result = await served.embed(*texts, modes=Mode.HYBRID)
            assert_embeds(result, [ids_of(text) for text in texts], Mode.HYBRID)
        assert [len(batch) for batch in served.computed] == [4]


async def test_repeats_that_do_not_fit_into_memory_are_computed_in_halves(tmp_path: Path) -> None:
    script = Script()

    def too_large(batch: TokenBatch) -> None:
        if len(batch.lengths) > 1:
            raise MemoryError

    script.before_run = too_large
    texts = ["w20", "w21", "w20", "w22", "w20", "w21"]
    async with cached_serving(tmp_path, script) as served:
        result = await served.embed(*texts, modes=Mode.HYBRID)
        assert_embeds(result, [ids_of(text) for text in texts], Mode.HYBRID)


async def test_one_text_many_times_is_one_row_for_the_engine(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        result = await served.embed(*["w20"] * 50, modes=Mode.HYBRID)
        assert_embeds(result, [ids_of("w20")] * 50, Mode.HYBRID)
        assert served.computed == [[ids_of("w20")]]


# --- faults


@dataclass
class BadRows:
    """Turns the numbers of one text into NaN; `finds`: as an engine that has looked for them itself."""

    word: int
    finds: bool
    active: bool = True

    def __call__(self, output: EngineOutput, batch: TokenBatch) -> EngineOutput:
        ends = np.cumsum(batch.lengths).tolist()
        bad = [row for row, (start, end) in enumerate(pairwise([0, *ends])) if self.word in batch.token_ids[start:end]]
        if self.active and output.dense is not None:
            output.dense[bad] = np.nan
        found = np.array(bad if self.active else [], np.int64)
        return replace(output, non_finite_rows=found if self.finds else None)


@pytest.mark.parametrize("finds", [False, True])
async def test_numbers_that_are_not_finite_are_not_cached(tmp_path: Path, finds: bool) -> None:
    bad = BadRows(20, finds)
    async with cached_serving(tmp_path, Script(alter=bad)) as served:
        for _ in range(2):
            with pytest.raises(ComputeError, match="not finite"):
                await served.embed("w20")
        bad.active = False
        assert_embeds(await served.embed("w20"), [ids_of("w20")], Mode.DENSE)
        assert len(served.computed) == 3


@pytest.mark.parametrize("finds", [False, True])
async def test_a_repeated_text_that_is_not_finite_fails_every_request_with_it_and_no_other(
    tmp_path: Path, finds: bool
) -> None:
    async with cached_serving(tmp_path, Script(alter=BadRows(20, finds))) as served:
        async with served.busy():
            failing = [await served.queue("w21", "w20"), await served.queue("w20", "w20")]
            fine = await served.queue("w21", "w22", "w21")
        for index, request in enumerate(failing):
            with pytest.raises(ComputeError, match=rf"texts\[{1 - index}\]: .* not finite"):
                await request
        assert_embeds(await fine, [ids_of(text) for text in ("w21", "w22", "w21")], Mode.DENSE)
        await served.embed("w21", "w22")
        assert len(served.computed) == 2


async def test_a_batch_that_failed_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    script = Script()

    def fail(batch: TokenBatch) -> None:
        raise ValueError("out of order")

    async with cached_serving(tmp_path, script) as served:
        script.before_run = fail
        with pytest.raises(ComputeError):
            await served.embed("w20")
        assert served.store.usage().entries == 0
        script.before_run = lambda _: None
        assert_embeds(await served.embed("w20"), [ids_of("w20")], Mode.DENSE)


async def test_what_is_computed_for_a_request_that_has_gone_is_kept(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        served.script.gate.clear()
        gone = served.start("w20")
        await asyncio.to_thread(served.script.entered.acquire)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        served.script.gate.set()
        await until(lambda: served.store.usage().entries == 1)
        assert_embeds(await served.embed("w20"), [ids_of("w20")], Mode.DENSE)
        assert len(served.computed) == 1


async def test_a_request_that_has_gone_and_was_known_in_part_is_not_computed(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        await served.embed("w20")
        async with served.busy():
            gone = served.start("w20", "w21 w22")
            await until(lambda: served.pipeline.queued_tokens == 4)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            assert served.pipeline.pending_requests == 1
        await served.embed("w23")
        assert served.computed == [[ids_of("w20")], [ids_of("w999")], [ids_of("w23")]]


@dataclass
class FailingStore:
    """A store for which there is no memory."""

    fails_to_give: bool
    fails_to_keep: bool
    inner: LocalStore = field(default_factory=lambda: LocalStore(MIB))

    def get_many(self, keys: Sequence[bytes], multi_vector_dimension: int) -> list[CachedRow | None]:
        if self.fails_to_give:
            raise MemoryError
        return self.inner.get_many(keys, multi_vector_dimension)

    def put_many(self, rows: Sequence[tuple[bytes, CachedRow]]) -> None:
        if self.fails_to_keep:
            raise MemoryError
        self.inner.put_many(rows)

    def usage(self) -> CacheUsage:
        return self.inner.usage()

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize(("fails_to_give", "fails_to_keep"), [(True, False), (False, True)])
async def test_a_store_that_fails_only_costs_time(tmp_path: Path, fails_to_give: bool, fails_to_keep: bool) -> None:
    async with cached_serving(tmp_path, store=FailingStore(fails_to_give, fails_to_keep)) as served:
        for _ in range(2):
            assert_embeds(await served.embed("w20", "w20"), [ids_of("w20")] * 2, Mode.DENSE)
        assert len(served.computed) == 2


async def test_rows_that_do_not_go_together_fail_their_request_only(tmp_path: Path) -> None:
    class WrongStore(FailingStore):
        """Gives rows of another size for every second text, as nothing but a fault in a store could."""

        def get_many(self, keys: Sequence[bytes], multi_vector_dimension: int) -> list[CachedRow | None]:
            return [CachedRow(np.ones(1 + index % 2, np.float32), None, None) for index in range(len(keys))]

    async with cached_serving(tmp_path, store=WrongStore(False, False)) as served:
        with pytest.raises(ComputeError, match="the response cache failed on this request"):
            await served.embed("w20", "w21")
        assert (await served.embed("w20")).dense is not None


# --- memory


async def test_what_is_kept_does_not_keep_its_batch_in_memory(tmp_path: Path) -> None:
    kept: list[CachedRow] = []

    class WatchedStore(FailingStore):
        """Shows what is put into it."""

        def put_many(self, rows: Sequence[tuple[bytes, CachedRow]]) -> None:
            kept.extend(row for _, row in rows)
            super().put_many(rows)

    async with cached_serving(tmp_path, store=WatchedStore(False, False)) as served:
        await served.embed("w20", "w21", "w20", modes=Mode.HYBRID)
    assert len(kept) == 2
    for row in kept:
        for array in arrays_of(row):
            assert array.base is None


async def test_who_writes_into_a_result_does_not_change_the_cache(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        for _ in range(3):
            result = await served.embed("w20", modes=Mode.HYBRID)
            assert_embeds(result, [ids_of("w20")], Mode.HYBRID)
            assert result.dense is not None
            assert result.sparse is not None
            assert result.multi_vector is not None
            for array in (result.dense, result.sparse[0].weights, result.multi_vector[0]):
                if array.flags.writeable:
                    array[...] = 0


# --- statistics


def summary(statistics: StatisticsSnapshot) -> dict[str, int]:
    """The counts that a cache has an effect on."""
    compute = statistics.compute
    assert compute.compute_input.count == compute.compute_infer.count == compute.compute_output.count
    return {
        "hits": statistics.cache_hit.count,
        "misses": statistics.cache_miss.count,
        "success": statistics.success.count,
        "queue": statistics.queue.count,
        "inferences": statistics.inference_count,
        "executions": statistics.execution_count,
        "computed": compute.compute_infer.count,
    }


async def test_hits_and_misses_are_counted_by_texts_and_hits_are_no_inferences(tmp_path: Path) -> None:
    async with cached_serving(tmp_path) as served:
        await served.embed("w20", "w21")
        all_new = {"hits": 0, "misses": 2, "success": 1, "queue": 1, "inferences": 2, "executions": 1, "computed": 1}
        assert summary(served.statistics) == all_new
        await served.embed("w20", "w21")
        assert summary(served.statistics) == all_new | {"hits": 2, "success": 2, "queue": 2}
        await served.embed("w20", "w22")
        assert summary(served.statistics) == {
            "hits": 3, "misses": 3, "success": 3, "queue": 3, "inferences": 3, "executions": 2, "computed": 2,
        }  # fmt: skip
        assert served.statistics.cache_hit.ns > 0
        assert served.statistics.cache_miss.ns > 0


async def test_without_a_cache_nothing_is_looked_up(tmp_path: Path) -> None:
    async with cached_serving(tmp_path, is_cached=False) as served:
        await served.embed("w20")
        assert (summary(served.statistics)["hits"], summary(served.statistics)["misses"]) == (0, 0)


# --- whatever is asked

REQUESTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([f"w{number}" for number in range(20, 28)] + ["w20 w21", "w22 w22"]), min_size=1),
        st.sampled_from(EVERY_MODES),
        st.sampled_from([VectorEncoding.FLOAT32, VectorEncoding.FLOAT16]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(requests=REQUESTS, size_bytes=st.sampled_from([0, 2_000, 1_000_000]))
def test_answers_are_those_without_a_cache(
    requests: list[tuple[list[str], Mode, VectorEncoding]], size_bytes: int
) -> None:
    async def ask_all() -> list[EmbedResult]:
        with tempfile.TemporaryDirectory() as folder:
            async with cached_serving(Path(folder), HalvingScript(), store=LocalStore(size_bytes)) as served:
                return await asyncio.gather(*[start(served, request) for request in requests for _ in range(2)])

    def start(served: CachedServing, request: tuple[list[str], Mode, VectorEncoding]) -> "asyncio.Task[EmbedResult]":
        texts, modes, encoding = request
        return served.start(*texts, modes=modes, encoding=encoding)

    results = iter(asyncio.run(ask_all()))
    for texts, modes, encoding in requests:
        for _ in range(2):
            atol = HALF_ATOL if encoding is VectorEncoding.FLOAT16 else 0
            assert_embeds(next(results), [ids_of(text) for text in texts], modes, atol=atol)
