"""Any ONNX file as an engine: types, shapes, names of dimensions, and what goes wrong."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from trivec_server.backends.onnxruntime.tensors import build_onnxruntime_tensors
from trivec_server.backends.tensor_interface import TensorEngine, TensorEngineRequest
from trivec_server.errors import ComputeError, InvalidTensor, LoadError
from trivec_server.types import InstanceKind, TensorSpec

from tests.onnx_models import ONNX_TYPES, node, write_identity, write_onnx

Open = Callable[[Path], TensorEngine]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def opened(path: Path, kind: InstanceKind = InstanceKind.CPU) -> TensorEngine:
    return build_onnxruntime_tensors(TensorEngineRequest(model_file=path, kind=kind, intra_op_threads=1))


def run_one(engine: TensorEngine, array: NDArray[Any]) -> NDArray[Any]:
    return engine.run({"x": array}, ["y"])["y"]


NUMPY_TYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64", "BF16": "uint16"}


class TestTypes:
    @pytest.mark.parametrize("datatype", [name for name in ONNX_TYPES if name != "BYTES"])
    def test_numbers_of_every_type_pass_bit_by_bit(self, path: Path, datatype: str) -> None:
        engine = opened(write_identity(path, datatype))
        dtype = np.dtype(NUMPY_TYPES.get(datatype, datatype.lower()))
        bits = (
            np.arange(6 * dtype.itemsize, dtype=np.uint8) % 2 if datatype == "BOOL" else np.arange(6 * dtype.itemsize)
        )
        array = bits.astype(np.uint8).view(dtype).reshape(2, 3)
        assert engine.info.inputs == (TensorSpec(name="x", datatype=datatype, shape=(-1, -1)),)
        result = run_one(engine, array)
        assert (result.dtype, result.shape, result.tobytes()) == (dtype, (2, 3), array.tobytes())

    def test_bytes_are_text(self, path: Path) -> None:
        engine = opened(write_identity(path, "BYTES"))
        array = np.array([[b"a", "é\0日本".encode(), b""], [b"\0", b" ", b"\xf0\x9f\x8e\x89"]], np.object_)
        result = run_one(engine, array)
        assert result.shape == (2, 3)
        assert result.tolist() == array.tolist()
        assert engine.info.inputs[0].datatype == "BYTES"

    def test_an_element_that_is_not_utf8_is_named(self, path: Path) -> None:
        engine = opened(write_identity(path, "BYTES"))
        with pytest.raises(InvalidTensor, match=r"element 1 of input 'x' is not UTF-8 \(byte 0xff at 2\): this model"):
            run_one(engine, np.array([[b"ok", b"ab\xff"]], np.object_))

    def test_types_may_be_mixed_with_bf16(self, path: Path) -> None:
        write_onnx(
            path,
            [node("Identity", "a", "c"), node("Cast", "b", "d", to=ONNX_TYPES["BYTES"]), node("Cast", "a", "e", to=1)],
            {"a": ("BF16", ["n"]), "b": ("INT64", ["n"])},
            {"c": ("BF16", ["n"]), "d": ("BYTES", ["n"]), "e": ("FP32", ["n"])},
        )
        result = opened(path).run({"a": np.array([0x3F80, 0xC000], np.uint16), "b": np.array([7, 8])}, ["e", "d", "c"])
        assert list(result) == ["e", "d", "c"]
        assert result["c"].tolist() == [0x3F80, 0xC000]
        assert result["d"].tolist() == [b"7", b"8"]
        assert result["e"].tolist() == [1.0, -2.0]

    def test_text_beside_bf16_is_refused(self, path: Path) -> None:
        write_onnx(
            path,
            [node("Identity", "a", "c"), node("Identity", "b", "d")],
            {"a": ("BF16", ["n"]), "b": ("BYTES", ["n"])},
            {"c": ("BF16", ["n"]), "d": ("BYTES", ["n"])},
        )
        with pytest.raises(LoadError, match="takes no strings from Python beside BF16; change BF16 to FP32"):
            opened(path)

    @pytest.mark.parametrize("datatype", ["FP32", "BF16", "BYTES"])
    def test_no_rows_give_no_rows(self, path: Path, datatype: str) -> None:
        dtype = {"FP32": np.float32, "BF16": np.uint16, "BYTES": np.object_}[datatype]
        assert run_one(opened(write_identity(path, datatype)), np.empty((0, 3), dtype)).shape == (0, 3)


class TestShapes:
    def test_dimensions_and_their_names_are_told(self, path: Path) -> None:
        write_onnx(
            path,
            [node("Add", "a b", "c")],
            {"a": ("FP32", ["batch", None, 3]), "b": ("FP32", ["batch", "n", 1])},
            {"c": ("FP32", ["batch", "m", 3])},
        )
        info = opened(path).info
        assert [spec.shape for spec in (*info.inputs, *info.outputs)] == [(-1, -1, 3), (-1, -1, 1), (-1, -1, 3)]
        assert info.symbols == {"a": ("batch", "", ""), "b": ("batch", "n", ""), "c": ("batch", "m", "")}
        assert (info.engine, info.device, info.unranked, info.notes) == ("onnxruntime", "cpu", frozenset(), ())

    def test_a_scalar_is_one(self, path: Path) -> None:
        engine = opened(write_identity(path, "INT64", []))
        assert engine.info.inputs[0].shape == ()
        assert not engine.info.unranked
        assert run_one(engine, np.array(7)).shape == ()

    def test_a_tensor_of_any_rank_is_told_from_a_scalar(self, path: Path) -> None:
        engine = opened(write_identity(path, "FP32", None))
        assert engine.info.unranked == {"x", "y"}
        assert run_one(engine, np.ones((2, 3, 4), np.float32)).shape == (2, 3, 4)

    def test_arrays_may_be_views(self, path: Path) -> None:
        array = np.arange(12, dtype=np.float32).reshape(3, 4)[::2, ::-1].T
        assert run_one(opened(write_identity(path)), array).tolist() == array.tolist()


class TestOutputs:
    def test_only_the_outputs_asked_for_are_given(self, path: Path) -> None:
        write_onnx(
            path,
            [node("Neg", "x", "minus"), node("Abs", "x", "size")],
            {"x": ("FP32", ["n"])},
            {"minus": ("FP32", ["n"]), "size": ("FP32", ["n"])},
        )
        result = opened(path).run({"x": np.array([-2.0], np.float32)}, ["size"])
        assert {name: array.tolist() for name, array in result.items()} == {"size": [2.0]}

    def test_an_input_with_a_default_may_be_left_out(self, path: Path) -> None:
        write_onnx(
            path,
            [node("Mul", "x factor", "y")],
            {"x": ("FP32", ["n"]), "factor": ("FP32", [1])},
            {"y": ("FP32", ["n"])},
            defaults={"factor": np.array([2], np.float32)},
        )
        engine = opened(path)
        assert [(spec.name, spec.optional) for spec in engine.info.inputs] == [("x", False), ("factor", True)]
        x = np.array([3], np.float32)
        assert engine.run({"x": x}, ["y"])["y"].tolist() == [6.0]
        assert engine.run({"x": x, "factor": np.array([5], np.float32)}, ["y"])["y"].tolist() == [15.0]

    def test_an_output_that_is_no_tensor_is_left_out_and_told(self, path: Path) -> None:
        write_sequence(path, node("SequenceConstruct", "x", "list"), node("Identity", "x", "y"))
        engine = opened(path)
        assert [spec.name for spec in engine.info.outputs] == ["y"]
        assert engine.info.notes == ("outputs that are no tensors are left out: list (seq(tensor(float)))",)


def write_sequence(path: Path, *nodes: Any) -> None:
    """`x` to `y` and the sequence `list`; without a node for `y`, to that alone."""
    tensor = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(
        nodes,
        "little",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None), tensor][: len(nodes)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


class TestFaults:
    def test_a_missing_file_is_named(self, path: Path) -> None:
        with pytest.raises(LoadError, match=r"model\.onnx: not found; put a whole ONNX file there"):
            opened(path)

    def test_a_damaged_file_is_named(self, path: Path) -> None:
        path.write_bytes(b"no graph")
        with pytest.raises(LoadError, match=r"model\.onnx cannot be loaded by ONNX Runtime \(.*\); put a whole ONNX"):
            opened(path)

    def test_weights_that_are_missing_are_named(self, path: Path) -> None:
        write_onnx(
            path,
            [node("Add", "x w", "y")],
            {"x": ("FP32", [4])},
            {"y": ("FP32", [4])},
            defaults={"w": np.ones(4, np.float32)},
            apart=True,
        )
        assert opened(path).run({"x": np.ones(4, np.float32)}, ["y"])["y"].tolist() == [2.0] * 4
        (path.parent / "model.onnx.data").unlink()
        with pytest.raises(LoadError, match=r"model\.onnx\.data"):
            opened(path)

    def test_an_input_that_is_no_tensor_is_refused(self, path: Path) -> None:
        graph = helper.make_graph(
            [node("SequenceLength", "x", "y")],
            "little",
            [helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)],
            [helper.make_tensor_value_info("y", TensorProto.INT64, [])],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        with pytest.raises(LoadError, match=r"input 'x' is a seq\(tensor\(float\)\), which no request can bring"):
            opened(path)

    def test_a_model_without_an_output_that_is_a_tensor_is_refused(self, path: Path) -> None:
        write_sequence(path, node("SequenceConstruct", "x", "list"))
        with pytest.raises(LoadError, match="has no output that is a tensor of a type that can be served"):
            opened(path)

    def test_what_the_model_fails_on_is_told_on_one_line(self, path: Path) -> None:
        write_onnx(
            path,
            [node("Gather", "table x", "y")],
            {"x": ("INT64", ["n"])},
            {"y": ("FP32", ["n"])},
            defaults={"table": np.zeros(4, np.float32)},
        )
        engine = opened(path)
        with pytest.raises(ComputeError, match=r"the model failed on these tensors: .*Gather") as caught:
            run_one(engine, np.array([9]))
        assert str(caught.value).isprintable()
        assert run_one(engine, np.array([3])).tolist() == [0.0]

    def test_kind_gpu_without_a_gpu_says_why(self, path: Path) -> None:
        write_identity(path)
        with pytest.raises(LoadError, match="instance_group asks for KIND_GPU, but no NVIDIA GPU is visible"):
            opened(path, InstanceKind.GPU)

    def test_a_gpu_that_is_named_is_not_passed_over(self, path: Path) -> None:
        request = TensorEngineRequest(model_file=write_identity(path), device_index=0)
        with pytest.raises(LoadError, match="instance_group names `gpus`, but would run on the CPU"):
            build_onnxruntime_tensors(request)


def test_without_a_gpu_kind_auto_is_the_cpu(path: Path) -> None:
    assert opened(write_identity(path), InstanceKind.AUTO).info.device == "cpu"


def test_a_closed_engine_holds_no_session(path: Path) -> None:
    engine = opened(write_identity(path))
    run_one(engine, np.ones((1, 2), np.float32))
    (session,) = [weakref.ref(value) for value in vars(engine).values() if type(value).__name__ == "InferenceSession"]
    engine.close()
    gc.collect()
    assert session() is None
