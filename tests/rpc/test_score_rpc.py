"""Score over gRPC: the reference's formulas, of every passage alone against the query."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec_server.settings import Limits
from trivec_server.types import Mode

from tests.rpc.running_server import RunningServer, running_server
from tests.rpc.scripted_answers import expected_sparse
from tests.scripted_engine import Script, expected_dense, expected_multi_vector
from tests.small_repository import MAX_TOKENS, ids_of, make_repository

QUERY = "w10 w11 w12"
PASSAGES = ["w10 w11", "w11 w12 w13 w14", "", "w90 w91", QUERY]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(tmp_path: Path, script: Script) -> AsyncIterator[RunningServer]:
    async with running_server(make_repository(tmp_path), script) as server:
        yield server


def scores_of(query: list[int], passage: list[int]) -> tuple[float, float, float]:
    """Dense, sparse and multi-vector score, in plain words."""
    dense = float(expected_dense(query) @ expected_dense(passage))
    one, other = expected_sparse(query), expected_sparse(passage)
    sparse = sum(one[token] * other[token] for token in one.keys() & other.keys())
    rows = expected_multi_vector(passage)
    best = [max(float(row @ other) for other in rows) for row in expected_multi_vector(query)]
    return dense, sparse, sum(best) / len(best)


def check_score(score: pb.PassageScore, query: list[int], passage: list[int], weights: tuple[float, ...]) -> None:
    dense, sparse, multi_vector = scores_of(query, passage)
    assert score.dense == pytest.approx(dense, abs=1e-5)
    assert score.sparse == pytest.approx(sparse, abs=1e-5)
    assert score.multi_vector == pytest.approx(multi_vector, abs=1e-5)
    both = dense * weights[0] + sparse * weights[1]
    two = weights[0] + weights[1]
    assert score.sparse_dense == pytest.approx(both / two if two else 0.0, abs=1e-5)
    assert score.hybrid == pytest.approx((both + multi_vector * weights[2]) / sum(weights), abs=1e-5)
    assert score.token_count == len(passage)


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.5, 0.25, 0.5), (0, 0, 2), (1, 0, 0), (0, 3, 0)])
async def test_every_passage_has_all_five_scores(server: RunningServer, weights: tuple[float, ...]) -> None:
    given = pb.ScoreWeights(dense=weights[0], sparse=weights[1], multi_vector=weights[2])
    response = await server.stub.Score(pb.ScoreRequest(query=QUERY, passages=PASSAGES, weights=given))
    assert [score.index for score in response.scores] == list(range(len(PASSAGES)))
    for score, passage in zip(response.scores, PASSAGES, strict=True):
        check_score(score, ids_of(QUERY), ids_of(passage), weights)
    assert response.weights == given
    assert (response.model, response.version) == ("small", 1)
    assert response.usage.total_tokens == sum(len(ids_of(text)) for text in (QUERY, *PASSAGES))


async def test_the_models_weights_are_the_default(tmp_path: Path) -> None:
    config = 'parameters { key: "score_weights" value { string_value: "0.5, 0.25, 0.125" } }\n'
    async with running_server(make_repository(tmp_path, config=config), Script()) as server:
        response = await server.stub.Score(pb.ScoreRequest(query=QUERY, passages=["w10"]))
    assert response.weights == pb.ScoreWeights(dense=0.5, sparse=0.25, multi_vector=0.125)
    check_score(response.scores[0], ids_of(QUERY), ids_of("w10"), (0.5, 0.25, 0.125))


async def test_top_k_gives_the_best_first_and_of_equal_ones_the_lower_index(server: RunningServer) -> None:
    passages = ["w90", QUERY, "w91", QUERY]
    whole = await server.stub.Score(pb.ScoreRequest(query=QUERY, passages=passages))
    best = await server.stub.Score(pb.ScoreRequest(query=QUERY, passages=passages, top_k=3))
    ordered = sorted(whole.scores, key=lambda score: (-score.hybrid, score.index))
    assert list(best.scores) == ordered[:3]
    assert [score.index for score in best.scores[:2]] == [1, 3]


async def test_top_k_may_be_larger_than_the_number_of_passages(server: RunningServer) -> None:
    response = await server.stub.Score(pb.ScoreRequest(query=QUERY, passages=["w10"], top_k=9))
    assert len(response.scores) == 1


async def test_query_and_passages_get_their_own_prefix(tmp_path: Path) -> None:
    config = """
    parameters { key: "query_prefix" value { string_value: "w20 " } }
    parameters { key: "passage_prefix" value { string_value: "w30 w31 " } }
    """
    async with running_server(make_repository(tmp_path, config=config), Script()) as server:
        response = await server.stub.Score(pb.ScoreRequest(query="w10", passages=["w11"]))
    check_score(response.scores[0], ids_of("w20 w10"), ids_of("w30 w31 w11"), (1, 1, 1))


async def test_truncation_is_told_of_query_and_passage_apart(server: RunningServer) -> None:
    long = " ".join(f"w{number}" for number in range(10, 110))
    request = pb.ScoreRequest(query="w10", passages=[long, "w11"], truncation=pb.TRUNCATION_RIGHT)
    response = await server.stub.Score(request)
    assert not response.query_truncated
    assert [score.truncated for score in response.scores] == [True, False]
    check_score(response.scores[0], ids_of("w10"), [0, *range(10, 10 + MAX_TOKENS - 2), 2], (1, 1, 1))
    request = pb.ScoreRequest(query=long, passages=["w11"], truncation=pb.TRUNCATION_LEFT, max_tokens=4)
    response = await server.stub.Score(request)
    assert response.query_truncated
    assert response.usage.truncated_texts == 1
    check_score(response.scores[0], [0, 108, 109, 2], ids_of("w11"), (1, 1, 1))


async def test_an_empty_query_is_legal(server: RunningServer) -> None:
    response = await server.stub.Score(pb.ScoreRequest(query="", passages=["w10", ""]))
    check_score(response.scores[0], [0, 2], ids_of("w10"), (1, 1, 1))
    assert response.scores[1].dense == pytest.approx(1.0)


async def test_each_text_is_computed_once(server: RunningServer, script: Script) -> None:
    """Passages are compared with the query, never with each other: the cost is that of embedding the texts."""
    await server.stub.Score(pb.ScoreRequest(query=QUERY, passages=PASSAGES))
    assert sum(len(batch.lengths) for batch in script.batches) == 1 + len(PASSAGES)
    assert set(script.modes) == {Mode.HYBRID}


async def test_the_score_of_a_passage_does_not_depend_on_the_others(server: RunningServer) -> None:
    alone = await server.stub.Score(pb.ScoreRequest(query=QUERY, passages=["w13 w14"]))
    among = await server.stub.Score(pb.ScoreRequest(query=QUERY, passages=["w13 w14", *PASSAGES, "w10 " * 60]))
    assert among.scores[0] == alone.scores[0]


async def test_more_passages_than_are_held_at_a_time_are_scored_in_portions(tmp_path: Path) -> None:
    """Embeddings are held for some 32 MiB of passages at a time; their size is told by their characters."""
    passages = [f"w{10 + number % 900}" + " " * 60 for number in range(15_000)]
    limits = Limits(max_texts_per_request=20_000)
    repository = make_repository(tmp_path, config="max_batch_size: 1024\n")
    async with running_server(repository, Script(token_budget=10**6), limits=limits) as server:
        response = await server.stub.Score(pb.ScoreRequest(query=QUERY, passages=passages))
    assert [score.index for score in response.scores] == list(range(15_000))
    for index in range(0, 15_000, 997):
        check_score(response.scores[index], ids_of(QUERY), ids_of(passages[index]), (1, 1, 1))
    assert response.usage.total_tokens == 5 + 3 * 15_000


async def test_the_request_id_is_echoed(server: RunningServer) -> None:
    response = await server.stub.Score(pb.ScoreRequest(query="w10", passages=["w11"], request_id="mine"))
    assert response.request_id == "mine"


async def test_large_weights_do_not_overflow(server: RunningServer) -> None:
    largest = float(np.finfo(np.float32).max)
    weights = pb.ScoreWeights(dense=largest, sparse=largest, multi_vector=largest)
    response = await server.stub.Score(pb.ScoreRequest(query=QUERY, passages=["w10"], weights=weights))
    check_score(response.scores[0], ids_of(QUERY), ids_of("w10"), (1, 1, 1))
