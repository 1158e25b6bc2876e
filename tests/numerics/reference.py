"""What FlagEmbedding answers: runs it in a process of its own and reads the answers."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.numerics.embeddings import TextEmbedding
from tests.numerics.models import MAX_TOKENS

_SCRIPT = Path(__file__).with_name("flagembedding_run.py")


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    """
    FlagEmbedding's answers.

    `token_ids` has one int64 array per text. `scores_alone` and `scores_together` are float64
    [weightings, pairs, 5] in the order dense, sparse, multi-vector, sparse + dense, hybrid: each pair scored by
    itself, and all short pairs in one padded batch (NaN for long ones). `nearest_to_zero` is the token weight nearest
    to zero before ReLU: whether an id is in a sparse vector hangs on its sign.
    """

    token_ids: list[NDArray[np.int64]]
    embeddings: list[TextEmbedding]
    scores_alone: NDArray[np.float64]
    scores_together: NDArray[np.float64]
    nearest_to_zero: float
    versions: tuple[str, ...]


def ask_reference(
    model_dir: Path,
    work_dir: Path,
    texts: Sequence[str],
    pairs: Sequence[tuple[str, str]] = (),
    weightings: Sequence[tuple[float, float, float]] = (),
    *,
    max_tokens: int = MAX_TOKENS,
) -> ReferenceAnswers:
    """
    Encodes `texts` and scores `pairs` with FlagEmbedding in float32 on the CPU.

    Args:
        model_dir: A model in Hugging Face's layout.
        work_dir: An existing directory for the two files that are passed.
        texts: The texts to encode.
        pairs: (query, passage).
        weightings: Factors for dense, sparse and multi-vector; every pair is scored with each.
        max_tokens: Longer texts are truncated on the right.

    Raises:
        RuntimeError: FlagEmbedding failed; the message ends with what it printed.
    """
    questions, answers = work_dir / "questions.json", work_dir / "answers.npz"
    content = {"texts": list(texts), "pairs": list(pairs), "weightings": list(weightings), "max_length": max_tokens}
    questions.write_text(json.dumps(content), encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(_SCRIPT), str(model_dir), str(questions), str(answers)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"FlagEmbedding failed with exit code {finished.returncode}:\n{finished.stderr[-2000:]}")
    with np.load(answers, allow_pickle=False) as arrays:
        return _read(dict(arrays.items()))


def _read(arrays: dict[str, NDArray[np.generic]]) -> ReferenceAnswers:
    token_counts = arrays["token_counts"].astype(np.int64)
    token_ids = np.split(arrays["token_ids"].astype(np.int64), np.cumsum(token_counts)[:-1])
    sparse_ends = np.cumsum(arrays["sparse_counts"].astype(np.int64))[:-1]
    sparse_ids = np.split(arrays["sparse_ids"].astype(np.int64), sparse_ends)
    sparse_weights = np.split(arrays["sparse_weights"].astype(np.float32), sparse_ends)
    multi_vectors = np.split(arrays["multi_vector"].astype(np.float32), np.cumsum(token_counts - 1)[:-1])
    dense = arrays["dense"].astype(np.float32)
    embeddings = [
        TextEmbedding(int(count), *parts)
        for count, *parts in zip(token_counts, dense, sparse_ids, sparse_weights, multi_vectors, strict=True)
    ]
    return ReferenceAnswers(
        token_ids=token_ids,
        embeddings=embeddings,
        scores_alone=arrays["scores_alone"].astype(np.float64),
        scores_together=arrays["scores_together"].astype(np.float64),
        nearest_to_zero=float(arrays["nearest_to_zero"].astype(np.float64)),
        versions=tuple(str(entry) for entry in arrays["versions"]),
    )
