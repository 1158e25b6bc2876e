"""
An engine for tensors in plain sight: its outputs follow from its inputs by a simple function, and it does what its
script says. What a request should get can be computed by hand, whatever batch it was in.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trivec_server.backends.interface import EngineLost
from trivec_server.backends.tensor_interface import TensorEngine, TensorEngineInfo, TensorEngineRequest
from trivec_server.errors import LoadError
from trivec_server.types import TensorSpec

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class ScriptedModel:
    """
    What requests give and get, without the batch dimension, and the function from one to the other, which sees the
    model's own shapes. `symbols` are the names of dimensions that vary, as in `TensorEngineInfo`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    compute: Callable[[Tensors], Tensors]
    symbols: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_batch_dimension: bool = True

    def own_specs(self, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """As the model's file would say it: whole shapes, and nothing of what config.pbtxt adds."""
        batch = (-1,) if self.has_batch_dimension else ()
        return tuple(
            TensorSpec(
                name=spec.name,
                datatype=spec.datatype,
                shape=(*batch, *(spec.shape if spec.reshape is None else spec.reshape)),
            )
            for spec in specs
        )


def identity(datatype: str = "FP32", shape: tuple[int, ...] = (-1,), *, allow_ragged: bool = False) -> ScriptedModel:
    """`y` is `x`, of any datatype. The model names its dimensions, so that padding is cut off again."""
    names = ("batch", *(f"d{axis}" if size == -1 else "" for axis, size in enumerate(shape)))
    return ScriptedModel(
        inputs=(TensorSpec(name="x", datatype=datatype, shape=shape, allow_ragged=allow_ragged),),
        outputs=(TensorSpec(name="y", datatype=datatype, shape=shape),),
        compute=lambda inputs: {"y": inputs["x"].copy()},
        symbols={"x": names, "y": names},
    )


def row_functions(*, allow_ragged: bool = False) -> ScriptedModel:
    """Of `x` FP32 [-1]: `same` [-1] is `x`, `total` [1] the row's sum, `batch_rows` INT64 [1] the rows of the batch."""

    def compute(inputs: Tensors) -> Tensors:
        x = inputs["x"]
        return {
            "same": x.copy(),
            "total": x.sum(axis=1, keepdims=True),
            "batch_rows": np.full((len(x), 1), len(x), np.int64),
        }

    return ScriptedModel(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,), allow_ragged=allow_ragged),),
        outputs=(
            TensorSpec(name="same", datatype="FP32", shape=(-1,)),
            TensorSpec(name="total", datatype="FP32", shape=(1,)),
            TensorSpec(name="batch_rows", datatype="INT64", shape=(1,)),
        ),
        compute=compute,
        symbols={"x": ("batch", "n"), "same": ("batch", "n"), "total": ("batch", ""), "batch_rows": ("batch", "")},
    )


def sum_and_difference(width: int = 16, *, optional: bool = False) -> ScriptedModel:
    """Triton's model `simple`: two INT32 inputs, their sum and their difference. The second one may be `optional`."""

    def compute(inputs: Tensors) -> Tensors:
        first = inputs["INPUT0"]
        second = inputs.get("INPUT1", np.zeros_like(first))
        return {"OUTPUT0": first + second, "OUTPUT1": first - second}

    def spec(name: str, *, optional: bool = False) -> TensorSpec:
        return TensorSpec(name=name, datatype="INT32", shape=(width,), optional=optional)

    return ScriptedModel(
        inputs=(spec("INPUT0"), spec("INPUT1", optional=optional)),
        outputs=(spec("OUTPUT0"), spec("OUTPUT1")),
        compute=compute,
    )


def without_batch_dimension(model: ScriptedModel) -> ScriptedModel:
    """The same function for a model with max_batch_size 0: the first dimension of its shapes is one like others."""
    return replace(
        model,
        has_batch_dimension=False,
        inputs=tuple(replace(spec, shape=(-1, *spec.shape)) for spec in model.inputs),
        outputs=tuple(replace(spec, shape=(-1, *spec.shape)) for spec in model.outputs),
    )


@dataclass
class TensorScript:
    """
    What the engines do. `gate`, while cleared, holds every batch; `before_run` may raise; a batch of more than
    `rows_in_memory` rows raises MemoryError. `batches` are the inputs seen, `asked` the outputs asked for with each.
    `building`, while cleared, holds every engine's construction, of which the next `build_failures` die.
    """

    model: ScriptedModel = field(default_factory=row_functions)
    gate: threading.Event = field(default_factory=threading.Event)
    building: threading.Event = field(default_factory=threading.Event)
    before_run: Callable[[Tensors], None] = lambda _: None
    alter: Callable[[Tensors], Tensors] = lambda outputs: outputs
    rows_in_memory: int | None = None
    batches: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    device: str = "cpu"
    built: int = 0
    build_failures: int = 0
    closed: int = 0

    def __post_init__(self) -> None:
        self.gate.set()
        self.building.set()

    @property
    def info(self) -> TensorEngineInfo:
        """What its engines say of themselves."""
        return TensorEngineInfo(
            engine="scripted",
            device=self.device,
            inputs=self.model.own_specs(self.model.inputs),
            outputs=self.model.own_specs(self.model.outputs),
            symbols=self.model.symbols,
        )

    @property
    def batch_rows(self) -> list[int]:
        """The rows of each batch seen."""
        return [self.rows_of(batch) for batch in self.batches]

    def rows_of(self, inputs: Tensors) -> int:
        """The rows of a batch; 1 where the model has no batch dimension."""
        return len(next(iter(inputs.values()))) if self.model.has_batch_dimension else 1

    def forget(self) -> None:
        """Forgets the batches seen so far: those of the self-check."""
        self.batches.clear()
        self.asked.clear()
        self.entered = threading.Semaphore(0)

    def build(self, _: TensorEngineRequest | None = None) -> TensorEngine:
        """The engine's factory."""
        self.building.wait()
        if self.build_failures:
            self.build_failures -= 1
            raise LoadError("the engine's process ended while it was built") from EngineLost("killed by signal 9")
        self.built += 1
        return ScriptedTensorEngine(self)


class ScriptedTensorEngine:
    """Runs batches as its script says. `script.entered` is released as each batch begins."""

    def __init__(self, script: TensorScript) -> None:
        self._script = script
        self._info = script.info

    @property
    def info(self) -> TensorEngineInfo:
        return self._info

    def run(self, inputs: Tensors, outputs: Sequence[str]) -> Tensors:
        script = self._script
        script.batches.append({name: array.copy() for name, array in inputs.items()})
        script.asked.append(tuple(outputs))
        script.entered.release()
        script.gate.wait()
        script.before_run(inputs)
        rows = script.rows_of(inputs)
        if script.rows_in_memory is not None and rows > script.rows_in_memory:
            raise MemoryError(f"{rows} rows")
        computed = script.alter(script.model.compute(inputs))
        return {name: computed[name] for name in outputs}

    def close(self) -> None:
        self._script.closed += 1
