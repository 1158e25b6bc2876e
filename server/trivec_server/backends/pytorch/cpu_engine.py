"""The PyTorch engine on the CPU."""

import torch

from trivec_server.backends.host_memory import give_memory_back
from trivec_server.backends.interface import EngineInfo, EngineOutput, TokenBatch
from trivec_server.backends.pytorch.batch import host_batch
from trivec_server.backends.pytorch.encoder import Arithmetic
from trivec_server.backends.pytorch.linear import Linear, PackedLinear, PlainLinear, can_pack
from trivec_server.backends.pytorch.model import Model
from trivec_server.backends.pytorch.results import in_batch_order, on_host, recompute_non_finite
from trivec_server.backends.weights.stored_model import StoredModel
from trivec_server.types import Mode

_TOKEN_BUDGET = 2048
_TRIM_TOKENS = 256
"""Batches from this size on take so long that 2 ms for giving memory back do not count."""


def cpu_arithmetic(dtype: torch.dtype) -> Arithmetic:
    """The fastest arithmetic in a type on the CPU."""
    kind = PackedLinear if can_pack(dtype) else PlainLinear

    def linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
        return kind(weight.to(dtype).contiguous(), bias.to(dtype))

    return Arithmetic(torch.device("cpu"), dtype, linear)


class CpuEngine:
    """
    A model on the CPU. `token_budget` None: one that is fast. The number of threads is the process's
    (`torch.set_num_threads`).
    """

    def __init__(
        self,
        stored: StoredModel,
        arithmetic: Arithmetic,
        *,
        precision: str,
        threads: int,
        token_budget: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            self._model = Model(stored, arithmetic)
        budget = token_budget or _TOKEN_BUDGET
        self._info = self._model.describe(device="cpu", precision=precision, token_budget=budget, notes=notes)
        give_memory_back()

    @property
    def info(self) -> EngineInfo:
        """What this engine is; constant."""
        return self._info

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        """
        One forward pass. Vectors are float32 whatever `half` says: they are here already.

        Raises:
            MemoryError: an allocation failed.
        """
        try:
            output = self._run(batch, modes, exact=False)
            if not self._model.is_exact:
                output = recompute_non_finite(batch, output, lambda texts: self._run(texts, modes, exact=True))
        except RuntimeError as error:
            if "can't allocate memory" in str(error) or "bad_alloc" in str(error):
                raise MemoryError("PyTorch could not allocate memory") from error
            raise
        if len(batch.token_ids) >= _TRIM_TOKENS:
            give_memory_back()
        return output

    def close(self) -> None:
        """Releases the weights."""
        del self._model

    def _run(self, batch: TokenBatch, modes: Mode, *, exact: bool) -> EngineOutput:
        with torch.inference_mode():
            sorted_batch = host_batch(batch, self._model.spec)
            run = self._model.run_exact if exact else self._model.run
            parts = run(sorted_batch, modes, torch.float32)
        return in_batch_order(on_host(parts), sorted_batch.layout)
