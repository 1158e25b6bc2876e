"""
Runs FlagEmbedding on one model in a process of its own: `python flagembedding_run.py MODEL_DIR QUESTIONS.json OUT.npz`.

`tests/numerics/reference.py` starts it, names the content of both files and reads the answer. It stands alone, so that
what FlagEmbedding and transformers do at import (warnings, logging, progress bars) stays out of the test process.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from FlagEmbedding import BGEM3FlagModel

_LONG_CHARACTERS = 600
_BATCH_SIZE = 16
_SCORES = ("dense", "sparse", "colbert", "sparse+dense", "colbert+sparse+dense")


def _encode(model: Any, texts: list[str], max_length: int) -> dict[str, list[Any]]:
    """
    Encodes short texts in batches and long ones alone: FlagEmbedding pads a batch to its longest text.

    Returns:
        `dense_vecs`, `lexical_weights` and `colbert_vecs`, one entry per text, in the order of `texts`.
    """
    answers: dict[str, list[Any]] = {
        name: [None] * len(texts) for name in ("dense_vecs", "lexical_weights", "colbert_vecs")
    }
    short = [index for index, text in enumerate(texts) if len(text) <= _LONG_CHARACTERS]
    long = [index for index, text in enumerate(texts) if len(text) > _LONG_CHARACTERS]
    for indices, batch_size in ((short, _BATCH_SIZE), (long, 1)):
        if not indices:
            continue
        output = model.encode(
            [texts[index] for index in indices],
            batch_size=batch_size,
            max_length=max_length,
            return_dense=True,
            return_sparse=True,
            return_colbert_vecs=True,
        )
        for name, values in answers.items():
            for position, index in enumerate(indices):
                values[index] = output[name][position]
    return answers


def _flatten(answers: dict[str, list[Any]], token_ids: list[list[int]]) -> dict[str, np.ndarray]:
    """One array per kind of number: the texts' parts one after the other, and the count of each."""
    sparse = [sorted((int(key), float(weight)) for key, weight in item.items()) for item in answers["lexical_weights"]]
    return {
        "token_ids": np.array([token for ids in token_ids for token in ids], dtype=np.int64),
        "token_counts": np.array([len(ids) for ids in token_ids], dtype=np.int64),
        "dense": np.stack(answers["dense_vecs"]).astype(np.float32),
        "sparse_ids": np.array([key for item in sparse for key, _ in item], dtype=np.int64),
        "sparse_weights": np.array([weight for item in sparse for _, weight in item], dtype=np.float32),
        "sparse_counts": np.array([len(item) for item in sparse], dtype=np.int64),
        "multi_vector": np.concatenate(answers["colbert_vecs"]).astype(np.float32),
    }


def _scores(model: Any, pairs: list[tuple[str, str]], weights: list[float], max_length: int) -> tuple[Any, Any]:
    """Scores every pair by itself, and all short ones in one batch; both [pairs, 5], NaN where not computed."""
    settings = {
        "max_query_length": max_length,
        "max_passage_length": max_length,
        "weights_for_different_modes": weights,
    }
    alone = np.full((len(pairs), len(_SCORES)), np.nan, dtype=np.float64)
    together = alone.copy()
    for row, pair in enumerate(pairs):
        answer = model.compute_score([pair], batch_size=1, **settings)
        alone[row] = [answer[name][0] for name in _SCORES]
    short = [row for row, pair in enumerate(pairs) if max(map(len, pair)) <= _LONG_CHARACTERS]
    answer = model.compute_score([pairs[row] for row in short], batch_size=len(short), **settings)
    together[short] = np.array([answer[name] for name in _SCORES]).T
    return alone, together


def main(model_dir: str, questions_path: str, out_path: str) -> None:
    """Answers the questions and writes the answers as float32 and int64 arrays."""
    questions = json.loads(Path(questions_path).read_text(encoding="utf-8"))
    texts, pairs, max_length = questions["texts"], [tuple(pair) for pair in questions["pairs"]], questions["max_length"]
    model = BGEM3FlagModel(model_dir, use_fp16=False, devices="cpu")

    nearest_to_zero = [np.inf]

    def watch_token_weights(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        nearest_to_zero.append(float(output.abs().min()))

    model.model.sparse_linear.register_forward_hook(watch_token_weights)
    token_ids = model.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    arrays = _flatten(_encode(model, texts, max_length), token_ids)
    scores = [_scores(model, pairs, weights, max_length) for weights in questions["weightings"]] if pairs else []
    packages = ("FlagEmbedding", "torch", "transformers", "tokenizers", "numpy")
    arrays |= {
        "scores_alone": np.array([alone for alone, _ in scores]),
        "scores_together": np.array([together for _, together in scores]),
        "nearest_to_zero": np.array(min(nearest_to_zero)),
        "versions": np.array([f"{name}=={version(name)}" for name in packages]),
    }
    np.savez(out_path, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
