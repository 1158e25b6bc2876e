"""A stored model on a device: the encoder and its heads."""

import torch

from trivec_server.backends.interface import EngineInfo
from trivec_server.backends.pytorch.batch import DeviceBatch
from trivec_server.backends.pytorch.encoder import Arithmetic, Encoder
from trivec_server.backends.pytorch.heads import Heads, Parts
from trivec_server.backends.pytorch.weights import CheckedTensors
from trivec_server.backends.weights.stored_model import StoredModel
from trivec_server.types import Mode


class Model:
    """
    Encoder and heads.

    Raises:
        LoadError: a tensor is missing, damaged, not finite, too large for the arithmetic's type, or of another shape
            than the model's description says.
    """

    def __init__(self, stored: StoredModel, arithmetic: Arithmetic) -> None:
        tensors = CheckedTensors(stored.tensors, arithmetic.dtype)
        self.spec = stored.encoder
        self.encoder = Encoder(stored.encoder, tensors, arithmetic)
        self.heads = Heads(stored.encoder, stored.heads, tensors, arithmetic)
        self._heads_spec = stored.heads
        self.is_exact = arithmetic.dtype is torch.float32

    def run(self, batch: DeviceBatch, modes: Mode, vector_type: torch.dtype) -> Parts:
        """One forward pass; only the heads that `modes` asks for."""
        return self.heads(self.encoder(batch), batch, modes, vector_type)

    def run_exact(self, batch: DeviceBatch, modes: Mode, vector_type: torch.dtype) -> Parts:
        """The same in float32, slowly."""
        return self.heads(self.encoder.exact(batch), batch, modes, vector_type)

    def describe(self, *, device: str, precision: str, token_budget: int, notes: tuple[str, ...]) -> EngineInfo:
        """What an engine of this model says of itself."""
        return EngineInfo(
            engine="pytorch",
            device=device,
            precision=precision,
            modes=Mode.HYBRID,
            dense_dimension=self.spec.hidden,
            multi_vector_dimension=self._heads_spec.multi_vector_dimension,
            vocabulary_size=self.spec.vocabulary_size,
            pooling=self.spec.pooling,
            pads=False,
            token_budget=token_budget,
            notes=notes,
        )
