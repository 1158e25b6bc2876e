"""
FlagEmbedding's answers in small committed files, so that parity is checked where torch is not installed.

`python -m tests.numerics.golden` (that is `make golden`, where torch and FlagEmbedding are installed) writes one file
per model beside this module. Kept whole: dense vectors, sparse vectors, scores, token counts. Kept in part, for size:
of each multi-vector a few whole rows and, for every row, its inner product with one fixed unit vector; of the token
ids a SHA-256 for each text.
"""

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.numerics import models, texts
from tests.numerics.embeddings import TOLERANCE, Differences, TextEmbedding, compare_sparse, name_text
from tests.numerics.random_numbers import RandomNumbers
from tests.numerics.reference import ReferenceAnswers, ask_reference

GOLDEN_DIR = Path(__file__).with_name("golden")
_SMALLEST_TOKEN_WEIGHT = 2e-6
_PROJECTION_SEED = 99


@dataclass(frozen=True, slots=True)
class Golden:
    """
    One golden file. `rows` are the whole rows of all multi-vectors, one text after the other, as `sampled_rows`
    picks them; `projections` has one number for each row of all multi-vectors. Scores as in ReferenceAnswers.
    """

    model_digest: str
    texts_digest: str
    versions: tuple[str, ...]
    token_counts: NDArray[np.int64]
    token_digests: tuple[str, ...]
    dense: NDArray[np.float32]
    sparse_counts: NDArray[np.int64]
    sparse_ids: NDArray[np.int64]
    sparse_weights: NDArray[np.float32]
    rows: NDArray[np.float32]
    projections: NDArray[np.float32]
    scores_alone: NDArray[np.float64]
    scores_together: NDArray[np.float64]


def golden_path(shape: models.ModelShape) -> Path:
    """Where the golden file of a model lies."""
    return GOLDEN_DIR / f"{shape.name}.npz"


def read_golden(shape: models.ModelShape) -> Golden:
    """Reads the golden file of a model."""
    with np.load(golden_path(shape), allow_pickle=False) as file:
        arrays = dict(file.items())
    return Golden(
        model_digest=str(arrays["model_digest"]),
        texts_digest=str(arrays["texts_digest"]),
        versions=tuple(arrays["versions"].tolist()),
        token_counts=arrays["token_counts"].astype(np.int64),
        token_digests=tuple(arrays["token_digests"].tolist()),
        dense=arrays["dense"],
        sparse_counts=arrays["sparse_counts"].astype(np.int64),
        sparse_ids=arrays["sparse_ids"].astype(np.int64),
        sparse_weights=arrays["sparse_weights"],
        rows=arrays["rows"],
        projections=arrays["projections"],
        scores_alone=arrays["scores_alone"],
        scores_together=arrays["scores_together"],
    )


def write_golden(shape: models.ModelShape, model_digest: str, answers: ReferenceAnswers) -> None:
    """Writes the golden file of a model."""
    embeddings = answers.embeddings
    multi_vectors = [embedding.multi_vector for embedding in embeddings]
    direction = projection_direction(shape.hidden_size)
    np.savez_compressed(
        golden_path(shape),
        model_digest=np.array(model_digest),
        texts_digest=np.array(texts.digest()),
        versions=np.array(answers.versions),
        token_counts=np.array([embedding.token_count for embedding in embeddings], dtype=np.uint32),
        token_digests=np.array([digest_ids(ids) for ids in answers.token_ids]),
        dense=np.stack([embedding.dense for embedding in embeddings]),
        sparse_counts=np.array([len(embedding.sparse_ids) for embedding in embeddings], dtype=np.uint32),
        sparse_ids=np.concatenate([embedding.sparse_ids for embedding in embeddings]).astype(np.uint32),
        sparse_weights=np.concatenate([embedding.sparse_weights for embedding in embeddings]),
        rows=np.concatenate([rows[sampled_rows(index, len(rows))] for index, rows in enumerate(multi_vectors)]),
        projections=np.concatenate([rows @ direction for rows in multi_vectors]).astype(np.float32),
        scores_alone=answers.scores_alone,
        scores_together=answers.scores_together,
    )


def compare_with_golden(
    golden: Golden, actual: Sequence[TextEmbedding], all_texts: Sequence[str], *, tolerance: float = TOLERANCE
) -> Differences:
    """Compares embeddings of all texts with what the golden file keeps of them."""
    differences = Differences(tolerance)
    sparse_ends = np.cumsum(golden.sparse_counts)[:-1]
    sparse = zip(np.split(golden.sparse_ids, sparse_ends), np.split(golden.sparse_weights, sparse_ends), strict=True)
    samples = [sampled_rows(index, int(count) - 1) for index, count in enumerate(golden.token_counts)]
    rows = np.split(golden.rows, np.cumsum([len(sample) for sample in samples])[:-1])
    projections = np.split(golden.projections, np.cumsum(golden.token_counts - 1)[:-1])
    direction = projection_direction(golden.dense.shape[1])
    for index, (ours, (ids, weights)) in enumerate(zip(actual, sparse, strict=True)):
        where = name_text(index, all_texts[index])
        if ours.token_count != golden.token_counts[index] or len(ours.multi_vector) != ours.token_count - 1:
            differences.faults.append(f"{where}: {ours.token_count} tokens, not {golden.token_counts[index]}")
            continue
        differences.widen("dense", ours.dense, golden.dense[index], where)
        compare_sparse(differences, ours, ids, weights, where)
        differences.widen("multi_vector", ours.multi_vector[samples[index]], rows[index], where)
        differences.widen("multi_vector", ours.multi_vector @ direction, projections[index], where)
    return differences


def sampled_rows(text_index: int, rows: int) -> list[int]:
    """The rows of a multi-vector that are kept whole: the first, the last and one between, ascending."""
    between = RandomNumbers(text_index).below(rows)
    return sorted({0, between, rows - 1})


def projection_direction(dimension: int) -> NDArray[np.float32]:
    """The unit vector that every row is projected on, [dimension]."""
    direction = RandomNumbers(_PROJECTION_SEED).uniform((dimension,), limit=1.0)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


def digest_ids(token_ids: NDArray[np.int64]) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over token ids as little-endian int64."""
    return hashlib.sha256(token_ids.astype("<i8").tobytes()).hexdigest()[:16]


def make_golden(shape: models.ModelShape) -> ReferenceAnswers:
    """
    Asks FlagEmbedding and writes the golden file of a model.

    Raises:
        RuntimeError: FlagEmbedding failed, or a token weight is so near to zero that rounding may decide whether its
            id is in a sparse vector; another seed mends that.
    """
    with tempfile.TemporaryDirectory() as directory:
        model_dir = Path(directory) / shape.name
        model_dir.mkdir()
        model_digest = models.write_model(shape, model_dir)
        answers = ask_reference(model_dir, Path(directory), texts.all_texts(), texts.score_pairs(), texts.SCORE_WEIGHTS)
    if answers.nearest_to_zero < _SMALLEST_TOKEN_WEIGHT:
        raise RuntimeError(f"{shape.name}: a token weight is {answers.nearest_to_zero:.1e}; choose another seed")
    write_golden(shape, model_digest, answers)
    return answers


def main() -> None:
    """Writes all golden files."""
    for shape in models.SHAPES:
        answers = make_golden(shape)
        size = golden_path(shape).stat().st_size
        sys.stdout.write(f"{golden_path(shape).name}: {len(answers.embeddings)} texts, {size} bytes, ")
        sys.stdout.write(f"token weight nearest to zero {answers.nearest_to_zero:.1e}\n")


if __name__ == "__main__":
    main()
