"""
The client of Trivec: texts in, NumPy arrays out.

    with TrivecClient("127.0.0.1:8001") as client:
        output = client.encode(["a text"], return_sparse=True, return_colbert_vecs=True)
"""

from trivec_client.async_client import AsyncTrivecClient
from trivec_client.balancing import Balancing
from trivec_client.channel import Tls
from trivec_client.client import TrivecClient
from trivec_client.clock import AsyncClock, Clock
from trivec_client.embeddings import SparseVector, TextEmbedding
from trivec_client.errors import (
    DeadlineExceededError,
    FieldViolation,
    InvalidRequestError,
    MalformedResponseError,
    MissingExtraError,
    NotFoundError,
    OverloadedError,
    TrivecClientError,
    UnavailableError,
)
from trivec_client.health import ServingStatus
from trivec_client.models import ModelInfo, ModelLimits, ScoreWeights
from trivec_client.outputs import EncodeOutput
from trivec_client.retry import RetryPolicy
from trivec_client.scores import PassageScore, ScoreOutput, colbert_score, lexical_matching_score
from trivec_client.targets import DEFAULT_TARGET
from trivec_client.tokens import TokenizedText
from trivec_client.vectors import WireEncoding

__all__ = [
    "DEFAULT_TARGET",
    "AsyncClock",
    "AsyncTrivecClient",
    "Balancing",
    "Clock",
    "DeadlineExceededError",
    "EncodeOutput",
    "FieldViolation",
    "InvalidRequestError",
    "MalformedResponseError",
    "MissingExtraError",
    "ModelInfo",
    "ModelLimits",
    "NotFoundError",
    "OverloadedError",
    "PassageScore",
    "RetryPolicy",
    "ScoreOutput",
    "ScoreWeights",
    "ServingStatus",
    "SparseVector",
    "TextEmbedding",
    "Tls",
    "TokenizedText",
    "TrivecClient",
    "TrivecClientError",
    "UnavailableError",
    "WireEncoding",
    "colbert_score",
    "lexical_matching_score",
]
