"""The client against a server whose embeddings follow from the text by rule. Each test holds for both clients."""

import asyncio
import inspect
import subprocess
import sys
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import grpc
import numpy as np
import pytest
from trivec.v1 import embedding_pb2 as pb
from trivec_client import (
    AsyncTrivecClient,
    MalformedResponseError,
    MissingExtraError,
    NotFoundError,
    RetryPolicy,
    ServingStatus,
    Tls,
    TrivecClient,
    TrivecClientError,
    UnavailableError,
)

from tests.rpc.client_calls import KINDS, AnyClient, Kind, connect
from tests.rpc.scripted_server import (
    CHUNK_ROWS,
    DIMENSION,
    TLS_NAME,
    Script,
    dense_of,
    rows_of,
    score_of,
    serve,
    token_count,
    weights_of,
    write_authority,
)

TEXTS = ["人工智能", "vector search", "", "😀 emoji", "a", "Пошук"]
ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture
async def script() -> Script:
    return Script()


@pytest.fixture
async def target(script: Script) -> AsyncIterator[str]:
    async with serve(script) as address:
        yield address


@pytest.fixture
async def client(kind: Kind, target: str) -> AsyncIterator[AnyClient]:
    async with connect(kind, target) as connected:
        yield connected


async def test_a_list_gives_the_references_types_and_shapes(client: AnyClient) -> None:
    output = await client.call("encode", TEXTS, **ALL)
    assert list(output) == ["dense_vecs", "lexical_weights", "colbert_vecs"]
    dense, lexical, colbert = output.values()
    assert isinstance(dense, np.ndarray)
    assert (dense.shape, dense.dtype) == ((len(TEXTS), DIMENSION), np.float32)
    assert [type(weights) for weights in lexical] == [defaultdict] * len(TEXTS)
    assert {type(key) for weights in lexical for key in weights} == {str}
    assert {type(weight) for weights in lexical for weight in weights.values()} == {np.float32}
    assert lexical[0]["no such token"] == 0
    assert [(rows.shape, rows.dtype) for rows in colbert] == [
        ((token_count(text) - 1, DIMENSION), np.float32) for text in TEXTS
    ]


async def test_a_list_gives_the_values_of_the_server_in_order(client: AnyClient) -> None:
    output = await client.call("encode", TEXTS, **ALL)
    np.testing.assert_array_equal(output["dense_vecs"], [dense_of(text) for text in TEXTS])
    for text, weights, rows in zip(TEXTS, output["lexical_weights"], output["colbert_vecs"], strict=True):
        assert weights == {str(key): np.float32(weight) for key, weight in weights_of(text).items()}
        np.testing.assert_array_equal(rows, rows_of(text))


async def test_a_string_gives_its_entries_without_the_list(client: AnyClient) -> None:
    output = await client.call("encode", "人工智能", **ALL)
    np.testing.assert_array_equal(output["dense_vecs"], dense_of("人工智能"))
    assert output["lexical_weights"].keys() == {str(ord(char)) for char in "人工智能"}
    np.testing.assert_array_equal(output["colbert_vecs"], rows_of("人工智能"))


async def test_what_is_not_asked_for_is_none(client: AnyClient) -> None:
    output = await client.call("encode", TEXTS)
    assert (output["lexical_weights"], output["colbert_vecs"]) == (None, None)
    output = await client.call("encode", "a", return_dense=False, return_sparse=True)
    assert (output["dense_vecs"], output["colbert_vecs"]) == (None, None)


async def test_none_stands_for_the_references_default(client: AnyClient) -> None:
    output = await client.call("encode", "a", return_dense=None, return_sparse=None, return_colbert_vecs=None)
    assert [part for part, value in output.items() if value is not None] == ["dense_vecs"]


async def test_no_texts_give_empty_results_of_the_models_dimension(client: AnyClient, script: Script) -> None:
    output = await client.call("encode", [], **ALL)
    assert output["dense_vecs"].shape == (0, DIMENSION)
    assert (output["lexical_weights"], output["colbert_vecs"]) == ([], [])
    assert script.requests == []


async def test_results_are_writable(client: AnyClient) -> None:
    output = await client.call("encode", TEXTS, **ALL)
    streamed = await client.call("encode_stream", TEXTS, **ALL)
    assert output["dense_vecs"].flags.writeable
    assert all(rows.flags.writeable for rows in output["colbert_vecs"])
    assert all(result.dense.flags.writeable for result in streamed)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
async def test_order_holds_over_many_requests(client: AnyClient, batch_size: int) -> None:
    texts = [f"text {i}" for i in range(150)]
    output = await client.call("encode", texts, batch_size=batch_size)
    np.testing.assert_array_equal(output["dense_vecs"], [dense_of(text) for text in texts])


@pytest.mark.parametrize(
    ("encoding", "tolerance"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 8e-3), ("int8", 8e-3)]
)
async def test_wire_encodings_differ_by_their_rounding_only(
    kind: Kind, target: str, encoding: str, tolerance: float
) -> None:
    async with connect(kind, target, wire_encoding=encoding) as client:
        output = await client.call("encode", TEXTS, **ALL)
    assert output["dense_vecs"].dtype == np.float32
    np.testing.assert_allclose(output["dense_vecs"], [dense_of(text) for text in TEXTS], atol=tolerance)
    for text, rows in zip(TEXTS, output["colbert_vecs"], strict=True):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, rows_of(text), atol=tolerance)


async def test_binary_gives_the_signs(kind: Kind, target: str) -> None:
    async with connect(kind, target, wire_encoding="binary") as client:
        output = await client.call("encode", TEXTS, **ALL)
    np.testing.assert_array_equal(output["dense_vecs"], np.sign([dense_of(text) for text in TEXTS]))
    np.testing.assert_array_equal(output["colbert_vecs"][0], np.sign(rows_of(TEXTS[0])))


async def test_an_unknown_wire_encoding_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match="wire_encoding: 'float8' is none of float32, float16"):
        TrivecClient(wire_encoding="float8")  # type: ignore[arg-type]


async def test_encode_truncates_on_the_right_at_the_references_default_length(
    client: AnyClient, script: Script
) -> None:
    await client.call("encode", "a")
    (request,) = script.requests
    assert isinstance(request, pb.EmbedRequest)
    assert (request.truncation, request.max_tokens) == (pb.TRUNCATION_RIGHT, 512)
    assert request.input_type == pb.INPUT_TYPE_NONE


@pytest.mark.parametrize(
    ("method", "input_type", "max_tokens"),
    [("encode_queries", pb.INPUT_TYPE_QUERY, 32), ("encode_corpus", pb.INPUT_TYPE_PASSAGE, 256)],
)
async def test_queries_and_corpus_have_their_input_type_and_length(
    kind: Kind, target: str, script: Script, method: str, input_type: int, max_tokens: int
) -> None:
    async with connect(kind, target, query_max_length=32, passage_max_length=256) as client:
        await client.call(method, ["a"], return_sparse=True)
    (request,) = script.requests
    assert isinstance(request, pb.EmbedRequest)
    assert (request.input_type, request.max_tokens) == (input_type, max_tokens)
    assert request.modes == [pb.MODE_DENSE, pb.MODE_SPARSE]


async def test_encode_takes_the_references_arguments_by_position(client: AnyClient, script: Script) -> None:
    output = await client.call("encode", ["a"], 8, 100, False, True, False)
    assert output["dense_vecs"] is None
    assert output["lexical_weights"] == [{"97": 1}]
    assert script.requests[0].max_tokens == 100  # type: ignore[attr-defined]


async def test_asking_for_nothing_is_refused(client: AnyClient) -> None:
    with pytest.raises(ValueError, match="nothing is asked for"):
        await client.call("encode", ["a"], return_dense=False)


@pytest.mark.parametrize(
    ("limit", "value", "texts", "most"),
    [
        ("max_texts_per_request", 5, ["x"] * 20, 5),
        ("max_request_bytes", 4096 + 1000, ["x" * 194] * 20, 5),
        ("max_queued_tokens", 4 * 1000, ["x" * 97] * 20, 10),
        ("max_response_bytes", 4096 + 4 * (64 + 4 * DIMENSION), ["x"] * 20, 4),
    ],
)
async def test_requests_keep_the_servers_limits(
    client: AnyClient, script: Script, limit: str, value: int, texts: list[str], most: int
) -> None:
    setattr(script.limits, limit, value)
    output = await client.call("encode", texts)
    assert output["dense_vecs"].shape[0] == len(texts)
    sizes = [len(request.texts) for request in script.requests if isinstance(request, pb.EmbedRequest)]
    assert max(sizes) == most
    assert all(request.ByteSize() <= script.limits.max_request_bytes for request in script.requests)


async def test_the_models_limits_are_asked_for_once(client: AnyClient, script: Script) -> None:
    await client.call("encode", ["a"])
    script.limits.max_texts_per_request = 1
    await client.call("encode", ["a", "b"])
    assert [len(request.texts) for request in script.requests] == [1, 2]  # type: ignore[attr-defined]


async def test_a_text_larger_than_a_request_is_refused_with_its_index(client: AnyClient, script: Script) -> None:
    script.limits.max_request_bytes = 10_000
    with pytest.raises(ValueError, match=r"sentences\[1\]: 20000 bytes are more than the 5904 that fit"):
        await client.call("encode", ["a", "x" * 20_000])


@pytest.mark.parametrize(
    ("sentences", "error", "message"),
    [
        (["a", 3], TypeError, r"sentences\[1\]: expected a string, got int"),
        (["a", "\ud800"], ValueError, r"sentences\[1\]: not valid Unicode at character 0"),
        (7, TypeError, "sentences: expected a string or a list of strings, got int"),
        (b"a", TypeError, "sentences: expected a string or a list of strings, got bytes"),
    ],
)
async def test_what_is_no_text_is_refused_by_name(
    client: AnyClient, sentences: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await client.call("encode", sentences)


async def test_multi_vectors_come_over_streams_in_small_messages(client: AnyClient, script: Script) -> None:
    text = "x" * (5 * CHUNK_ROWS)
    output = await client.call("encode", ["a", text], return_dense=False, return_colbert_vecs=True)
    np.testing.assert_array_equal(output["colbert_vecs"][1], rows_of(text))


async def test_no_more_than_max_in_flight_requests_run_at_once(kind: Kind, target: str, script: Script) -> None:
    script.gate.clear()
    async with connect(kind, target, max_in_flight=3, batch_size=1) as client:
        encoding = asyncio.create_task(client.call("encode", [str(i) for i in range(20)]))
        await script.until_running(3)
        script.gate.set()
        await encoding
    assert script.most_running == 3
    assert len(script.requests) == 20


async def test_a_stream_of_texts_gives_one_result_each_in_order(client: AnyClient) -> None:
    texts = (f"text {i}" for i in range(300))
    results = await client.call("encode_stream", texts, return_sparse=True, return_tokens=True)
    assert [result.index for result in results] == list(range(300))
    np.testing.assert_array_equal(results[299].dense, dense_of("text 299"))
    assert results[299].token_count == token_count("text 299")
    assert results[299].sparse.tokens == tuple(sorted(set("text 299")))
    assert results[299].multi_vector is None


def counted(pulled: list[int], count: int) -> Iterator[str]:
    for i in range(count):
        pulled.append(i)
        yield f"text {i}"


async def test_texts_are_read_only_as_results_are_consumed(kind: Kind, target: str) -> None:
    pulled: list[int] = []
    async with connect(kind, target, max_in_flight=3, batch_size=10) as client:
        if isinstance(client.client, AsyncTrivecClient):
            async with aclosing(client.client.encode_stream(counted(pulled, 10_000))) as stream:
                async for _ in stream:
                    break
        else:
            stream_of_results = client.client.encode_stream(counted(pulled, 10_000))
            await asyncio.to_thread(next, stream_of_results)
    assert len(pulled) <= 3 * 10 + 1


async def test_the_asyncio_client_takes_an_asynchronous_iterable(target: str) -> None:
    async def texts() -> AsyncIterator[str]:
        for text in TEXTS:
            yield text

    async with AsyncTrivecClient(target) as client:
        assert [result.index async for result in client.encode_stream(texts())] == list(range(len(TEXTS)))


async def test_unordered_results_do_not_wait_for_a_slow_request(kind: Kind, target: str, script: Script) -> None:
    held = asyncio.Event()

    class OneHeld(Script):
        async def Embed(self, request: pb.EmbedRequest, context: object) -> pb.EmbedResponse:  # noqa: N802
            if request.texts[0] == "slow":
                await held.wait()
            elif request.texts[0] == "last":
                held.set()
            return await super().Embed(request, context)  # type: ignore[arg-type]

    async with serve(OneHeld()) as address, connect(kind, address, max_in_flight=2, batch_size=1) as client:
        results = await client.call("encode_stream", ["slow", "a", "b", "last"], ordered=False)
    order = [result.index for result in results]
    assert sorted(order) == [0, 1, 2, 3]
    assert order[:2] == [1, 2]


async def test_leaving_a_stream_early_ends_what_is_under_way(kind: Kind, target: str, script: Script) -> None:
    released = asyncio.Event()

    class FirstOnly(Script):
        async def Embed(self, request: pb.EmbedRequest, context: object) -> pb.EmbedResponse:  # noqa: N802
            if request.texts[0] != "first":
                self.gate.clear()
            else:
                await released.wait()
            return await super().Embed(request, context)  # type: ignore[arg-type]

    first_only = FirstOnly()
    async with serve(first_only) as address, connect(kind, address, max_in_flight=3, batch_size=1) as client:
        texts = ["first", *map(str, range(100))]
        if isinstance(client.client, AsyncTrivecClient):
            async with aclosing(client.client.encode_stream(texts)) as stream:
                first = asyncio.ensure_future(anext(stream))
                await first_only.until_running(2)
                released.set()
                first_only.gate.set()
                await first
        else:
            results = client.client.encode_stream(texts)
            first_result = asyncio.create_task(asyncio.to_thread(next, results))
            await first_only.until_running(2)
            released.set()
            first_only.gate.set()
            await first_result
            await asyncio.to_thread(results.close)  # type: ignore[attr-defined]
        await first_only.until_running(0)
    assert len(first_only.requests) < 10


async def test_a_change_of_version_within_a_call_is_an_error(kind: Kind, target: str, script: Script) -> None:
    script.versions.extend([1, 1, 2])
    async with connect(kind, target, batch_size=1, max_in_flight=1) as client:
        with pytest.raises(TrivecClientError, match="from scripted/1 to scripted/2 within one call"):
            await client.call("encode", ["a", "b", "c"])


async def test_metadata_and_the_programs_name_are_sent(kind: Kind, target: str, script: Script) -> None:
    async with connect(kind, target, metadata=[("authorization", "Bearer x")]) as client:
        await client.call("encode", "a")
    assert script.metadata[0]["authorization"] == "Bearer x"
    assert str(script.metadata[0]["user-agent"]).startswith("trivec-python/")


async def test_tls_with_a_certificate_authority_of_ones_own(kind: Kind, script: Script, tmp_path: Path) -> None:
    async with serve(script, tls=True) as target:
        tls = Tls(ca_file=write_authority(tmp_path), server_name=TLS_NAME)
        async with connect(kind, target, tls=tls) as client:
            output = await client.call("encode", "a")
    np.testing.assert_array_equal(output["dense_vecs"], dense_of("a"))


async def test_half_a_client_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="certificate_file and key_file belong together"):
        Tls(certificate_file=Path("client.pem"))


async def test_score_gives_every_passage_in_order(client: AnyClient) -> None:
    passages = [f"passage {i}" for i in range(10)]
    scores = await client.call("score", "a query", passages, weights=(0.4, 0.2, 0.4))
    weights = pb.ScoreWeights(dense=0.4, sparse=0.2, multi_vector=0.4)
    for index, (passage, score) in enumerate(zip(passages, scores, strict=True)):
        expected = score_of("a query", passage, weights, index)
        assert (score.index, score.token_count) == (index, token_count(passage))
        assert score.dense == pytest.approx(expected.dense)
        assert score.hybrid == pytest.approx(expected.hybrid)


async def test_score_of_more_passages_than_a_request_holds_is_split(client: AnyClient, script: Script) -> None:
    script.limits.max_texts_per_request = 5
    scores = await client.call("score", "a query", [f"passage {i}" for i in range(10)])
    assert sorted(len(request.passages) for request in script.requests) == [2, 4, 4]  # type: ignore[attr-defined]
    assert [score.index for score in scores] == list(range(10))


async def test_top_k_gives_the_best_first_over_all_requests(client: AnyClient, script: Script) -> None:
    script.limits.max_texts_per_request = 4
    passages = [f"passage {i}" for i in range(10)]
    every = await client.call("score", "a query", passages)
    top = await client.call("score", "a query", passages, top_k=3)
    assert [score.index for score in top] == [
        score.index for score in sorted(every, key=lambda score: -score.hybrid)[:3]
    ]


@pytest.mark.parametrize("weights", [(1, 1), (1, -1, 1), (0, 0, 0)])
async def test_weights_that_cannot_be_right_are_refused(client: AnyClient, weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights: "):
        await client.call("score", "a query", ["a"], weights=weights)


PAIRS = [("what is it", "it is this"), ("what is it", "it is that"), ("who", "you")]
KEYS = ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]


async def test_compute_score_gives_the_references_five_lists(client: AnyClient) -> None:
    scores = await client.call("compute_score", PAIRS, weights_for_different_modes=[0.4, 0.2, 0.4])
    assert list(scores) == KEYS
    weights = pb.ScoreWeights(dense=0.4, sparse=0.2, multi_vector=0.4)
    expected = [score_of(query, passage, weights, 0) for query, passage in PAIRS]
    assert scores["colbert"] == pytest.approx([score.multi_vector for score in expected])
    assert scores["sparse+dense"] == pytest.approx([score.sparse_dense for score in expected])
    assert scores["colbert+sparse+dense"] == pytest.approx([score.hybrid for score in expected])


async def test_compute_score_of_one_pair_gives_floats(client: AnyClient) -> None:
    scores = await client.call("compute_score", ("what is it", "it is this"))
    assert [type(score) for score in scores.values()] == [float] * 5


async def test_compute_score_asks_once_for_a_run_of_one_query(client: AnyClient, script: Script) -> None:
    await client.call("compute_score", PAIRS)
    assert sorted(len(request.passages) for request in script.requests) == [1, 2]  # type: ignore[attr-defined]


async def test_compute_score_with_two_lengths_gives_the_same_numbers(client: AnyClient, script: Script) -> None:
    one = await client.call("compute_score", PAIRS, weights_for_different_modes=[0.4, 0.2, 0.4])
    script.requests.clear()
    two = await client.call("compute_score", PAIRS, max_passage_length=128, weights_for_different_modes=[0.4, 0.2, 0.4])
    assert {request.max_tokens for request in script.requests} == {512, 128}  # type: ignore[attr-defined]
    for key in KEYS:
        assert two[key] == pytest.approx(one[key], abs=1e-6)


@pytest.mark.parametrize("client_class", [TrivecClient, AsyncTrivecClient])
def test_the_references_scores_of_vectors_are_there(client_class: type[TrivecClient]) -> None:
    one, two = {"5": np.float32(0.5), "7": np.float32(1)}, {"7": np.float32(0.25)}
    assert client_class.compute_lexical_matching_score(one, two) == 0.25
    np.testing.assert_array_equal(client_class.compute_lexical_matching_score([one, two], [two]), [[0.25], [0.0625]])
    rows = rows_of("text")
    assert client_class.colbert_score(rows, rows) == pytest.approx(1)


async def test_tokenize_gives_ids_strings_and_ranges(client: AnyClient) -> None:
    first, second = await client.call("tokenize", ["ab", ""])
    assert first.ids.tolist() == [0, 97, 98, 2]
    assert first.tokens == ("<s>", "a", "b", "</s>")
    assert first.offsets == ((0, 0), (0, 1), (1, 2), (2, 2))
    assert (second.index, second.ids.tolist()) == (1, [0, 2])


async def test_models_are_described(client: AnyClient) -> None:
    model = await client.call("get_model")
    assert (model.name, model.version, model.state) == ("scripted", 1, "READY")
    assert model.modes == ("dense", "sparse", "multi_vector")
    assert model.limits.max_texts_per_request == 100
    broken, _ = await client.call("list_models")
    assert (broken.state, broken.state_reason) == ("UNAVAILABLE", "sparse_linear is missing")
    assert [each.name for each in await client.call("list_models", ready_only=True)] == ["scripted"]


async def test_an_unknown_model_is_not_found(client: AnyClient) -> None:
    with pytest.raises(NotFoundError, match="NOT_FOUND: model 'other' is not known"):
        await client.call("get_model", "other")


async def test_health_is_told_as_it_is(client: AnyClient) -> None:
    assert await client.call("health") is ServingStatus.SERVING
    assert await client.call("health", "broken") is ServingStatus.NOT_SERVING
    with pytest.raises(NotFoundError, match="does not know 'no such service'"):
        await client.call("health", "no such service")


async def test_health_of_no_server_names_the_target(kind: Kind, script: Script) -> None:
    async with serve(script) as gone:
        pass
    async with connect(kind, gone) as client:
        with pytest.raises(UnavailableError, match=f"UNAVAILABLE: {gone}: .*; is `trivec serve` running there\\?$"):
            await client.call("health")


@pytest.mark.parametrize("method", [["health"], ["encode", "a"]], ids=lambda method: method[0])
async def test_a_traceback_ends_with_the_one_line_and_shows_no_other_error(
    kind: Kind, script: Script, method: list[str]
) -> None:
    async with serve(script) as gone:
        pass
    async with connect(kind, gone, retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.call(*method)
    printed = "".join(traceback.format_exception(caught.value))
    assert printed.splitlines()[-1] == f"trivec_client.errors.UnavailableError: {caught.value}"
    assert printed.count("Traceback") == 1
    assert isinstance(caught.value.rpc_error, grpc.RpcError)


async def test_tls_to_a_plaintext_server_says_so(kind: Kind, target: str) -> None:
    async with connect(kind, target, tls=Tls()) as client:
        with pytest.raises(UnavailableError, match=r"; the server may speak plaintext: then connect without TLS$"):
            await client.call("health")


async def test_plaintext_to_a_tls_server_says_so(kind: Kind, script: Script) -> None:
    async with serve(script, tls=True) as target, connect(kind, target) as client:
        with pytest.raises(UnavailableError, match=r"; the server may expect TLS$"):
            await client.call("health")


class Nonsense(Script):
    """Answers with the embeddings that it was given."""

    def __init__(self, *embeddings: pb.Embedding) -> None:
        super().__init__()
        self.embeddings = embeddings

    async def Embed(self, request: pb.EmbedRequest, context: object) -> pb.EmbedResponse:  # noqa: N802
        return pb.EmbedResponse(embeddings=self.embeddings)

    async def EmbedStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.EmbedStreamRequest], context: object
    ) -> AsyncIterator[pb.EmbedStreamResponse]:
        async for request in request_iterator:
            response = pb.EmbedResponse(embeddings=self.embeddings)
            yield pb.EmbedStreamResponse(id=request.id, response=response, final=True)


FLOAT32 = pb.VECTOR_ENCODING_FLOAT32
DENSE = pb.DenseVector(dimension=2, data=bytes(8), encoding=FLOAT32)
ROW = pb.MultiVector(rows=1, dimension=2, total_rows=2, data=bytes(8), encoding=FLOAT32)
LATE_ROW = pb.MultiVector(rows=1, dimension=2, first_row=5, total_rows=6, data=bytes(8), encoding=FLOAT32)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ([], "0 embeddings for 1 texts"),
        ([pb.Embedding()], "embedding 0 has no dense vector"),
        ([pb.Embedding(dense=DENSE), pb.Embedding(index=1, dense=DENSE)], "embedding 1 follows 0 in a request of 1"),
        ([pb.Embedding(dense=pb.DenseVector(dimension=2, data=bytes(7), encoding=FLOAT32))], "7 bytes are not whole"),
        ([pb.Embedding(dense=pb.DenseVector(dimension=2, values=[0, 0]))], "where float32 was asked for"),
    ],
)
async def test_a_malformed_answer_is_an_error(kind: Kind, embeddings: list[pb.Embedding], message: str) -> None:
    async with serve(Nonsense(*embeddings)) as target, connect(kind, target) as client:
        with pytest.raises(MalformedResponseError, match=message):
            await client.call("encode", "a")


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        ([pb.Embedding()], "embedding 0 has no multi-vector"),
        ([pb.Embedding(multi_vector=ROW)], "1 of 2 multi-vector rows"),
        ([pb.Embedding(multi_vector=LATE_ROW)], "rows 5 to 6 of embedding 0 follow 0 of 6"),
    ],
)
async def test_a_malformed_stream_is_an_error(kind: Kind, embeddings: list[pb.Embedding], message: str) -> None:
    async with serve(Nonsense(*embeddings)) as target, connect(kind, target) as client:
        with pytest.raises(MalformedResponseError, match=message):
            await client.call("encode", "a", return_dense=False, return_colbert_vecs=True)


async def test_progress_without_tqdm_names_the_extra(client: AnyClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trivec\[progress\]'"):
        await client.call("encode_stream", ["a"], progress=True)


async def test_progress_counts_texts(client: AnyClient, capsys: pytest.CaptureFixture[str]) -> None:
    await client.call("encode_stream", ["a"] * 5, progress=True)
    assert "5/5" in capsys.readouterr().err


def test_both_clients_have_the_same_surface() -> None:
    def surface(client: type) -> dict[str, list[str]]:
        functions = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(f).parameters) for name, f in functions if not name.startswith("_")}

    assert surface(TrivecClient) == surface(AsyncTrivecClient)


def test_the_client_needs_nothing_but_the_base_install() -> None:
    extras = ["trivec_server", "click", "tqdm", "pyarrow", "grpc_health", "grpc_status", "tokenizers", "onnx"]
    program = f"import sys; sys.modules |= dict.fromkeys({extras}); import trivec_client"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("client_class", [TrivecClient, AsyncTrivecClient])
def test_settings_that_cannot_be_right_are_refused(client_class: type[TrivecClient]) -> None:
    for setting in ({"batch_size": 0}, {"max_in_flight": 0}, {"timeout_s": 0.0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            client_class(**setting)


@pytest.mark.parametrize("client_class", [TrivecClient, AsyncTrivecClient])
@pytest.mark.parametrize("target", ["", "localhost", "http://localhost:8001", "localhost:http", "::1:8001", "a:65536"])
def test_a_target_without_port_or_with_a_scheme_is_refused(client_class: type[TrivecClient], target: str) -> None:
    with pytest.raises(ValueError, match=r"^target: '.*' is not host:port, such as "):
        client_class(target)


@pytest.mark.parametrize("target", ["localhost:8001", "[::1]:8001", "dns:///trivec:8001", "unix:/run/trivec.sock"])
def test_what_grpc_resolves_is_a_target(target: str) -> None:
    TrivecClient(target).close()


TOKEN = "trivec_a-token"  # noqa: S105 - of no server


async def test_a_token_is_sent_with_every_request(kind: Kind, target: str, script: Script) -> None:
    async with connect(kind, target, token=TOKEN) as client:
        await client.call("encode", "a")
        await client.call("encode", "a", **ALL)
    assert [sent["authorization"] for sent in script.metadata] == [f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize("client_class", [TrivecClient, AsyncTrivecClient])
@pytest.mark.parametrize(
    ("where", "refused"),
    [
        ("127.0.0.1:8001", False),
        ("[::1]:8001", False),
        ("localhost:8001", False),
        ("unix:/run/trivec", False),
        ("dns:///localhost:8001", False),
        ("ipv4:127.0.0.1:8001,127.0.0.2:8001", False),
        (["127.0.0.1:8001", "127.0.0.1:8002"], False),
        ("192.0.2.1:8001", True),
        ("trivec:8001", True),
        ("dns:///trivec:8001", True),
        ("ipv4:127.0.0.1:8001,192.0.2.1:8001", True),
        (["127.0.0.1:8001", "192.0.2.1:8001"], True),
    ],
)
async def test_a_token_travels_in_plain_text_on_this_machine_only(
    client_class: type[TrivecClient], where: str | list[str], *, refused: bool
) -> None:
    if refused:
        with pytest.raises(ValueError, match=r"token: it would travel to .* in plain text"):
            client_class(where, token=TOKEN)
    else:
        client_class(where, token=TOKEN)
    client_class(where, token=TOKEN, allow_insecure_token=True)
    client_class(where, token=TOKEN, tls=Tls(server_name="trivec"))


@pytest.mark.parametrize("client_class", [TrivecClient, AsyncTrivecClient])
@pytest.mark.parametrize("token", ["", "two words", "line\n", "t\u00f6ken"])
def test_what_is_no_token_is_refused_and_not_shown(client_class: type[TrivecClient], token: str) -> None:
    with pytest.raises(ValueError, match="token: it is empty, or has characters that no token has") as caught:
        client_class(token=token)
    assert not token or token not in str(caught.value)


def test_a_token_and_an_authorization_of_ones_own_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="token: metadata has an authorization already"):
        TrivecClient(token=TOKEN, metadata=[("Authorization", "Basic x")])


@pytest.mark.parametrize("balancing", [None, "round_robin"])
async def test_options_of_ones_own_override_the_clients(
    kind: Kind, target: str, script: Script, balancing: str | None
) -> None:
    options = [("grpc.primary_user_agent", "mine"), ("grpc.max_receive_message_length", 10)]
    async with connect(kind, target, options=options, balancing=balancing) as client:
        with pytest.raises(TrivecClientError, match="RESOURCE_EXHAUSTED"):
            await client.call("encode", "a")
