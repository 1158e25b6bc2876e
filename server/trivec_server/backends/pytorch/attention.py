"""Attention over texts on one token axis: no token is padded, none sees another text."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from trivec_server.backends.pytorch.batch import DeviceBatch, Run

Attention: TypeAlias = Callable[[Tensor, DeviceBatch, int], Tensor]
"""From queries, keys and values side by side, [N, 3 hidden], a batch and the number of heads to [N, hidden]."""


def attend_by_length(qkv: Tensor, batch: DeviceBatch, heads: int) -> Tensor:
    """On any device, in any precision: one call for all texts of equal length. Needs no memory for the scores."""
    contexts = [_attend(qkv, run, heads) for run in batch.layout.runs]
    return contexts[0] if len(contexts) == 1 else torch.cat(contexts)


def _attend(qkv: Tensor, run: Run, heads: int) -> Tensor:
    rows = qkv[run.start : run.start + run.count * run.length]
    split = rows.view(run.count, run.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = split  # [count, heads, length, head size] each
    context = functional.scaled_dot_product_attention(query, key, value)
    return context.transpose(1, 2).reshape(len(rows), -1)


def packed_attention(dtype: torch.dtype, head_size: int, compute_capability: tuple[int, int]) -> Attention | None:
    """
    Flash attention by cumulative lengths on a CUDA device: one call for all texts. It can run in a CUDA graph.

    Returns:
        None where it does not exist: float32, GPUs before Ampere, head sizes that are no multiple of 8 or above 256.
    """
    if dtype not in {torch.float16, torch.bfloat16} or compute_capability < (8, 0) or head_size % 8 or head_size > 256:
        return None
    for module, function in (("torch.nn.attention.varlen", "varlen_attn"), ("flash_attn", "flash_attn_varlen_func")):
        if find_spec(module) is not None:
            return by_bounds(getattr(import_module(module), function))
    return None


def by_bounds(attend: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]) -> Attention:
    """
    Attention by a function that takes queries, keys and values [N, heads, head size], the bounds of queries and of keys
    [B + 1], and the most of each in one text.
    """

    def attention(qkv: Tensor, batch: DeviceBatch, heads: int) -> Tensor:
        query, key, value = qkv.view(qkv.shape[0], 3, heads, -1).unbind(1)  # [N, heads, head size] each
        longest = batch.layout.max_length
        return attend(query, key, value, batch.bounds, batch.bounds, longest, longest).flatten(1)

    return attention
