"""
Random numbers that are the same on every machine and with every NumPy.

Only the raw 64-bit words of PCG64 are used: NumPy promises that stream for good, unlike its distributions.
"""

import numpy as np
from numpy.typing import NDArray


class RandomNumbers:
    """A stream of numbers from one seed."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.PCG64(seed)

    def uniform(self, shape: tuple[int, ...], *, limit: float) -> NDArray[np.float32]:
        """Numbers from -limit to limit, float32, each exactly representable in float16."""
        count = int(np.prod(shape))
        words = self._words.random_raw((count + 3) // 4)
        steps = words.astype("<u8").view("<i2")[:count].astype(np.float32)
        scaled = steps * np.float32(limit / 32768)
        return scaled.astype(np.float16).astype(np.float32).reshape(shape)

    def below(self, limit: int) -> int:
        """An integer from 0 to limit - 1. Biased by less than 1 in 2**32 for small limits, which is no matter here."""
        return int(self._words.random_raw()) % limit
