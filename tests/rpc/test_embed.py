"""Embed, end to end over gRPC, with an engine whose numbers are known."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec_server.types import Mode

from tests.rpc.running_server import RunningServer, busy_engine, embed, running_server, until
from tests.rpc.scripted_answers import check_embedding, parts_of
from tests.scripted_engine import Script, expected_dense, expected_multi_vector
from tests.small_repository import MAX_TOKENS, ids_of, make_repository
from tests.vector_decoding import ENCODINGS, dense_numbers, row_numbers

HYBRID = [pb.MODE_HYBRID]
PREFIXES = """
parameters { key: "query_prefix" value { string_value: "w20 w21 " } }
parameters { key: "passage_prefix" value { string_value: "w30 " } }
"""


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(tmp_path: Path, script: Script) -> AsyncIterator[RunningServer]:
    async with running_server(make_repository(tmp_path), script) as server:
        yield server


def random_texts(count: int, *, longest: int = 40) -> list[str]:
    random = np.random.default_rng(count)
    return [
        " ".join(f"w{word}" for word in random.integers(10, 999, random.integers(0, longest))) for _ in range(count)
    ]


async def test_hybrid_gives_all_three_parts_of_every_text(server: RunningServer) -> None:
    response = await embed(server, pb.EmbedRequest(texts=["w10 w11 w10", ""], modes=HYBRID))
    check_embedding(response.embeddings[0], [0, 10, 11, 10, 2])
    check_embedding(response.embeddings[1], [0, 2])
    assert [parts_of(each) for each in response.embeddings] == [{"dense", "sparse", "multi_vector"}] * 2
    assert (response.model, response.version) == ("small", 1)
    assert (response.usage.total_tokens, response.usage.truncated_texts) == (7, 0)


@pytest.mark.parametrize(
    ("modes", "parts", "computed"),
    [
        ([], {"dense"}, Mode.DENSE),
        ([pb.MODE_UNSPECIFIED], {"dense"}, Mode.DENSE),
        ([pb.MODE_DENSE], {"dense"}, Mode.DENSE),
        ([pb.MODE_SPARSE], {"sparse"}, Mode.SPARSE),
        ([pb.MODE_MULTI_VECTOR], {"multi_vector"}, Mode.MULTI_VECTOR),
        ([pb.MODE_DENSE, pb.MODE_SPARSE], {"dense", "sparse"}, Mode.DENSE | Mode.SPARSE),
        ([pb.MODE_SPARSE, pb.MODE_SPARSE], {"sparse"}, Mode.SPARSE),
        ([pb.MODE_HYBRID, pb.MODE_DENSE], {"dense", "sparse", "multi_vector"}, Mode.HYBRID),
    ],
)
async def test_only_what_is_asked_for_is_computed_and_sent(
    server: RunningServer,
    script: Script,
    modes: Sequence[pb.Mode.ValueType],
    parts: set[str],
    computed: Mode,
) -> None:
    response = await embed(server, pb.EmbedRequest(texts=["w10"], modes=modes))
    assert parts_of(response.embeddings[0]) == parts
    assert script.modes == [computed]


async def test_requests_of_different_modes_in_one_batch_each_get_their_own(
    server: RunningServer, script: Script
) -> None:
    asked = [[pb.MODE_DENSE], [pb.MODE_SPARSE], [pb.MODE_MULTI_VECTOR]]
    async with busy_engine(server, script) as wait_for_tokens:
        calls = [asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=["w10"], modes=modes))) for modes in asked]
        await wait_for_tokens(9)
    responses = await asyncio.gather(*calls)
    assert [parts_of(each.embeddings[0]) for each in responses] == [{"dense"}, {"sparse"}, {"multi_vector"}]
    assert script.modes[1:] == [Mode.HYBRID]
    for response in responses:
        check_embedding(response.embeddings[0], [0, 10, 2])


@pytest.mark.parametrize("encoding", [each for each in ENCODINGS if each != pb.VECTOR_ENCODING_INT8])
async def test_every_encoding_reads_back_as_the_numbers_sent(
    server: RunningServer, encoding: pb.VectorEncoding.ValueType
) -> None:
    request = pb.EmbedRequest(texts=["w10 w11", "w12"], modes=HYBRID, encoding=encoding)
    response = await embed(server, request)
    check_embedding(response.embeddings[0], ids_of("w10 w11"), encoding=encoding)
    check_embedding(response.embeddings[1], ids_of("w12"), encoding=encoding)


async def test_int8_reads_back_within_half_a_step(server: RunningServer) -> None:
    request = pb.EmbedRequest(texts=["w10 w11"], modes=HYBRID, encoding=pb.VECTOR_ENCODING_INT8)
    (embedding,) = (await embed(server, request)).embeddings
    ids = ids_of("w10 w11")
    assert np.abs(dense_numbers(embedding.dense) - expected_dense(ids)).max() <= embedding.dense.scale * 0.501
    error = np.abs(row_numbers(embedding.multi_vector) - expected_multi_vector(ids)).max(axis=1)
    assert (error <= np.array(embedding.multi_vector.scales) * 0.501).all()


async def test_an_empty_text_has_a_dense_vector_an_empty_sparse_one_and_one_row(server: RunningServer) -> None:
    (embedding,) = (await embed(server, pb.EmbedRequest(texts=[""], modes=HYBRID))).embeddings
    assert embedding.token_count == 2
    assert embedding.HasField("sparse")
    assert list(embedding.sparse.ids) == []
    assert embedding.multi_vector.rows == 1
    assert len(embedding.dense.values) == 8


async def test_a_literal_special_token_in_a_text_is_that_token(server: RunningServer) -> None:
    (embedding,) = (await embed(server, pb.EmbedRequest(texts=["w10 </s> <s> w11"], modes=HYBRID))).embeddings
    check_embedding(embedding, [0, 10, 2, 0, 11, 2])


LONG = " ".join(f"w{number}" for number in range(10, 110))


@pytest.mark.parametrize(
    ("truncation", "max_tokens", "ids"),
    [
        (pb.TRUNCATION_RIGHT, 0, [0, *range(10, 10 + MAX_TOKENS - 2), 2]),
        (pb.TRUNCATION_LEFT, 0, [0, *range(110 - MAX_TOKENS + 2, 110), 2]),
        (pb.TRUNCATION_RIGHT, 4, [0, 10, 11, 2]),
        (pb.TRUNCATION_LEFT, 4, [0, 108, 109, 2]),
        (pb.TRUNCATION_RIGHT, 2, [0, 2]),
        (pb.TRUNCATION_LEFT, 2, [0, 2]),
    ],
)
async def test_truncation_counts_both_specials_and_keeps_one_end(
    server: RunningServer, truncation: pb.Truncation.ValueType, max_tokens: int, ids: list[int]
) -> None:
    request = pb.EmbedRequest(texts=[LONG, "w10"], modes=HYBRID, truncation=truncation, max_tokens=max_tokens)
    response = await embed(server, request)
    check_embedding(response.embeddings[0], ids)
    assert response.embeddings[0].truncated
    assert response.embeddings[1].truncated == (max_tokens == 2)
    assert response.usage.truncated_texts == (2 if max_tokens == 2 else 1)
    assert response.usage.total_tokens == sum(each.token_count for each in response.embeddings)


async def test_a_text_of_exactly_max_tokens_is_not_truncated(server: RunningServer) -> None:
    request = pb.EmbedRequest(texts=["w10 w11"], truncation=pb.TRUNCATION_ERROR, max_tokens=4)
    assert not (await embed(server, request)).embeddings[0].truncated


async def test_ids_give_what_their_text_gives(server: RunningServer) -> None:
    texts = ["w10 w11", "", "w12"]
    ids = [pb.TokenIds(ids=ids_of(text)) for text in texts]
    given = await embed(server, pb.EmbedRequest(token_ids=ids, modes=HYBRID))
    tokenized = await embed(server, pb.EmbedRequest(texts=texts, modes=HYBRID))
    assert given.embeddings == tokenized.embeddings


async def test_overlong_ids_follow_truncation(server: RunningServer) -> None:
    ids = pb.TokenIds(ids=[0, 10, 11, 12, 2])
    for truncation, kept in ((pb.TRUNCATION_RIGHT, [0, 10, 2]), (pb.TRUNCATION_LEFT, [0, 12, 2])):
        request = pb.EmbedRequest(token_ids=[ids], truncation=truncation, max_tokens=3)
        check_embedding((await embed(server, request)).embeddings[0], kept)


@pytest.mark.parametrize(
    ("input_type", "prefix"),
    [
        (pb.INPUT_TYPE_UNSPECIFIED, []),
        (pb.INPUT_TYPE_NONE, []),
        (pb.INPUT_TYPE_QUERY, [20, 21]),
        (pb.INPUT_TYPE_PASSAGE, [30]),
    ],
)
async def test_the_input_type_puts_the_models_prefix_before_each_text(
    tmp_path: Path, input_type: pb.InputType.ValueType, prefix: list[int]
) -> None:
    async with running_server(make_repository(tmp_path, config=PREFIXES), Script()) as server:
        response = await embed(server, pb.EmbedRequest(texts=["w10", ""], modes=HYBRID, input_type=input_type))
    check_embedding(response.embeddings[0], [0, *prefix, 10, 2])
    check_embedding(response.embeddings[1], [0, *prefix, 2])


async def test_the_prefix_counts_against_max_tokens(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path, config=PREFIXES), Script()) as server:
        request = pb.EmbedRequest(
            texts=["w10 w11"], input_type=pb.INPUT_TYPE_QUERY, truncation=pb.TRUNCATION_RIGHT, max_tokens=5
        )
        check_embedding((await embed(server, request)).embeddings[0], [0, 20, 21, 10, 2])


async def test_a_request_larger_than_a_batch_is_split_and_put_together_in_order(
    server: RunningServer, script: Script
) -> None:
    texts = random_texts(100)
    response = await embed(server, pb.EmbedRequest(texts=texts, modes=HYBRID))
    assert [each.index for each in response.embeddings] == list(range(100))
    for text, embedding in zip(texts, response.embeddings, strict=True):
        check_embedding(embedding, ids_of(text))
    assert len(script.batches) > 1
    assert max(len(batch.lengths) for batch in script.batches) <= 16
    assert sum(len(batch.lengths) for batch in script.batches) == 100


@pytest.mark.parametrize("mode", [pb.MODE_DENSE, pb.MODE_SPARSE, pb.MODE_MULTI_VECTOR])
async def test_each_part_alone_is_put_together_in_order_too(server: RunningServer, mode: pb.Mode.ValueType) -> None:
    texts = random_texts(50)
    response = await embed(server, pb.EmbedRequest(texts=texts, modes=[mode]))
    for text, embedding in zip(texts, response.embeddings, strict=True):
        check_embedding(embedding, ids_of(text))


@pytest.mark.parametrize("pads", [True, False])
async def test_batches_stay_within_the_engines_token_budget(tmp_path: Path, pads: bool) -> None:
    script = Script(pads=pads, token_budget=256)
    async with running_server(make_repository(tmp_path), script) as server:
        texts = random_texts(60)
        response = await embed(server, pb.EmbedRequest(texts=texts))
    for text, embedding in zip(texts, response.embeddings, strict=True):
        check_embedding(embedding, ids_of(text))
    for batch in script.batches:
        cost = len(batch.lengths) * batch.lengths.max() if pads else batch.lengths.sum()
        assert cost <= 256 or len(batch.lengths) == 1


async def test_a_text_of_more_characters_than_a_tokenizing_round_is_embedded(server: RunningServer) -> None:
    huge = " " * 600_000 + "w10"
    texts = [huge, "w11", huge, "w12"]
    response = await embed(server, pb.EmbedRequest(texts=texts, modes=HYBRID))
    for text, embedding in zip(texts, response.embeddings, strict=True):
        check_embedding(embedding, ids_of(text))


async def test_a_fault_in_the_last_text_of_a_large_request_fails_the_request(server: RunningServer) -> None:
    script_texts = ["w10 " + " " * 100_000] * 8 + [LONG]
    (outcome,) = await asyncio.gather(embed(server, pb.EmbedRequest(texts=script_texts)), return_exceptions=True)
    assert "texts[8]" in str(outcome)
    assert server.pipeline().pending_requests == 0


async def test_two_engine_instances_share_a_request(tmp_path: Path) -> None:
    script = Script()
    config = "instance_group { count: 2 kind: KIND_CPU }\n"
    async with running_server(make_repository(tmp_path, config=config), script) as server:
        texts = random_texts(64)
        script.gate.clear()
        call = asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=texts, modes=HYBRID)))
        for _ in range(2):
            # Both instances hold a batch at the same time.
            await asyncio.to_thread(script.entered.acquire)
        script.gate.set()
        response = await call
    for text, embedding in zip(texts, response.embeddings, strict=True):
        check_embedding(embedding, ids_of(text))
    assert script.closed == 2


async def test_requests_wait_for_company_until_a_preferred_size_is_reached(tmp_path: Path) -> None:
    """An hour would pass otherwise: the delay does not end before the test does."""
    config = "dynamic_batching { max_queue_delay_microseconds: 3600000000 preferred_batch_size: [4] }\n"
    script = Script()
    async with running_server(make_repository(tmp_path, config=config), script) as server:
        texts = [f"w{20 + number}" for number in range(4)]
        pipeline = server.pipeline()
        waiting = [asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=[text]))) for text in texts[:3]]
        await until(lambda: pipeline.queued_tokens == 9)
        assert not script.batches
        last = asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=texts[3:])))
        for text, response in zip(texts, await asyncio.gather(*waiting, last), strict=True):
            check_embedding(response.embeddings[0], ids_of(text))
    assert [len(batch.lengths) for batch in script.batches] == [4]


async def test_a_request_without_company_is_served_when_the_delay_has_passed(tmp_path: Path) -> None:
    config = "dynamic_batching { max_queue_delay_microseconds: 20000 }\n"
    async with running_server(make_repository(tmp_path, config=config), Script()) as server:
        check_embedding((await embed(server, pb.EmbedRequest(texts=["w10"]))).embeddings[0], ids_of("w10"))


async def test_what_waits_for_company_is_served_when_the_server_stops(tmp_path: Path) -> None:
    config = "dynamic_batching { max_queue_delay_microseconds: 3600000000 }\n"
    async with running_server(make_repository(tmp_path, config=config), Script()) as server:
        pipeline = server.pipeline()
        call = asyncio.ensure_future(embed(server, pb.EmbedRequest(texts=["w10"])))
        await until(lambda: pipeline.queued_tokens == 3)
        await server.control.close()
        check_embedding((await call).embeddings[0], ids_of("w10"))


async def test_many_requests_at_once_each_get_their_own_answer(server: RunningServer) -> None:
    texts = random_texts(64)
    responses = await asyncio.gather(*(embed(server, pb.EmbedRequest(texts=[text], modes=HYBRID)) for text in texts))
    for text, response in zip(texts, responses, strict=True):
        check_embedding(response.embeddings[0], ids_of(text))
    assert len({response.request_id for response in responses}) == 64


async def test_sparse_vectors_are_pruned_as_asked_and_carry_their_tokens(server: RunningServer) -> None:
    request = pb.EmbedRequest(
        texts=["w10 w11 w12 w13 w40"],
        modes=[pb.MODE_SPARSE],
        sparse_top_k=3,
        sparse_min_weight=0.125,
        return_tokens=True,
    )
    (embedding,) = (await embed(server, request)).embeddings
    assert list(embedding.sparse.ids) == [12, 13, 40]
    assert list(embedding.sparse.tokens) == ["w12", "w13", "w40"]


async def test_models_and_versions_serve_side_by_side(tmp_path: Path) -> None:
    config = "version_policy { all {} }\n"
    async with running_server(
        make_repository(tmp_path, "one", "two", versions=(1, 3), config=config), Script()
    ) as server:
        for name, version, served in (("one", 1, 1), ("one", 0, 3), ("two", 3, 3)):
            response = await embed(server, pb.EmbedRequest(model=name, version=version, texts=["w10"]))
            assert (response.model, response.version) == (name, served)


async def test_only_the_latest_version_is_loaded_by_default(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path, versions=(1, 2, 10)), Script()) as server:
        response = await embed(server, pb.EmbedRequest(texts=["w10"]))
    assert response.version == 10


async def test_timings_are_reported(server: RunningServer, script: Script) -> None:
    response = await embed(server, pb.EmbedRequest(texts=["w10"]))
    assert response.HasField("timings")
    assert response.timings.compute_us > 0
