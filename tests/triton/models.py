"""
Little models that both servers serve with the same config.pbtxt but for its backend: in Triton by the python backend,
in Trivec as ONNX files.
"""

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.onnx_ml_pb2 import GraphProto, NodeProto, ValueInfoProto

Backend = Literal["python", "onnxruntime"]
MODEL_FILES: dict[Backend, str] = {"python": "model.py", "onnxruntime": "model.onnx"}

_OPSET = 17
_IR_VERSION = 9
_HEAD = """\
name: "{name}"
backend: "{backend}"
max_batch_size: {max_batch_size}
"""
_CPU = "instance_group [ { count: 1 kind: KIND_CPU } ]\n"

TYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
"""The types of `identity_types`: its inputs INPUT0 and on, in this order."""

_ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


@dataclass(frozen=True)
class Tensor:
    """`dims` as in config.pbtxt: without the batch dimension."""

    datatype: str
    dims: tuple[int, ...] = (-1,)

    def config(self, name: str) -> str:
        datatype = "STRING" if self.datatype == "BYTES" else self.datatype
        return f'{{ name: "{name}" data_type: TYPE_{datatype} dims: [ {", ".join(map(str, self.dims))} ] }}'

    def onnx(self, name: str, *, batched: bool) -> ValueInfoProto:
        dims = [None if dim < 0 else dim for dim in self.dims]
        return helper.make_tensor_value_info(name, _ONNX_TYPES[self.datatype], [None, *dims] if batched else dims)


@dataclass(frozen=True)
class Model:
    """`nodes` writes the graph of a version, from INPUT0, INPUT1 ... to OUTPUT0, OUTPUT1 ..."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: Callable[[int], list[NodeProto]]
    max_batch_size: int = 8
    settings: str = "dynamic_batching { }\n"
    versions: tuple[int, ...] = (1,)

    def config(self, backend: Backend) -> str:
        head = _HEAD.format(name=self.name, backend=backend, max_batch_size=self.max_batch_size)
        inputs = ", ".join(tensor.config(f"INPUT{index}") for index, tensor in enumerate(self.inputs))
        outputs = ", ".join(tensor.config(f"OUTPUT{index}") for index, tensor in enumerate(self.outputs))
        return f"{head}input [ {inputs} ]\noutput [ {outputs} ]\n{_CPU}{self.settings}"

    def onnx(self, version: int) -> bytes:
        batched = self.max_batch_size > 0
        graph = helper.make_graph(
            self.nodes(version),
            self.name,
            [tensor.onnx(f"INPUT{index}", batched=batched) for index, tensor in enumerate(self.inputs)],
            [tensor.onnx(f"OUTPUT{index}", batched=batched) for index, tensor in enumerate(self.outputs)],
        )
        opset = helper.make_opsetid("", _OPSET)
        written: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION).SerializeToString()
        return written


def _echo(count: int) -> Callable[[int], list[NodeProto]]:
    return lambda _: [helper.make_node("Identity", [f"INPUT{index}"], [f"OUTPUT{index}"]) for index in range(count)]


def _sum_and_difference(_: int) -> list[NodeProto]:
    return [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]


def _constant(name: str, value: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _times_version(version: int) -> list[NodeProto]:
    return [
        _constant("factor", np.array(version, np.int32)),
        helper.make_node("Mul", ["INPUT0", "factor"], ["OUTPUT0"]),
    ]


def _pick(_: int) -> list[NodeProto]:
    """Four numbers to pick from: an index beyond them fails at run time."""
    return [
        _constant("table", np.arange(10, 50, 10, dtype=np.float32)),
        helper.make_node("Gather", ["table", "INPUT0"], ["OUTPUT0"]),
    ]


def _count(_: int) -> list[NodeProto]:
    """Counts to INPUT0, one by one."""
    return [
        _constant("no_dims", np.zeros(0, np.int64)),
        _constant("batch_and_one", np.array([1, 1], np.int64)),
        _constant("zero", np.array(0, np.int64)),
        helper.make_node("Reshape", ["INPUT0", "no_dims"], ["steps"]),
        helper.make_node("Loop", ["steps", "", "zero"], ["counted"], body=_one_more()),
        helper.make_node("Reshape", ["counted", "batch_and_one"], ["OUTPUT0"]),
    ]


def _one_more() -> GraphProto:
    def value(name: str, kind: int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, [])

    return helper.make_graph(
        [
            _constant("one", np.array(1, np.int64)),
            helper.make_node("Identity", ["going_on"], ["still"]),
            helper.make_node("Add", ["count", "one"], ["next"]),
        ],
        "one_more",
        [value("step", TensorProto.INT64), value("going_on", TensorProto.BOOL), value("count", TensorProto.INT64)],
        [value("still", TensorProto.BOOL), value("next", TensorProto.INT64)],
    )


def _queue(policy: str) -> str:
    return f"dynamic_batching {{ default_queue_policy {{ {policy} }} }}\n"


_FP32 = Tensor("FP32")
_ALL_TYPES = tuple(Tensor(datatype) for datatype in TYPES)
_STEPS = Tensor("INT64", (1,))

MODELS = (
    Model("simple", (Tensor("INT32", (16,)),) * 2, (Tensor("INT32", (16,)),) * 2, _sum_and_difference),
    Model("identity_fp32", (_FP32,), (_FP32,), _echo(1)),
    Model("identity_bytes", (Tensor("BYTES"),), (Tensor("BYTES"),), _echo(1)),
    Model("identity_types", _ALL_TYPES, _ALL_TYPES, _echo(len(TYPES))),
    Model("nobatch", (Tensor("FP32", (-1, 2)),), (Tensor("FP32", (-1, 2)),), _echo(1), max_batch_size=0, settings=""),
    Model(
        "two_versions",
        (Tensor("INT32"),),
        (Tensor("INT32"),),
        _times_version,
        settings="version_policy { all { } }\n",
        versions=(1, 2),
    ),
    Model("pick", (Tensor("INT64"),), (_FP32,), _pick),
    Model("slow", (_STEPS,), (_STEPS,), _count, max_batch_size=1, settings=_queue("max_queue_size: 2")),
    Model(
        "slow_refusing",
        (_STEPS,),
        (_STEPS,),
        _count,
        max_batch_size=1,
        settings=_queue("default_timeout_microseconds: 50000 allow_timeout_override: true"),
    ),
)
BROKEN = Model("broken", (_FP32,), (_FP32,), _echo(1))
"""A model that cannot be loaded."""


def write_repository(root: Path, backend: Backend, *models: Model, packages: Path | None = None) -> Path:
    """`packages`: the site-packages that Triton's models import NumPy from."""
    for model in models:
        directory = root / model.name
        directory.mkdir(parents=True)
        (directory / "config.pbtxt").write_text(model.config(backend), encoding="utf-8")
        for version in model.versions:
            (directory / str(version)).mkdir()
            file = directory / str(version) / MODEL_FILES[backend]
            file.write_bytes(version_file(model, backend, version, packages))
    return root


def version_file(model: Model, backend: Backend, version: int, packages: Path | None = None) -> bytes:
    """The content of a version's model file."""
    if backend == "onnxruntime":
        return b"no graph" if model is BROKEN else model.onnx(version)
    path = packages or Path(sysconfig.get_path("purelib"))
    known = f"import sys\nsys.path.insert(0, {str(path)!r})\n"
    return (known + Path(__file__).with_name("python_model.py").read_text(encoding="utf-8")).encode()
