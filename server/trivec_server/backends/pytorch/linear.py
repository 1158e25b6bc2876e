"""Linear layers in each precision: as PyTorch has them, packed for the CPU, and in float8."""

import platform
from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from trivec_server.backends.hardware import cpu_has_bfloat16

FLOAT8 = torch.float8_e4m3fn
_FLOAT8_MAX = float(torch.finfo(FLOAT8).max)
_LEAST_SCALE = 1e-12
"""Of a row of zeros. A scale near the least number of float32 would make multiplying by its inverse overflow."""
_TYPICAL_ROWS = 128
"""The rows that oneDNN is told to lay weights out for; the layout suits others as well."""


RowQuantizer: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


class Linear(Protocol):
    """x W^T + b for x [N, in]; gives [N, out] in x's precision."""

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of the product, by the error function."""

    def widened(self) -> "Linear":
        """The same weights for x in float32. A copy, to be used once and dropped."""


class LinearKind(Protocol):
    """Makes a Linear of float32 weight [out, in] and bias [out]."""

    def __call__(self, weight: Tensor, bias: Tensor) -> Linear:
        """Neither argument is kept."""


class PlainLinear:
    """Weights in one of PyTorch's own precisions, on any device."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        return functional.linear(x, self._weight, self._bias)

    def gelu(self, x: Tensor) -> Tensor:
        """See Linear."""
        return functional.gelu(self(x))

    def widened(self) -> Linear:
        """See Linear."""
        return PlainLinear(self._weight.float(), self._bias.float())


class PackedLinear:
    """
    Weights on an x86 CPU in the layout that oneDNN multiplies fastest. F.linear brings them into it on each call, which
    takes as long as the arithmetic of a short query. GELU runs inside of the product.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)  # noqa: SLF001 - see can_pack
        self._bias = bias
        self._product = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001 - see can_pack

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        return self._product(x, self._weight, self._bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """See Linear."""
        return self._product(x, self._weight, self._bias, "gelu", [], "none")

    def widened(self) -> Linear:
        """See Linear."""
        return PlainLinear(self._weight.to_dense().float(), self._bias.float())


class Float8Linear:
    """
    Weights in float8 (e4m3) with a scale for each output, x in float8 with a scale for each row, found as it comes;
    the product is bfloat16. `quantize` does what `to_float8` does, perhaps in fewer steps.
    """

    def __init__(self, weight: Tensor, bias: Tensor, quantize: RowQuantizer | None = None) -> None:
        self._quantize = quantize or to_float8
        self._weight, scales = to_float8(weight)  # [out, in], [out, 1]
        self._scales = scales.view(1, -1)
        self._bias = bias.to(torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        rows, scales = self._quantize(x)
        return torch._scaled_mm(  # noqa: SLF001 - so do all who multiply float8; torch has no other name for long
            rows,
            self._weight.t(),
            scale_a=scales,
            scale_b=self._scales,
            bias=self._bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    def gelu(self, x: Tensor) -> Tensor:
        """See Linear."""
        return functional.gelu(self(x))

    def widened(self) -> Linear:
        """See Linear."""
        return PlainLinear(self._weight.float() * self._scales.t(), self._bias.float())


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Gives x [N, in] as float8 and the float32 scales [N, 1] that restore it. What is not finite stays so."""
    wide = x.float()
    scales = (wide.abs().amax(1, keepdim=True) / _FLOAT8_MAX).clamp_min(_LEAST_SCALE)
    return (wide / scales).to(FLOAT8), scales


def can_pack(dtype: torch.dtype) -> bool:
    """
    Whether PackedLinear works here. Its operations are those that torch.compile puts in for F.linear; not being public,
    they may be missing from another torch, which then gets PlainLinear.
    """
    if platform.machine() not in {"x86_64", "AMD64"} or not torch.backends.mkldnn.is_available():
        return False
    operations = torch.ops.mkldnn
    if not all(hasattr(operations, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and cpu_has_bfloat16())
