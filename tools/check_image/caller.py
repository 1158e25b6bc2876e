"""Calls a server as a client does; run inside the container's network. Prints what it got as JSON."""

import json
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
from trivec_client import RetryPolicy, TrivecClient

_TEXTS = ["人工智能", "Artificial intelligence is a field of research.", "Bananas are yellow."]
_LONG_TEXT = "many words " * 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """
    What the models answered. `engines` by model; of the first model the shape of the dense vectors, and how many words
    and token vectors each text has; the least cosine between its dense vectors and another model's.
    """

    engines: dict[str, str]
    dense: list[int]
    words: list[int]
    tokens: list[int]
    least_cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """What a long request was answered: rows, whether they are of unit length, and when, by the monotonic clock."""

    rows: int
    are_unit: bool
    ended_at: float


def main() -> None:
    """`TARGET ask MODEL...`: all three embeddings of every model. `TARGET work MODEL TEXTS`: one long request."""
    target, task, *rest = sys.argv[1:]
    print(json.dumps(asdict(_ask(target, rest) if task == "ask" else _work(target, rest[0], int(rest[1])))))


def _client(target: str, model: str) -> TrivecClient:
    # Tried once: an answer is lost where it would be sent again otherwise.
    return TrivecClient(target, model=model, timeout_s=120, batch_size=1024, retry=RetryPolicy(max_attempts=1))


def _ask(target: str, models: list[str]) -> Asked:
    engines = {}
    outputs = []
    for model in models:
        with _client(target, model) as client:
            engines[model] = client.get_model().engine
            outputs.append(client.encode(_TEXTS, return_dense=True, return_sparse=True, return_colbert_vecs=True))
    first, *others = outputs
    dense = np.asarray(first["dense_vecs"])
    cosines = [float((dense * np.asarray(other["dense_vecs"])).sum(axis=1).min()) for other in others]
    return Asked(
        engines=engines,
        dense=list(dense.shape),
        words=[len(weights) for weights in first["lexical_weights"] or ()],
        tokens=[len(vectors) for vectors in first["colbert_vecs"] or ()],
        least_cosine=min(cosines, default=1.0),
    )


def _work(target: str, model: str, texts: int) -> Worked:
    with _client(target, model) as client:
        rows = np.asarray(client.encode([_LONG_TEXT] * texts, max_length=512)["dense_vecs"])
        ended_at = time.monotonic()
    norms = np.linalg.norm(rows, axis=1)
    return Worked(rows=len(rows), are_unit=bool(np.allclose(norms, 1, atol=1e-3)), ended_at=ended_at)


if __name__ == "__main__":
    main()
