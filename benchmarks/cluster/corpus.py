"""Texts whose embeddings are known, so that an answer can be told from that of another text."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CALLS = 128
TOLERANCE = 2e-5
"""The largest difference of a number between a text alone and in a batch."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """
    `calls`: the texts of each of n calls, k in a call. `dense` float32 [generations, n, k, D]: what each generation of
    the model gives for them. Generations are told apart by their numbers, so that it can be seen which has answered.
    """

    calls: list[list[str]]
    dense: NDArray[np.float32]

    def generation_of(self, index: int, vectors: NDArray[np.float32]) -> int | None:
        """Which generation of the model gave these vectors [k, D] for a call's texts; None: none did."""
        differences = np.abs(self.dense[:, index] - vectors).max(axis=(1, 2))
        best = int(differences.argmin())
        return best if differences[best] <= TOLERANCE else None

    def check(self) -> None:
        """
        Looks whether every text and every generation can be told apart.

        Raises:
            SystemExit: they cannot.
        """
        rows = self.dense.reshape(-1, self.dense.shape[-1])
        for number, row in enumerate(rows[:-1]):
            nearest = float(np.abs(rows[number + 1 :] - row).max(axis=1).min())
            if nearest <= 2 * TOLERANCE:
                raise SystemExit(f"two answers are too much alike to tell them apart: {nearest:.1e}")


def make_calls(words: tuple[str, ...], texts: int, length: int, seed: int = 5) -> list[list[str]]:
    """CALLS calls of so many different texts, of so many words each."""
    chance = random.Random(seed)  # noqa: S311 - texts, not secrets
    return [[" ".join(chance.choices(words, k=length)) for _ in range(texts)] for _ in range(CALLS)]


def write_corpus(path: Path, corpus: Corpus) -> None:
    np.savez(path, calls=np.array(corpus.calls), dense=corpus.dense)


def read_corpus(path: Path) -> Corpus:
    with np.load(path) as arrays:
        return Corpus(arrays["calls"].tolist(), arrays["dense"])
