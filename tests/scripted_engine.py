"""
An engine in plain sight for tests: its arrays are a function of the token ids, and it does what its script says.

A text's embedding can be computed by hand with `expected_dense` and so on, whatever batch the text was in.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from trivec_server.backends.interface import Engine, EngineInfo, EngineLost, EngineOutput, EngineRequest, TokenBatch
from trivec_server.errors import LoadError
from trivec_server.types import Mode

DIMENSION = 8
VOCABULARY_SIZE = 1000


def expected_dense(ids: list[int]) -> NDArray[np.float32]:
    """[D], of unit length."""
    angles = np.arange(1, DIMENSION + 1) * (1 + sum(ids)) * 0.1
    vector = np.cos(angles)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def expected_weights(ids: list[int]) -> NDArray[np.float32]:
    """[tokens]: a weight per token; ids divisible by 7 weigh nothing."""
    return np.array([0.0 if token % 7 == 0 else (token % 50 + 1) / 100 for token in ids], np.float32)


def expected_multi_vector(ids: list[int]) -> NDArray[np.float32]:
    """[tokens - 1, D], rows of unit length."""
    rows = np.sin(np.array(ids[1:])[:, None] * 0.01 + np.arange(1, DIMENSION + 1))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@dataclass
class Script:
    """
    What the engines do. `gate`, while cleared, holds every batch, `building` every engine's construction, of which the
    next `build_failures` die; `before_run` may raise; `batches` are seen.
    """

    gate: threading.Event = field(default_factory=threading.Event)
    building: threading.Event = field(default_factory=threading.Event)
    before_run: Callable[[TokenBatch], None] = lambda _: None
    alter: Callable[[EngineOutput, TokenBatch], EngineOutput] = lambda output, _: output
    batches: list[TokenBatch] = field(default_factory=list)
    modes: list[Mode] = field(default_factory=list)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    pads: bool = True
    token_budget: int = 4096
    device: str = "cpu"
    precision: str = "float32"
    notes: tuple[str, ...] = ()
    built: int = 0
    build_failures: int = 0
    closed: int = 0

    def __post_init__(self) -> None:
        self.gate.set()
        self.building.set()

    def forget(self) -> None:
        """Forgets the batches seen so far: those of the self-check."""
        self.batches.clear()
        self.modes.clear()
        self.entered = threading.Semaphore(0)

    def build(self, request: EngineRequest) -> Engine:
        """The engine's factory."""
        self.building.wait()
        if self.build_failures:
            self.build_failures -= 1
            raise LoadError("the engine's process ended while it was built") from EngineLost("killed by signal 9")
        self.built += 1
        return ScriptedEngine(self)


class ScriptedEngine:
    """Runs batches as its script says. `script.entered` is released as each batch begins."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._device = script.device

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="scripted",
            device=self._device,
            precision=self._script.precision,
            modes=Mode.HYBRID,
            dense_dimension=DIMENSION,
            multi_vector_dimension=DIMENSION,
            vocabulary_size=VOCABULARY_SIZE,
            pooling="cls",
            pads=self._script.pads,
            token_budget=self._script.token_budget,
            notes=self._script.notes,
        )

    def run(self, batch: TokenBatch, modes: Mode, *, half: bool = False) -> EngineOutput:
        script = self._script
        script.batches.append(batch)
        script.modes.append(modes)
        script.entered.release()
        script.gate.wait()
        script.before_run(batch)
        ends = np.cumsum(batch.lengths).tolist()
        texts = [
            batch.token_ids[end - length : end].tolist()
            for end, length in zip(ends, batch.lengths.tolist(), strict=True)
        ]
        output = EngineOutput(
            dense=np.stack([expected_dense(ids) for ids in texts]) if Mode.DENSE in modes else None,
            token_weights=np.concatenate([expected_weights(ids) for ids in texts]) if Mode.SPARSE in modes else None,
            multi_vector=[expected_multi_vector(ids) for ids in texts] if Mode.MULTI_VECTOR in modes else None,
        )
        return script.alter(output, batch)

    def close(self) -> None:
        self._script.closed += 1
