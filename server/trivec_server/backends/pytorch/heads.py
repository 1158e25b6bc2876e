"""The three heads, on the encoder's device, and the sparse vectors made of token weights there."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trivec_server.backends.graph.spec import NORM_EPS, EncoderSpec, HeadsSpec
from trivec_server.backends.pytorch.batch import DeviceBatch
from trivec_server.backends.pytorch.encoder import Arithmetic
from trivec_server.backends.pytorch.linear import PlainLinear
from trivec_server.backends.pytorch.weights import CheckedTensors
from trivec_server.types import SPARSE_EXCLUDED_TOKEN_IDS, Mode

_FIRST_SPARSE_ID = max(SPARSE_EXCLUDED_TOKEN_IDS) + 1
_ID_BITS = 32
_DROPPED = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Parts:
    """
    What the heads give for a sorted batch; None if not asked for.

    `dense` [B, D], the longest text first; `token_weights` float32 [N] and `multi_vector` [N - B, D], in the order of
    the sorted tokens; `bad` int32 [B]: not 0 if the text with this number in the batch has a value that is not finite.
    """

    dense: Tensor | None
    token_weights: Tensor | None
    multi_vector: Tensor | None
    bad: Tensor


class Heads:
    """
    The formulas are those of FlagEmbedding 1.4.2, `m3/modeling.py`. Norms and token weights are float32, whatever the
    encoder's precision.

    Raises:
        LoadError: as Encoder.
    """

    def __init__(self, spec: EncoderSpec, heads: HeadsSpec, tensors: CheckedTensors, arithmetic: Arithmetic) -> None:
        device, dtype = arithmetic.device, arithmetic.dtype
        self._pooling = spec.pooling
        self._table: Tensor | None = None
        if heads.sparse == "table":
            self._table = tensors.float32("sparse_table.weight", (spec.vocabulary_size,)).to(device)
        else:
            weight, bias = tensors.linear("sparse_linear", spec.hidden, 1)
            self._sparse = PlainLinear(weight.to(device), bias.to(device))
        weight, bias = tensors.linear("colbert_linear", spec.hidden, heads.multi_vector_dimension)
        # Not float8: one layer of many, and the one that the vectors come out of.
        self._multi_vector = PlainLinear(weight.to(device, dtype), bias.to(device, dtype))

    def __call__(self, hidden: Tensor, batch: DeviceBatch, modes: Mode, vector_type: torch.dtype) -> Parts:
        """The parts that `modes` asks for, vectors as `vector_type`. `hidden` [N, hidden] is the last hidden state."""
        bad = torch.zeros(len(batch.order), dtype=torch.int32, device=hidden.device)
        dense = weights = vectors = None
        if Mode.DENSE in modes:
            dense, norms = _unit_rows(self._pooled(hidden, batch))
            _mark(bad, batch.order, norms)
            dense = dense.to(vector_type)
        if Mode.SPARSE in modes:
            weights = self._token_weights(hidden, batch)
            _mark(bad, batch.texts, weights)
            weights = functional.relu(weights)
        if Mode.MULTI_VECTOR in modes:
            product = self._multi_vector_of(hidden.index_select(0, batch.not_first))
            vectors, norms = _unit_rows(product)
            _mark(bad, batch.texts.index_select(0, batch.not_first), norms)
            vectors = vectors.to(vector_type)
        return Parts(dense, weights, vectors, bad)

    def _pooled(self, hidden: Tensor, batch: DeviceBatch) -> Tensor:
        if self._pooling == "cls":
            return hidden.index_select(0, batch.bounds[:-1])
        return torch.segment_reduce(hidden.float(), "mean", offsets=batch.bounds.long(), axis=0, unsafe=True)

    def _token_weights(self, hidden: Tensor, batch: DeviceBatch) -> Tensor:
        if self._table is not None:
            return self._table.index_select(0, batch.token_ids)
        return self._sparse(hidden.float()).squeeze(1)

    def _multi_vector_of(self, hidden: Tensor) -> Tensor:
        exact = hidden.dtype is torch.float32
        return (self._multi_vector.widened() if exact else self._multi_vector)(hidden)


def _unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 rows of unit length, and their norms before, which are finite only if the row is."""
    x = x.float()
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norms.clamp_min(NORM_EPS), norms.squeeze(1)


def _mark(bad: Tensor, texts: Tensor, values: Tensor) -> None:
    """Adds to `bad` of each value's text if the value is not finite."""
    bad.index_add_(0, texts, (~values.isfinite()).int())


@dataclass(frozen=True, slots=True)
class Lexical:
    """
    The sparse vectors of a batch in arrays of a size known beforehand, so that no one waits for the device: text i has
    `ids` int32 [N] and `weights` float32 [N] from `bounds[i]` to `bounds[i + 1]`, int64 [B + 1]; what is behind the
    last bound means nothing.
    """

    ids: Tensor
    weights: Tensor
    bounds: Tensor


def compact(batch: DeviceBatch, token_weights: Tensor) -> Lexical:
    """
    What `serving.encode.lexical_weights` makes of the same weights: special ids and weights that are not above zero
    dropped, the largest weight of a repeated id kept, ids ascending, texts in the order of the batch.
    """
    texts, ids = batch.texts.long(), batch.token_ids.long()
    kept = (token_weights > 0) & (ids >= _FIRST_SPARSE_ID)
    # One sortable key per token: text in the upper half, id in the lower, those to drop behind all others.
    keys, order = torch.where(kept, (texts << _ID_BITS) | ids, _DROPPED).sort()
    is_first = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=is_first[1:])
    found = is_first.cumsum(0)  # [N], different keys up to here
    slots = found - 1
    unique = torch.zeros_like(keys).scatter_(0, slots, keys)
    weights = torch.zeros_like(token_weights).scatter_reduce_(0, slots, token_weights[order], "amax")
    firsts = torch.arange(len(batch.order) + 1, device=keys.device) << _ID_BITS
    before = torch.cat((found.new_zeros(1), found))
    return Lexical(unique.int(), weights, before[torch.searchsorted(keys, firsts)])
