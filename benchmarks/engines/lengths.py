"""How long the texts of the workload are, in tokens. Needs NumPy alone."""

import statistics
from dataclasses import dataclass

import numpy as np

SPECIAL_TOKENS = 2
MIXED_MOST = 512
_MIXED_MEDIAN = 31.7
_MIXED_SPREAD = 1.05
_QUERY_MEAN, _QUERY_SPREAD = 12.0, 3.0
_QUERY_LEAST, _QUERY_MOST = 5, 24


@dataclass(frozen=True, slots=True)
class TextSet:
    """Texts and their lengths in tokens, both special ones included; no texts where only lengths count."""

    name: str
    texts: tuple[str, ...]
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def every(self, step: int) -> "TextSet":
        """Each `step`-th text."""
        return TextSet(self.name, self.texts[::step], self.lengths[::step])


def seeded(seed: int) -> np.random.Generator:
    """The workload's source of chance."""
    return np.random.default_rng(seed)


def query_lengths(count: int, random: np.random.Generator) -> list[int]:
    """Short queries: about 12 tokens, 5 to 24."""
    drawn = random.normal(_QUERY_MEAN, _QUERY_SPREAD, count)
    return [int(length) for length in np.clip(np.rint(drawn), _QUERY_LEAST, _QUERY_MOST)]


def mixed_lengths(count: int, random: np.random.Generator) -> list[int]:
    """
    A mixed corpus: the quantiles of a lognormal distribution, in random order, so that few texts stand for many: 54
    tokens on average, 512 at most.
    """
    normal = [statistics.NormalDist().inv_cdf((number + 0.5) / count) for number in range(count)]
    lengths = np.rint(_MIXED_MEDIAN * np.exp(_MIXED_SPREAD * np.array(normal)))
    return [int(length) for length in random.permutation(np.clip(lengths, SPECIAL_TOKENS + 1, MIXED_MOST))]
