"""
The check that a loaded version must pass before it serves: fixed texts, all modes, alone and in a batch.

It catches what otherwise shows as silently bad search results: a head that was never trained or loaded, dimensions
other than declared, numbers that are not finite, padding that leaks into results.
"""

import numpy as np
from numpy.typing import NDArray

from trivec_server.backends.interface import EngineInfo, EngineOutput, TokenBatch, Vectors
from trivec_server.errors import LoadError
from trivec_server.serving.embed_run import EmbedDevice, run_alone
from trivec_server.serving.encode import lexical_weights
from trivec_server.serving.tokenizer import Tokenizer, truncate
from trivec_server.serving.word_cache import unpack_ids
from trivec_server.types import InputType, Mode, Truncation

_TEXTS = (
    "Photosynthesis turns sunlight, water and carbon dioxide into sugar and oxygen.",
    "人工智能是研究、开发用于模拟人类智能的理论与技术的科学。",
    "",
    "El tren nocturno a Lisboa sale a las nueve y media del andén siete, si no hay huelga de maquinistas.",
)
_EMPTY_TEXT_INDEX = 2
_NORM_TOLERANCE = 1e-3
_BATCH_TOLERANCE = {"float32": 1e-4}
_REDUCED_PRECISION_BATCH_TOLERANCE = 3e-2


def check_version(device: EmbedDevice, info: EngineInfo, tokenizer: Tokenizer, max_tokens: int) -> None:
    """
    Runs the self-check on a device that does not serve yet. Blocks.

    Raises:
        LoadError: the first property that does not hold, with the numbers seen.
    """
    packed = tokenizer.encode(_TEXTS, InputType.NONE)
    sequences = [unpack_ids(truncate(ids, max_tokens, Truncation.RIGHT)) for ids in packed]
    _check_ids(sequences, info.vocabulary_size)
    batch = token_batch(sequences)
    together = run_alone(device, batch, Mode.HYBRID)
    _check_shapes(together, batch, info)
    _check_finite(together)
    _check_values(together, batch)
    tolerance = _BATCH_TOLERANCE.get(info.precision, _REDUCED_PRECISION_BATCH_TOLERANCE)
    start = 0
    for index, ids in enumerate(sequences):
        single = token_batch([ids])
        alone = run_alone(device, single, Mode.HYBRID)
        _check_shapes(alone, single, info)
        _check_finite(alone)
        _check_alone(alone, together, index, slice(start, start + len(ids)), tolerance)
        start += len(ids)


def token_batch(sequences: list[list[int]]) -> TokenBatch:
    """Lays token sequences flat."""
    lengths = np.array([len(ids) for ids in sequences], np.int64)
    return TokenBatch(np.concatenate([np.array(ids, np.int64) for ids in sequences]), lengths)


def _fail(what: str) -> LoadError:
    return LoadError(f"self-check failed: {what}; the model's files do not fit together: pull it again")


def _check_ids(sequences: list[list[int]], vocabulary_size: int) -> None:
    largest = max(max(ids) for ids in sequences)
    if largest >= vocabulary_size:
        raise _fail(f"the tokenizer gives id {largest}, the model has {vocabulary_size} ids")


def _check_shapes(output: EngineOutput, batch: TokenBatch, info: EngineInfo) -> None:
    rows = len(batch.lengths)
    if output.dense is None or output.dense.shape != (rows, info.dense_dimension):
        raise _fail(f"dense has shape {_shape(output.dense)}, declared [{rows}, {info.dense_dimension}]")
    if output.token_weights is None or output.token_weights.shape != batch.token_ids.shape:
        raise _fail(f"sparse has {_shape(output.token_weights)} weights for {batch.token_ids.shape} tokens")
    vectors = output.multi_vector
    if vectors is None or len(vectors) != rows:
        raise _fail("multi_vector is missing")
    for length, matrix in zip(batch.lengths.tolist(), vectors, strict=True):
        if matrix.shape != (length - 1, info.multi_vector_dimension):
            declared = f"[{length - 1}, {info.multi_vector_dimension}]"
            raise _fail(f"multi_vector has shape {matrix.shape}, declared {declared}")

    dense, weights, _ = _parts(output)
    for name, array in (("dense", dense), ("sparse", weights), *(("multi_vector", matrix) for matrix in vectors)):
        # Vectors are sent as they lie in memory.
        if array.dtype != np.float32:
            raise _fail(f"{name} has numbers of type {array.dtype}, must be float32")


def _check_finite(output: EngineOutput) -> None:
    dense, weights, vectors = _parts(output)
    for name, array in (("dense", dense), ("sparse", weights), ("multi_vector", np.concatenate(vectors))):
        if not np.isfinite(array).all():
            raise _fail(f"{name} has numbers that are not finite")


def _check_values(output: EngineOutput, batch: TokenBatch) -> None:
    dense, weights, vectors = _parts(output)
    for name, rows in (("dense", dense), ("multi_vector", np.concatenate(vectors))):
        norms = np.linalg.norm(rows, axis=1)
        if np.abs(norms - 1).max() > _NORM_TOLERANCE:
            raise _fail(f"{name} has vectors of length {norms.min():.4f} to {norms.max():.4f}, must be 1")
    if weights.min() < 0:
        raise _fail(f"sparse has a negative weight, {weights.min():.4f}")
    for index, row in enumerate(lexical_weights(batch.token_ids, weights, batch.lengths)):
        if index != _EMPTY_TEXT_INDEX and not len(row.ids):
            raise _fail(f"the sparse vector of {_TEXTS[index]!r} is empty: the sparse head is missing or untrained")


def _check_alone(alone: EngineOutput, together: EngineOutput, index: int, tokens: slice, tolerance: float) -> None:
    """The text alone must give what it gave in the batch."""
    dense, weights, vectors = _parts(alone)
    batch_dense, batch_weights, batch_vectors = _parts(together)
    pairs = (
        ("dense", dense[0], batch_dense[index]),
        ("sparse", weights, batch_weights[tokens]),
        ("multi_vector", vectors[0], batch_vectors[index]),
    )
    for name, one, other in pairs:
        difference = float(np.abs(one - other).max())
        if difference > tolerance:
            raise _fail(f"{name} of a text differs by {difference:.2e} alone and in a batch, more than {tolerance:.0e}")


def _parts(output: EngineOutput) -> tuple[Vectors, NDArray[np.float32], list[Vectors]]:
    if output.dense is None or output.token_weights is None or output.multi_vector is None:
        raise _fail("an output is missing")
    return output.dense, output.token_weights, list(output.multi_vector)


def _shape(array: Vectors | None) -> str:
    return "none" if array is None else str(list(array.shape))
