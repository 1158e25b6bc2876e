"""
What the encoder costs in arithmetic. Per token and layer, H hidden and I intermediate: four products with [H, H] and
two with [H, I], 2 FLOP a weight; attention over L tokens, 4 H L. The heads add less than 0.4 % and are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What a model's cost depends on."""

    layers: int
    hidden: int
    intermediate: int

    @property
    def linear_flops_per_token(self) -> int:
        """604 million for BGE-M3."""
        return 2 * self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)

    @property
    def attention_flops_per_token_pair(self) -> int:
        """98,304 for BGE-M3: times L for a token of a text of L tokens."""
        return 4 * self.layers * self.hidden

    def flops(self, lengths: Sequence[int]) -> float:
        """For texts of these lengths in tokens, nothing spent on padding."""
        pairs = float(sum(length * length for length in lengths))
        return float(self.linear_flops_per_token) * sum(lengths) + self.attention_flops_per_token_pair * pairs


BGE_M3 = EncoderShape(layers=24, hidden=1024, intermediate=4096)
