"""Both clients against the whole server, whose engine's arrays can be computed by hand."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from trivec_client import InvalidRequestError, NotFoundError, ServingStatus
from trivec_server.settings import Limits

from tests.rpc.client_calls import KINDS, AnyClient, Kind, connect
from tests.rpc.running_server import RunningServer, running_server
from tests.scripted_engine import DIMENSION, Script, expected_dense, expected_multi_vector
from tests.small_repository import MAX_TOKENS, ids_of, make_repository

TEXTS = ["w10 w11 w12", "", "w999", " ".join(f"w{number}" for number in range(20, 70)), "w10 w10 w10"]
ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True, "max_length": MAX_TOKENS}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(make_repository(tmp_path), Script()) as running:
        yield running


@pytest.fixture
async def client(kind: Kind, server: RunningServer) -> AsyncIterator[AnyClient]:
    async with connect(kind, server.target) as connected:
        yield connected


async def test_encode_gives_the_engines_arrays(client: AnyClient) -> None:
    output = await client.call("encode", TEXTS, **ALL)
    for index, text in enumerate(TEXTS):
        ids = ids_of(text)
        np.testing.assert_allclose(output["dense_vecs"][index], expected_dense(ids), atol=1e-6)
        np.testing.assert_allclose(output["colbert_vecs"][index], expected_multi_vector(ids), atol=1e-6)
        weights = {str(token): np.float32((token % 50 + 1) / 100) for token in ids if token > 3 and token % 7}
        assert output["lexical_weights"][index] == weights


@pytest.mark.parametrize(("encoding", "tolerance"), [("float16", 1e-3), ("bfloat16", 4e-3), ("int8", 4e-3)])
async def test_the_servers_packing_and_the_clients_unpacking_agree(
    kind: Kind, server: RunningServer, encoding: str, tolerance: float
) -> None:
    async with connect(kind, server.target, wire_encoding=encoding) as client:
        output = await client.call("encode", TEXTS, **ALL)
    for index, text in enumerate(TEXTS):
        np.testing.assert_allclose(output["dense_vecs"][index], expected_dense(ids_of(text)), atol=tolerance)
        rows = expected_multi_vector(ids_of(text))
        np.testing.assert_allclose(output["colbert_vecs"][index], rows, atol=tolerance)


async def test_binary_keeps_the_signs(kind: Kind, server: RunningServer) -> None:
    async with connect(kind, server.target, wire_encoding="binary") as client:
        output = await client.call("encode", TEXTS, **ALL)
    for index, text in enumerate(TEXTS):
        signs = np.where(expected_dense(ids_of(text)) > 0, 1, -1)
        np.testing.assert_array_equal(output["dense_vecs"][index], signs)


async def test_many_texts_come_back_in_order_whatever_the_batches(client: AnyClient) -> None:
    texts = [" ".join(f"w{10 + (i * k) % 900}" for k in range(1, 1 + i % 20)) for i in range(1000)]
    output = await client.call("encode", texts, batch_size=37, max_length=MAX_TOKENS)
    expected = [expected_dense(ids_of(text)) for text in texts]
    assert output["dense_vecs"].shape == (1000, DIMENSION)
    np.testing.assert_allclose(output["dense_vecs"], expected, atol=1e-5)


async def test_a_full_queue_is_waited_for(kind: Kind, tmp_path: Path) -> None:
    limits = Limits(max_queued_texts=2)
    async with (
        running_server(make_repository(tmp_path), Script(), limits=limits) as server,
        connect(kind, server.target, batch_size=1, max_in_flight=8) as client,
    ):
        output = await client.call("encode", [f"w{number}" for number in range(10, 60)], max_length=MAX_TOKENS)
    expected = [expected_dense(ids_of(f"w{number}")) for number in range(10, 60)]
    np.testing.assert_allclose(output["dense_vecs"], expected, atol=1e-6)


async def test_a_text_that_is_too_long_is_named_by_the_callers_index(client: AnyClient) -> None:
    texts = ["w10"] * 99 + ["w10 " * MAX_TOKENS]
    with pytest.raises(InvalidRequestError, match=r"texts\[99\]") as caught:
        await client.call("encode", texts, max_length=MAX_TOKENS, truncation="error")
    assert caught.value.violations[0].field == "texts[99]"
    assert caught.value.request_id != ""


async def test_an_unknown_model_is_named(kind: Kind, server: RunningServer) -> None:
    async with connect(kind, server.target, model="other") as client:
        with pytest.raises(NotFoundError, match="other"):
            await client.call("encode", "w10")


async def test_scores_here_and_on_the_server_agree(client: AnyClient) -> None:
    pairs = [("w10 w11", "w11 w12 w13"), ("w20", "w20"), ("w10 w11", "w30 w10")]
    lengths = {"max_query_length": MAX_TOKENS, "max_passage_length": MAX_TOKENS}
    by_server = await client.call("compute_score", pairs, **lengths)
    here = await client.call("compute_score", pairs, **{**lengths, "max_passage_length": MAX_TOKENS - 1})
    for name, scores in by_server.items():
        assert here[name] == pytest.approx(scores, abs=1e-6)
    weighted = {**lengths, "weights_for_different_modes": [0.4, 0.2, 0.4]}
    scores = await client.call("compute_score", pairs[1], **weighted)
    mixed = (0.4 * scores["dense"] + 0.2 * scores["sparse"] + 0.4 * scores["colbert"]) / 1
    assert scores["colbert+sparse+dense"] == pytest.approx(mixed, abs=1e-6)


async def test_tokens_are_those_that_are_embedded(client: AnyClient) -> None:
    (text,) = await client.call("tokenize", ["w10 w11"])
    assert text.ids.tolist() == ids_of("w10 w11")


async def test_health_knows_the_model_by_name(client: AnyClient) -> None:
    assert await client.call("health") is ServingStatus.SERVING
    assert await client.call("health", "small") is ServingStatus.SERVING


async def test_priority_and_sparse_limits_are_taken(client: AnyClient) -> None:
    (result,) = await client.call(
        "encode_stream", ["w10 w11 w12"], return_sparse=True, sparse_top_k=1, return_tokens=True, max_length=MAX_TOKENS
    )
    assert result.sparse.tokens == ("w12",)
