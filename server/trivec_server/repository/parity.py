"""How near one engine's numbers come to another's, on a few texts in several languages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import Engine, EngineOutput, TokenBatch, Vectors
from trivec_server.errors import LoadError
from trivec_server.repository.manifest import Parity
from trivec_server.repository.selfcheck import token_batch
from trivec_server.serving.encode import lexical_weights
from trivec_server.serving.request import SparseRow
from trivec_server.serving.tokenizer import Tokenizer, truncate
from trivec_server.serving.word_cache import unpack_ids
from trivec_server.types import InputType, Mode, Truncation

_TEXTS = (
    "What is BGE-M3?",
    "BGE-M3 gives dense, lexical and multi-vector embeddings of texts in more than a hundred languages.",
    "How do vaccines work?",
    "A vaccine shows the immune system a harmless part of a virus, so that it knows the real one when it comes.",
    "人工智能是研究、开发用于模拟人类智能的理论与技术的科学。",
    "今天天气怎么样?",
    "北京到上海的高铁全程约一千三百公里,最快的列车四个多小时到达。",
    "Der Zug nach Hamburg fährt heute von Gleis sieben und hat zwanzig Minuten Verspätung.",
    "¿Cuándo abre la biblioteca municipal los sábados por la mañana?",
    "Le marché couvert ferme à midi, mais les boulangeries restent ouvertes.",
    "東京の桜は三月の終わりに咲き始めます。",
    "Вода кипит при ста градусах, если давление обычное.",
    "def area(radius):\n    return 3.14159 * radius ** 2",
    "Invoice no. 2024-0917: 3 x 49.90 EUR, due within 14 days, 2 % discount for payment within 7 days.",
    "x",
    "",
    (
        "The committee met on Tuesday. It approved the minutes of the last meeting, heard the treasurer's report, and "
        "put off the question of the new roof until three offers have been received; the caretaker will see to the "
        "gutters in the meantime. The next meeting is on the second Tuesday of the coming month, at seven in the "
        "evening, in the small hall."
    ),
)


def measure_parity(
    tokenizer: Tokenizer, build_reference: Callable[[], Engine], build_other: Callable[[], Engine], max_tokens: int
) -> Parity:
    """
    Runs the texts on both engines, one engine after the other, each closed after use.

    Raises:
        LoadError: an engine cannot be built, or gives numbers that are not finite.
    """
    packed = tokenizer.encode(_TEXTS, InputType.NONE)
    batches = [token_batch([unpack_ids(truncate(ids, max_tokens, Truncation.RIGHT))]) for ids in packed]
    (_, reference), (device, other) = _run(build_reference, batches), _run(build_other, batches)
    dense = np.array([_cosines(a.dense, b.dense)[0] for a, b in zip(reference, other, strict=True)])
    tokens = np.concatenate([_cosines(a.vectors, b.vectors) for a, b in zip(reference, other, strict=True)])
    overlaps, errors = zip(*(_compare(a.sparse, b.sparse) for a, b in zip(reference, other, strict=True)), strict=True)
    return Parity(
        texts=len(_TEXTS),
        device=device,
        dense_cosine_min=float(dense.min()),
        dense_cosine_mean=float(dense.mean()),
        multi_vector_cosine_min=float(tokens.min()),
        multi_vector_cosine_mean=float(tokens.mean()),
        sparse_overlap=float(np.mean(overlaps)),
        sparse_weight_error=float(max(errors)),
    )


@dataclass(frozen=True, slots=True)
class _Embedding:
    """One text's embeddings: `dense` [1, D], `vectors` [tokens - 1, D]."""

    dense: Vectors
    sparse: SparseRow
    vectors: Vectors


def _run(build: Callable[[], Engine], batches: Sequence[TokenBatch]) -> tuple[str, list[_Embedding]]:
    """The engine's device and what it gave."""
    engine = build()
    try:
        return engine.info.device, [_embedding(batch, engine.run(batch, Mode.HYBRID)) for batch in batches]
    finally:
        engine.close()


def _embedding(batch: TokenBatch, output: EngineOutput) -> _Embedding:
    if output.dense is None or output.token_weights is None or output.multi_vector is None:
        raise LoadError("the engine left out an output")
    (sparse,) = lexical_weights(batch.token_ids, output.token_weights, batch.lengths)
    embedding = _Embedding(output.dense, sparse, output.multi_vector[0])
    if not all(np.isfinite(part).all() for part in (embedding.dense, sparse.weights, embedding.vectors)):
        raise LoadError("the engine gave numbers that are not finite")
    return embedding


def _cosines(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """Of each row of a with the same row of b. [R]"""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)), np.float64)


def _compare(a: SparseRow, b: SparseRow) -> tuple[float, float]:
    """The share of ids that both have, of all that one has, and the largest difference of a weight (absent: 0)."""
    weights = dict(zip(a.ids.tolist(), a.weights.tolist(), strict=True))
    others = dict(zip(b.ids.tolist(), b.weights.tolist(), strict=True))
    union = weights.keys() | others.keys()
    if not union:
        return 1.0, 0.0
    error = max(abs(weights.get(each, 0.0) - others.get(each, 0.0)) for each in union)
    return len(weights.keys() & others.keys()) / len(union), error
