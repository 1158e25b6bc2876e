"""ModelInfer for embedding models: the same numbers as Embed, as tensors."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from inference import grpc_service_pb2 as pb
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2
from trivec_server.types import Mode

from tests.rpc.inference_server import (
    InferenceServer,
    elements,
    embed,
    given,
    inference_server,
    output,
    refusal_of,
    request,
)
from tests.rpc.scripted_answers import expected_sparse
from tests.scripted_engine import DIMENSION, Script, expected_dense, expected_multi_vector
from tests.small_repository import MAX_TOKENS, ids_of, make_repository

TEXTS = ("w10 w11 w12", "w20", "w21 w14", "w30 w30 w31")
ALL = ["dense", "sparse_indptr", "sparse_indices", "sparse_values", "multi_vector_offsets", "multi_vector"]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(tmp_path: Path, script: Script) -> AsyncIterator[InferenceServer]:
    async with inference_server(make_repository(tmp_path), script) as server:
        yield server


def names(response: pb.ModelInferResponse) -> list[str]:
    return [tensor.name for tensor in response.outputs]


def rows_of(offsets: NDArray[np.int64], values: NDArray[Any]) -> list[NDArray[Any]]:
    return [values[start:end] for start, end in itertools.pairwise(offsets)]


def check_values(response: pb.ModelInferResponse, ids: list[list[int]]) -> None:
    """Every output against the token ids of its rows."""
    np.testing.assert_array_equal(output(response, "dense"), np.stack([expected_dense(row) for row in ids]))
    indptr = output(response, "sparse_indptr")
    indices = rows_of(indptr, output(response, "sparse_indices"))
    values = rows_of(indptr, output(response, "sparse_values"))
    vectors = rows_of(output(response, "multi_vector_offsets"), output(response, "multi_vector"))
    assert (indptr[0], indptr[-1]) == (0, len(output(response, "sparse_values")))
    for row, ids_found, weights, rows in zip(ids, indices, values, vectors, strict=True):
        assert dict(zip(ids_found.tolist(), weights.tolist(), strict=True)) == expected_sparse(row)
        assert ids_found.tolist() == sorted(ids_found.tolist())
        np.testing.assert_array_equal(rows, expected_multi_vector(row))


async def test_without_outputs_asked_for_all_are_given(server: InferenceServer) -> None:
    response = await server.infer(embed(*TEXTS, request_id="mine: é"))
    assert names(response) == ALL
    check_values(response, [ids_of(text) for text in TEXTS])
    assert (response.model_name, response.model_version, response.id) == ("small", "1", "mine: é")
    assert [tensor.datatype for tensor in response.outputs] == ["FP32", "INT64", "INT64", "FP32", "INT64", "FP32"]


async def test_the_numbers_are_those_of_embed(server: InferenceServer) -> None:
    response = await server.infer(embed(*TEXTS))
    ours = await server.embedding_stub.Embed(embedding_pb2.EmbedRequest(texts=TEXTS, modes=[embedding_pb2.MODE_HYBRID]))
    dense = [list(each.dense.values) for each in ours.embeddings]
    assert output(response, "dense").tolist() == dense
    assert output(response, "sparse_indices").tolist() == [i for each in ours.embeddings for i in each.sparse.ids]
    assert output(response, "sparse_values").tolist() == [w for each in ours.embeddings for w in each.sparse.weights]
    vectors = [value for each in ours.embeddings for value in each.multi_vector.values]
    assert output(response, "multi_vector").reshape(-1).tolist() == vectors


@pytest.mark.parametrize(
    ("asked", "computed"),
    [
        (["dense"], Mode.DENSE),
        (["sparse_values", "sparse_indptr"], Mode.SPARSE),
        (["multi_vector", "dense"], Mode.DENSE | Mode.MULTI_VECTOR),
    ],
)
async def test_only_what_is_asked_for_is_computed_and_given(
    server: InferenceServer, script: Script, asked: list[str], computed: Mode
) -> None:
    response = await server.infer(embed(*TEXTS, outputs=asked))
    assert sorted(names(response)) == sorted(asked)
    assert script.modes == [computed]


@pytest.mark.parametrize("modes", ["dense", "dense, sparse", "multi_vector", "hybrid"])
async def test_modes_choose_outputs_where_none_are_named(server: InferenceServer, script: Script, modes: str) -> None:
    response = await server.infer(embed(*TEXTS, modes=modes))
    chosen = ALL if modes == "hybrid" else [name for name in ALL if any(part in name for part in modes.split(", "))]
    assert names(response) == chosen
    assert len(script.modes) == 1


async def test_an_output_that_modes_leave_out_is_refused(server: InferenceServer) -> None:
    refusal = await refusal_of(server.infer(embed("w10", outputs=["sparse_values"], modes="dense,multi_vector")))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "output 'sparse_values' needs mode 'sparse'" in refusal.message


async def test_float16_concerns_every_output_of_numbers(server: InferenceServer) -> None:
    half = await server.infer(embed(*TEXTS, encoding="float16"))
    full = await server.infer(embed(*TEXTS, encoding="float32"))
    assert [tensor.datatype for tensor in half.outputs] == ["FP16", "INT64", "INT64", "FP16", "INT64", "FP16"]
    for name in ("dense", "sparse_values", "multi_vector"):
        np.testing.assert_array_equal(output(half, name), output(full, name).astype(np.float16))


@pytest.mark.parametrize("datatype", ["INT64", "INT32"])
async def test_token_ids_are_taken_without_their_padding(server: InferenceServer, datatype: str) -> None:
    ids = [ids_of("w10 w11"), ids_of("w12"), ids_of("")]
    padded = np.full((3, 5), 1, np.int64 if datatype == "INT64" else np.int32)
    for row, tokens in zip(padded, ids, strict=True):
        row[: len(tokens)] = tokens
    tensor = given("token_ids", datatype, padded.shape)
    response = await server.infer(request("small", tensor, raw=[padded.tobytes()]))
    check_values(response, ids)


async def test_typed_contents_are_taken_too(server: InferenceServer) -> None:
    texts = pb.InferTensorContents(bytes_contents=[text.encode() for text in TEXTS])
    response = await server.infer(request("small", given("text", "BYTES", (len(TEXTS), 1), texts)))
    check_values(response, [ids_of(text) for text in TEXTS])
    ids = pb.InferTensorContents(int64_contents=ids_of("w10"))
    response = await server.infer(request("small", given("token_ids", "INT64", (1, 3), ids)))
    check_values(response, [ids_of("w10")])


async def test_more_rows_than_a_batch_holds_are_split(server: InferenceServer, script: Script) -> None:
    texts = [f"w{number}" for number in range(10, 50)]
    response = await server.infer(embed(*texts))
    check_values(response, [ids_of(text) for text in texts])
    assert len(script.batches) > 1


async def test_tokens_and_truncated_texts_are_told(server: InferenceServer) -> None:
    long = "w10 " * (MAX_TOKENS + 5)
    response = await server.infer(embed(long, "w10", truncation="right"))
    told = {key: value.int64_param for key, value in response.parameters.items()}
    assert told == {"total_tokens": MAX_TOKENS + 3, "truncated_texts": 1}


@pytest.mark.parametrize("side", ["left", "right"])
async def test_max_tokens_and_truncation_are_those_of_embed(server: InferenceServer, side: str) -> None:
    response = await server.infer(embed("w10 w11 w12 w13", max_tokens=4, truncation=side))
    kept = "w10 w11" if side == "right" else "w12 w13"
    check_values(response, [ids_of(kept)])


async def test_a_text_that_is_too_long_is_named(server: InferenceServer) -> None:
    refusal = await refusal_of(server.infer(embed("w10", "w11 " * (MAX_TOKENS + 1))))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.message.startswith("text[1]: has ")


async def test_sparse_weights_are_pruned_as_asked(server: InferenceServer) -> None:
    weights = expected_sparse(ids_of("w10 w11 w12 w13 w40"))
    largest = sorted(weights, key=lambda token: -weights[token])[:2]
    response = await server.infer(embed("w10 w11 w12 w13 w40", outputs=["sparse_indices"], sparse_top_k=2))
    assert output(response, "sparse_indices").tolist() == sorted(largest)
    response = await server.infer(embed("w10 w11 w12 w13 w40", sparse_min_weight=0.2))
    assert output(response, "sparse_indices").tolist() == [token for token in weights if weights[token] >= 0.2]


async def test_rows_without_sparse_weights_are_empty_rows(server: InferenceServer) -> None:
    response = await server.infer(embed("", "w14", "w10", outputs=["sparse_indptr", "sparse_indices"]))
    assert output(response, "sparse_indptr").tolist() == [0, 0, 0, 1]
    response = await server.infer(embed("", outputs=["sparse_indices", "sparse_values", "sparse_indptr"]))
    assert [tuple(tensor.shape) for tensor in response.outputs] == [(2,), (0,), (0,)]


async def test_input_type_puts_its_prefix_before_texts(tmp_path: Path) -> None:
    config = 'parameters { key: "query_prefix" value { string_value: "w50 " } }\n'
    async with inference_server(make_repository(tmp_path, config=config)) as server:
        response = await server.infer(embed("w10", input_type="query"))
        check_values(response, [ids_of("w50 w10")])
        response = await server.infer(embed("w10", input_type="passage"))
        check_values(response, [ids_of("w10")])


async def test_parameters_of_others_are_passed_over(server: InferenceServer) -> None:
    response = await server.infer(embed("w10", outputs=["dense"], mine="x", flag=True, number=3, fraction=0.5))
    assert output(response, "dense").shape == (1, DIMENSION)


BAD_PARAMETERS = [
    ({"modes": "dense,colbert"}, "invalid value for 'modes', expected one or more of dense, sparse, multi_vector"),
    ({"modes": ""}, "invalid value for 'modes'"),
    ({"modes": 1}, "invalid value type for 'modes' parameter, expected string_param."),
    ({"encoding": "int8"}, "invalid value for 'encoding', expected one of float32, float16; got 'int8'"),
    ({"encoding": True}, "invalid value type for 'encoding' parameter, expected string_param."),
    ({"input_type": "Query"}, "invalid value for 'input_type', expected one of none, query, passage; got 'Query'"),
    ({"truncation": "no"}, "invalid value for 'truncation', expected one of error, right, left; got 'no'"),
    ({"max_tokens": 1}, f"invalid value for 'max_tokens', expected a whole number of 2 to {MAX_TOKENS}; got 1"),
    ({"max_tokens": MAX_TOKENS + 1}, "invalid value for 'max_tokens'"),
    ({"max_tokens": "5"}, "invalid value type for 'max_tokens' parameter, expected int64_param."),
    ({"sparse_top_k": -1}, "invalid value for 'sparse_top_k', expected a whole number of at least 0; got -1"),
    ({"sparse_min_weight": -0.5}, "invalid value for 'sparse_min_weight', expected a number of at least 0; got -0.5"),
    ({"sparse_min_weight": float("nan")}, "invalid value for 'sparse_min_weight'"),
    ({"sparse_min_weight": "1"}, "invalid value type for 'sparse_min_weight' parameter"),
]


@pytest.mark.parametrize(("about", "words"), BAD_PARAMETERS, ids=[str(about) for about, _ in BAD_PARAMETERS])
async def test_a_bad_parameter_is_named_with_what_is_allowed(
    server: InferenceServer, about: dict[str, Any], words: str
) -> None:
    refusal = await refusal_of(server.infer(embed("w10", **about)))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in refusal.message


def raw_ids(*rows: list[int], datatype: str = "INT64") -> pb.ModelInferRequest:
    ids = np.array(rows, np.int64)
    return request("small", given("token_ids", datatype, ids.shape), raw=[ids.tobytes()])


BAD_INPUTS = [
    (
        request(
            "small",
            given("text", "BYTES", (1, 1)),
            given("token_ids", "INT64", (1, 3)),
            raw=[elements("w10"), np.array([0, 10, 2]).tobytes()],
        ),
        "expected 1 inputs but got 2 inputs for model 'small'",
    ),
    (request("small"), "missing required input(s) ['text']"),
    (request("small", given("words", "BYTES", (1, 1)), raw=[elements("w")]), "unexpected inference input 'words'"),
    (
        request("small", given("text", "BYTES", (2,)), raw=[elements("a", "b")]),
        "unexpected shape for input 'text' for model 'small'. Expected [-1,1], got [2]",
    ),
    (request("small", given("text", "FP32", (1, 1)), raw=[bytes(4)]), "data-type is 'FP32', but model 'small' expects"),
    (
        request("small", given("text", "BYTES", (2, 1)), raw=[elements(b"ok", b"\xff\xfe")]),
        "input 'text' for model 'small' is not valid UTF-8 in row 1; encode the text as UTF-8",
    ),
    (request("small", given("text", "BYTES", (0, 1)), raw=[b""]), "expected 1 string elements"),
    (request("small", given("token_ids", "FP32", (1, 1)), raw=[bytes(4)]), "but model 'small' expects 'INT64'"),
    (raw_ids([0, -5, 2]), "input 'token_ids' for model 'small' has a negative id"),
    (raw_ids([1, 1]), "token_ids[0]: must begin with 0 (<s>) and end with 2 (</s>)"),
    (raw_ids([0, 5000, 2]), "token_ids[0]"),
    (embed("w10", outputs=["colbert"]), "unexpected inference output 'colbert' for model 'small'"),
]


@pytest.mark.parametrize(("bad", "words"), BAD_INPUTS, ids=[words[:50] for _, words in BAD_INPUTS])
async def test_what_an_embedding_model_does_not_take_is_refused(
    server: InferenceServer, bad: pb.ModelInferRequest, words: str
) -> None:
    refusal = await refusal_of(server.infer(bad))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in refusal.message
    assert refusal.reason == ""
