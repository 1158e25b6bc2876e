"""The PyTorch engine on a CUDA GPU: copies overlap with computing, and a batch can be prepared while one runs."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trivec_server.backends.interface import (
    EngineInfo,
    EngineLost,
    EngineOutput,
    RunningBatch,
    TokenBatch,
)
from trivec_server.backends.pytorch.attention import attend_by_length
from trivec_server.backends.pytorch.batch import DeviceBatch, Layout, device_batch, index_arrays, sort_batch
from trivec_server.backends.pytorch.cuda_graphs import GraphedEncoder, RecordingFailed
from trivec_server.backends.pytorch.device_errors import device_errors
from trivec_server.backends.pytorch.encoder import Arithmetic
from trivec_server.backends.pytorch.heads import Lexical, Parts, compact
from trivec_server.backends.pytorch.model import Model
from trivec_server.backends.pytorch.results import in_batch_order, on_host, recompute_non_finite
from trivec_server.backends.weights.stored_model import StoredModel
from trivec_server.types import CLS_TOKEN_ID, EOS_TOKEN_ID, UNK_TOKEN_ID, Mode

_MOST_TOKENS = 65536
"""More do not make a large GPU faster, and a batch would hold up those behind it."""
_BUDGET_STEP = 1024
_PROBED_TOKENS = 4096
_BUDGET_SHARE = 0.8


class CudaEngine:
    """
    A model on a GPU, for the thread that made it. Implements OverlappingEngine.

    `instances`: the engines that share the GPU. `memory_mb`: the most GPU memory to take, in 10^6 bytes; None: this
    engine's share of what is free. `token_budget` None: as many tokens as fit into 80 % of that, all three outputs
    asked for. `has_graphs`: small batches run as CUDA graphs, if attention can.

    Raises:
        LoadError: as Model.
        MemoryError: the model does not fit into the GPU's memory.
        EngineLost: the GPU failed.
    """

    def __init__(
        self,
        stored: StoredModel,
        arithmetic: Arithmetic,
        *,
        precision: str,
        max_tokens: int,
        instances: int = 1,
        memory_mb: int | None = None,
        token_budget: int | None = None,
        has_graphs: bool = True,
        notes: tuple[str, ...] = (),
    ) -> None:
        device = arithmetic.device
        self._device = device
        with device_errors(), torch.inference_mode():
            torch.cuda.set_device(device)
            total = torch.cuda.get_device_properties(device).total_memory
            most = total if memory_mb is None else min(total, memory_mb * 10**6)
            torch.cuda.set_per_process_memory_fraction(most / total, device)
            self._compute = torch.cuda.Stream(device)
            self._copy = torch.cuda.Stream(device)
            self._model = Model(stored, arithmetic)
            torch.cuda.synchronize(device)
            self._encode: Callable[[DeviceBatch], Tensor] = self._model.encoder
            if has_graphs and arithmetic.attention is not attend_by_length:
                try:
                    self._encode = GraphedEncoder(self._model.encoder, device, self._compute, max_tokens)
                except RecordingFailed as error:
                    notes = (*notes, f"small batches take longer than they could: no CUDA graphs ({error})")
            if token_budget is None:
                share = total // instances if memory_mb is None else most
                token_budget = self._find_budget(max_tokens, share, instances)
        self._info = self._model.describe(
            device=f"cuda:{device.index}", precision=precision, token_budget=token_budget, notes=notes
        )

    @property
    def info(self) -> EngineInfo:
        """What this engine is; constant."""
        return self._info

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        """
        One forward pass.

        Raises:
            MemoryError: the batch does not fit into the GPU's memory.
            EngineLost: the GPU failed.
        """
        return self.submit(batch, modes, half=half).result()

    def submit(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> RunningBatch:
        """Begins a forward pass; waits for nothing. Raises as `run`."""
        return _CudaBatch(self, batch, modes, half, self._launch(batch, modes, half, exact=False))

    def finish(self, launched: "_Launched", batch: TokenBatch, modes: Mode, *, half: bool) -> EngineOutput:
        """Waits for a batch; texts that are not finite are computed again in float32. Raises as `run`."""
        output = launched.wait()
        if self._model.is_exact:
            return output
        return recompute_non_finite(batch, output, lambda texts: self._launch(texts, modes, half, exact=True).wait())

    def close(self) -> None:
        """Releases the GPU's memory, unless the GPU is lost."""
        with suppress(EngineLost), device_errors():
            torch.cuda.synchronize(self._device)
            del self._model, self._encode
            torch.cuda.empty_cache()

    def _launch(self, batch: TokenBatch, modes: Mode, half: bool, *, exact: bool) -> "_Launched":
        layout = sort_batch(batch)
        arrays = index_arrays(batch, layout, self._model.spec)
        with device_errors(), torch.inference_mode(), torch.cuda.stream(self._compute):
            host = torch.empty(sum(map(len, arrays)), dtype=torch.int32, pin_memory=True)
            np.concatenate(arrays, out=host.numpy())
            packed = host.to(self._device, non_blocking=True)
            on_device = device_batch(layout, packed, tuple(map(len, arrays)))
            hidden = self._model.encoder.exact(on_device) if exact else self._encode(on_device)
            parts = self._model.heads(hidden, on_device, modes, torch.float16 if half else torch.float32)
            lexical = None if parts.token_weights is None else compact(on_device, parts.token_weights)
            return self._fetch(layout, parts, lexical)

    def _fetch(self, layout: Layout, parts: Parts, lexical: Lexical | None) -> "_Launched":
        """Begins to copy the results to pinned memory. What torch has pinned, later batches use again."""
        self._copy.wait_stream(self._compute)

        def fetched(tensor: Tensor) -> Tensor:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            tensor.record_stream(self._copy)
            return host

        with torch.cuda.stream(self._copy):
            found = Parts(
                None if parts.dense is None else fetched(parts.dense),
                None if parts.token_weights is None else fetched(parts.token_weights),
                None if parts.multi_vector is None else fetched(parts.multi_vector),
                fetched(parts.bad),
            )
            if lexical is not None:
                lexical = Lexical(fetched(lexical.ids), fetched(lexical.weights), fetched(lexical.bounds))
            done = torch.cuda.Event(blocking=True)  # whoever waits sleeps
            done.record()
        return _Launched(layout, found, lexical, done)

    def _find_budget(self, max_tokens: int, share_bytes: int, instances: int) -> int:
        """Runs a batch and sees what memory a token takes. This also brings up what the first batch needs."""
        texts = max(1, _PROBED_TOKENS // max_tokens)
        text = [CLS_TOKEN_ID, *[UNK_TOKEN_ID] * (max_tokens - 2), EOS_TOKEN_ID]
        batch = TokenBatch(np.array(text * texts, np.int64), np.full(texts, max_tokens, np.int64))
        try:
            self.run(batch, Mode.HYBRID)
            before = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self.run(batch, Mode.HYBRID)
        except MemoryError:
            # The longest text does not fit: shorter ones may, and batches are split until they do.
            return max_tokens
        bytes_per_token = (torch.cuda.max_memory_allocated(self._device) - before) / len(batch.token_ids)
        torch.cuda.empty_cache()
        # The other instances may be there already or not; by both numbers there is room for all.
        free_bytes = torch.cuda.mem_get_info(self._device)[0] // instances
        return budget_for(
            min(free_bytes, share_bytes - torch.cuda.memory_reserved(self._device)), bytes_per_token, max_tokens
        )


@dataclass(frozen=True, slots=True)
class _Launched:
    """A batch on the GPU, and the pinned memory that its results go to."""

    layout: Layout
    parts: Parts
    lexical: Lexical | None
    done: torch.cuda.Event

    def wait(self) -> EngineOutput:
        """Waits until the results are there. Multi-vectors are views of the pinned memory, which they keep."""
        with device_errors():
            self.done.synchronize()
        return in_batch_order(on_host(self.parts, self.lexical), self.layout)


@dataclass(frozen=True, slots=True)
class _CudaBatch:
    """See RunningBatch."""

    engine: CudaEngine
    batch: TokenBatch
    modes: Mode
    half: bool
    launched: _Launched

    def result(self) -> EngineOutput:
        """Waits for the batch. Raises as `CudaEngine.run`."""
        return self.engine.finish(self.launched, self.batch, self.modes, half=self.half)


def budget_for(free_bytes: float, bytes_per_token: float, max_tokens: int) -> int:
    """The tokens of a batch that fill 80 % of `free_bytes`; a multiple of 1024 where that leaves room for one text."""
    fitting = int(free_bytes * _BUDGET_SHARE / max(1.0, bytes_per_token)) // _BUDGET_STEP * _BUDGET_STEP
    return max(max_tokens, min(fitting, _MOST_TOKENS))
