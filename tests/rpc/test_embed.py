"""Embed, end to end over gRPC, with an engine whose numbers are known."""

from pathlib import Path

import numpy as np
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

from tests.rpc.running_server import running_server
from tests.scripted_engine import Script, expected_dense, expected_multi_vector, expected_weights
from tests.small_repository import make_repository


async def test_hybrid_gives_all_three_parts(tmp_path: Path) -> None:
    async with running_server(make_repository(tmp_path), Script()) as server:
        stub = EmbeddingServiceStub(server.channel)
        response = await stub.Embed(pb.EmbedRequest(texts=["w10 w11 w10", ""], modes=[pb.MODE_HYBRID]))
    ids = [0, 10, 11, 10, 2]
    first, empty = response.embeddings
    np.testing.assert_array_equal(np.array(first.dense.values, np.float32), expected_dense(ids))
    assert list(first.sparse.ids) == [10, 11]
    np.testing.assert_array_equal(np.array(first.sparse.weights, np.float32), expected_weights([10, 11]))
    vectors = np.array(first.multi_vector.values, np.float32).reshape(first.multi_vector.rows, -1)
    np.testing.assert_array_equal(vectors, expected_multi_vector(ids))
    assert first.token_count == 5
    assert empty.HasField("sparse")
    assert list(empty.sparse.ids) == []
    assert empty.multi_vector.rows == 1
    assert response.usage.total_tokens == 7
    assert response.model == "small"
    assert response.version == 1
