"""Tokenize over gRPC: exactly what Embed would embed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from trivec.v1 import embedding_pb2 as pb

from tests.rpc.running_server import RunningServer, embed, running_server
from tests.scripted_engine import Script
from tests.small_repository import MAX_TOKENS, ids_of, make_repository

PREFIX = 'parameters { key: "query_prefix" value { string_value: "w20 " } }\n'


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(tmp_path: Path, script: Script) -> AsyncIterator[RunningServer]:
    async with running_server(make_repository(tmp_path, config=PREFIX), script) as server:
        yield server


async def test_ids_strings_offsets_and_count_of_every_text(server: RunningServer) -> None:
    response = await server.stub.Tokenize(pb.TokenizeRequest(texts=["w10  w11", "", "人 w12"]))
    first, empty, third = response.texts
    assert (list(first.ids), list(first.tokens)) == ([0, 10, 11, 2], ["<s>", "w10", "w11", "</s>"])
    assert [(offset.start, offset.end) for offset in first.offsets] == [(0, 0), (0, 3), (5, 8), (0, 0)]
    assert (first.index, first.count, first.truncated) == (0, 4, False)
    assert (list(empty.ids), empty.index, empty.count) == ([0, 2], 1, 2)
    assert (list(third.ids), third.index) == ([0, 3, 12, 2], 2)
    assert [(offset.start, offset.end) for offset in third.offsets[1:-1]] == [(0, 1), (2, 5)]
    assert (response.model, response.version) == ("small", 1)


async def test_the_prefix_has_empty_offsets(server: RunningServer) -> None:
    request = pb.TokenizeRequest(texts=["w10"], input_type=pb.INPUT_TYPE_QUERY)
    (text,) = (await server.stub.Tokenize(request)).texts
    assert list(text.ids) == [0, 20, 10, 2]
    assert [(offset.start, offset.end) for offset in text.offsets] == [(0, 0), (0, 0), (0, 3), (0, 0)]


@pytest.mark.parametrize(
    ("truncation", "ids"), [(pb.TRUNCATION_RIGHT, [0, 10, 11, 2]), (pb.TRUNCATION_LEFT, [0, 12, 13, 2])]
)
async def test_truncation_is_embeds(server: RunningServer, truncation: pb.Truncation.ValueType, ids: list[int]) -> None:
    request = pb.TokenizeRequest(texts=["w10 w11 w12 w13"], truncation=truncation, max_tokens=4)
    (text,) = (await server.stub.Tokenize(request)).texts
    assert (list(text.ids), text.count, text.truncated) == (ids, 4, True)


async def test_the_models_own_limit_is_the_default(server: RunningServer) -> None:
    request = pb.TokenizeRequest(texts=["w10 " * 100], truncation=pb.TRUNCATION_RIGHT)
    assert (await server.stub.Tokenize(request)).texts[0].count == MAX_TOKENS


async def test_its_ids_given_to_embed_give_what_the_text_gives(server: RunningServer) -> None:
    texts = ["w10 w11", "<s> literal </s>", "  人工 🙂 w12  "]
    tokenized = await server.stub.Tokenize(pb.TokenizeRequest(texts=texts))
    ids = [pb.TokenIds(ids=text.ids) for text in tokenized.texts]
    given = await embed(server, pb.EmbedRequest(token_ids=ids[:1], modes=[pb.MODE_HYBRID]))
    plain = await embed(server, pb.EmbedRequest(texts=texts, modes=[pb.MODE_HYBRID]))
    assert given.embeddings[0] == plain.embeddings[0]
    assert [each.token_count for each in plain.embeddings] == [text.count for text in tokenized.texts]


async def test_the_engine_is_not_asked(server: RunningServer, script: Script) -> None:
    script.gate.clear()
    response = await server.stub.Tokenize(pb.TokenizeRequest(texts=["w10"]))
    script.gate.set()
    assert list(response.texts[0].ids) == ids_of("w10")
    assert not script.batches


async def test_the_request_id_is_echoed(server: RunningServer) -> None:
    response = await server.stub.Tokenize(pb.TokenizeRequest(texts=["w10"], request_id="mine"))
    assert response.request_id == "mine"
