"""What the scripted engine's embeddings must look like in a response."""

import numpy as np
from trivec.v1 import embedding_pb2 as pb

from tests.scripted_engine import expected_dense, expected_multi_vector, expected_weights
from tests.vector_decoding import as_sent, dense_numbers, row_numbers


def expected_sparse(ids: list[int]) -> dict[int, float]:
    """Special tokens left out, of a repeated token the largest weight, weights of zero left out."""
    weights: dict[int, float] = {}
    for token, weight in zip(ids, expected_weights(ids).tolist(), strict=True):
        if token not in {0, 1, 2, 3} and weight > weights.get(token, 0.0):
            weights[token] = weight
    return dict(sorted(weights.items()))


def check_embedding(embedding: pb.Embedding, ids: list[int], *, encoding: int = pb.VECTOR_ENCODING_FLOAT_LIST) -> None:
    """Checks every part that is present against the text's token ids."""
    assert embedding.token_count == len(ids)
    if embedding.HasField("dense"):
        sent = as_sent(expected_dense(ids)[None], encoding)[0]
        np.testing.assert_array_equal(dense_numbers(embedding.dense), sent)
    if embedding.HasField("sparse"):
        sparse = dict(zip(embedding.sparse.ids, embedding.sparse.weights, strict=True))
        assert list(embedding.sparse.ids) == list(expected_sparse(ids))
        assert sparse == expected_sparse(ids)
    if embedding.HasField("multi_vector"):
        sent = as_sent(expected_multi_vector(ids), encoding)
        np.testing.assert_array_equal(row_numbers(embedding.multi_vector), sent)


def parts_of(embedding: pb.Embedding) -> set[str]:
    """The names of the parts that are present."""
    return {name for name in ("dense", "sparse", "multi_vector") if embedding.HasField(name)}
