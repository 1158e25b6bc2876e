"""The encoder: embeddings and post-layer-norm transformer layers, BERT or XLM-RoBERTa, over texts on one token axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from trivec_server.backends.graph.spec import EncoderSpec
from trivec_server.backends.pytorch.attention import Attention, attend_by_length
from trivec_server.backends.pytorch.batch import DeviceBatch
from trivec_server.backends.pytorch.linear import Linear, LinearKind
from trivec_server.backends.pytorch.weights import CheckedTensors, Table, word_table

AddNorm: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""Layer norm of the sum of two tensors [N, hidden], by weight, bias and epsilon."""


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See AddNorm."""
    return functional.layer_norm(x + residual, weight.shape, weight, bias, eps)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """
    How an encoder computes: where, in which type it keeps activations, what its linear layers are, how it attends, and
    what does the work of `add_norm` in this type, if that is faster than the two steps one after the other.
    """

    device: torch.device
    dtype: torch.dtype
    linear: LinearKind
    attention: Attention = attend_by_length
    add_norm: AddNorm | None = None


class LayerNorm:
    """Layer norm with its parameters in float32, or in the input's type where a device takes no others."""

    def __init__(self, tensors: CheckedTensors, prefix: str, spec: EncoderSpec, arithmetic: Arithmetic) -> None:
        names = (f"{prefix}.weight", f"{prefix}.bias")
        exact = [tensors.float32(name, (spec.hidden,)).to(arithmetic.device) for name in names]
        self._shape = (spec.hidden,)
        self._eps = spec.layer_norm_eps
        self._exact = exact
        # CUDA's layer norm wants all in one type; the CPU's takes float32 parameters with any input.
        self._own = exact if arithmetic.device.type == "cpu" else [each.to(arithmetic.dtype) for each in exact]
        self._add_norm = arithmetic.add_norm

    def __call__(self, x: Tensor) -> Tensor:
        """Normalizes x [N, hidden], in its type."""
        weight, bias = self._exact if x.dtype is torch.float32 else self._own
        return functional.layer_norm(x, self._shape, weight, bias, self._eps)

    def of_sum(self, x: Tensor, residual: Tensor) -> Tensor:
        """Normalizes x + residual; x is overwritten."""
        if self._add_norm is None or x.dtype is torch.float32:
            return self(x.add_(residual))
        weight, bias = self._own
        return self._add_norm(x, residual, weight, bias, self._eps)


@dataclass(frozen=True, slots=True)
class Layer:
    """The parts of one transformer layer that have weights; `qkv` gives queries, keys and values side by side."""

    qkv: Linear
    context: Linear
    context_norm: LayerNorm
    inner: Linear
    outer: Linear
    outer_norm: LayerNorm

    def widened(self) -> "Layer":
        """The same layer for float32; a copy of its matrices."""
        matrices = (self.qkv, self.context, self.inner, self.outer)
        qkv, context, inner, outer = (each.widened() for each in matrices)
        return Layer(qkv, context, self.context_norm, inner, outer, self.outer_norm)


class Encoder:
    """
    The formulas are those of transformers' BertModel and XLMRobertaModel: GELU by the error function, layer norm after
    each residual sum. Embeddings are summed and normalized in float32.

    Raises:
        LoadError: a tensor is missing, damaged, not finite, or of another shape than the spec says.
    """

    def __init__(self, spec: EncoderSpec, tensors: CheckedTensors, arithmetic: Arithmetic) -> None:
        self._spec = spec
        self._arithmetic = arithmetic
        device, dtype = arithmetic.device, arithmetic.dtype
        self._words = word_table(tensors, spec, device, dtype)
        positions = tensors.mapped("embeddings.position_embeddings.weight", (spec.max_positions, spec.hidden))
        self._positions = Table(positions, device, dtype)
        types = tensors.float32("embeddings.token_type_embeddings.weight", (None, spec.hidden))
        self._type = types[0].clone().to(device)
        self._norm = LayerNorm(tensors, "embeddings.LayerNorm", spec, arithmetic)
        self._layers = [self._load_layer(tensors, f"encoder.layer.{number}") for number in range(spec.layers)]

    def embed(self, batch: DeviceBatch) -> Tensor:
        """The sum of each token's embeddings, normalized: float32 [N, hidden]."""
        total = self._words.rows(batch.token_ids).float() + self._type
        return self._norm(total.add_(self._positions.rows(batch.positions)))

    def __call__(self, batch: DeviceBatch) -> Tensor:
        """The last hidden state, [N, hidden], in the type of the arithmetic."""
        hidden = self.embed(batch).to(self._arithmetic.dtype)
        for layer in self._layers:
            hidden = self._run(layer, hidden, batch, self._arithmetic.attention)
        return hidden

    def exact(self, batch: DeviceBatch) -> Tensor:
        """The same in float32, of weights as they are: each layer is widened while it runs, so this is slow."""
        hidden = self.embed(batch)
        for layer in self._layers:
            hidden = self._run(layer.widened(), hidden, batch, attend_by_length)
        return hidden

    def _run(self, layer: Layer, hidden: Tensor, batch: DeviceBatch, attention: Attention) -> Tensor:
        context = layer.context(attention(layer.qkv(hidden), batch, self._spec.heads))
        hidden = layer.context_norm.of_sum(context, hidden)
        outer = layer.outer(layer.inner.gelu(hidden))
        return layer.outer_norm.of_sum(outer, hidden)

    def _load_layer(self, tensors: CheckedTensors, prefix: str) -> Layer:
        spec, arithmetic = self._spec, self._arithmetic
        hidden, inner = spec.hidden, spec.intermediate

        def linear(*names: str, inputs: int, outputs: int) -> Linear:
            pairs = [tensors.linear(f"{prefix}.{name}", inputs, outputs) for name in names]
            weights, biases = zip(*pairs, strict=True)
            return arithmetic.linear(_joined(weights), torch.cat(biases))

        def norm(name: str) -> LayerNorm:
            return LayerNorm(tensors, f"{prefix}.{name}", spec, arithmetic)

        parts = [f"attention.self.{part}" for part in ("query", "key", "value")]
        return Layer(
            qkv=linear(*parts, inputs=hidden, outputs=hidden),
            context=linear("attention.output.dense", inputs=hidden, outputs=hidden),
            context_norm=norm("attention.output.LayerNorm"),
            inner=linear("intermediate.dense", inputs=hidden, outputs=inner),
            outer=linear("output.dense", inputs=inner, outputs=hidden),
            outer_norm=norm("output.LayerNorm"),
        )


def _joined(weights: Sequence[Tensor]) -> Tensor:
    """Matrices [outputs, inputs] as one of all outputs, without transposing what lies transposed in memory."""
    if len(weights) == 1:
        return weights[0]
    if weights[0].is_contiguous():
        return torch.cat(tuple(weights))
    return torch.cat([weight.t() for weight in weights], dim=1).t()
