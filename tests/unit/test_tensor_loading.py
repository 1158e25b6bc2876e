"""Loading models that take tensors: config and file agree or say why not, what is left out is completed, warm-ups."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from trivec_server.errors import LoadError
from trivec_server.repository.model_config import read_model_config
from trivec_server.repository.tensor_loading import LoadedTensors, load_tensors
from trivec_server.types import BatchingSettings, ModelVersion, TensorSpec

from tests.onnx_models import node, write_identity, write_onnx
from tests.scripted_tensors import TensorScript, identity

HEAD = 'backend: "onnxruntime"\ninstance_group { kind: KIND_CPU }\n'
X = "input { name: 'x' data_type: TYPE_FP32 dims: -1 }\n"
Y = "output { name: 'y' data_type: TYPE_FP32 dims: -1 }\n"
BATCHED = "max_batch_size: 8\n"

Load = Callable[..., LoadedTensors]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return tmp_path / "little"


@pytest.fixture
def model_file(model_dir: Path) -> Path:
    return model_dir / "1" / "model.onnx"


@pytest.fixture
def load(model_dir: Path) -> Iterator[Load]:
    """Loads version 1 with a config; the devices are closed at the end."""
    loaded: list[LoadedTensors] = []

    def load_it(config: str = "", **arguments: Any) -> LoadedTensors:
        model_dir.mkdir(exist_ok=True)
        path = model_dir / "config.pbtxt"
        path.write_text(HEAD + config, encoding="utf-8")
        settings = read_model_config(path, "little")
        loaded.append(load_tensors(ModelVersion("little", 1), model_dir / "1", settings, **arguments))
        return loaded[-1]

    yield load_it
    for version in loaded:
        for device in version.devices:
            device.close()


def fault(load: Load, config: str = "", **arguments: Any) -> str:
    with pytest.raises(LoadError) as caught:
        load(config, **arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


def run(loaded: LoadedTensors, **inputs: NDArray[Any]) -> dict[str, list[Any]]:
    """The outputs for inputs of the model's own shapes."""
    names = [spec.name for spec in loaded.outputs]
    outputs = loaded.devices[0].run_once(lambda engine: engine.run(inputs, names))
    return {name: array.tolist() for name, array in outputs.items()}


def add(path: Path, shape: tuple[int | str | None, ...] = ("batch", 4)) -> None:
    """INT64 `a` and `b` to their sum `c`."""
    tensor = ("INT64", shape)
    write_onnx(path, [node("Add", "a b", "c")], {"a": tensor, "b": tensor}, {"c": tensor})


class TestLoading:
    def test_a_model_is_loaded_and_runs(self, load: Load, model_file: Path) -> None:
        write_identity(model_file)
        loaded = load(BATCHED + X + Y)
        assert loaded.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1,)),)
        assert loaded.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1,)),)
        assert loaded.settings.batching == BatchingSettings(max_batch_size=8, joins_requests=False)
        assert (loaded.info.engine, loaded.info.device, loaded.info.notes) == ("onnxruntime", "cpu", ())
        assert run(loaded, x=np.ones((2, 3), np.float32)) == {"y": [[1.0] * 3] * 2}

    def test_every_instance_has_a_device(self, load: Load, model_file: Path) -> None:
        write_identity(model_file)
        assert len(load(X + Y + BATCHED + "instance_group { kind: KIND_CPU count: 2 }").devices) == 3

    def test_a_file_of_another_name_may_be_the_model(self, load: Load, model_dir: Path) -> None:
        write_identity(model_dir / "1" / "sub" / "other.onnx")
        assert load('default_model_filename: "sub/other.onnx"\n' + BATCHED + X + Y).inputs

    def test_a_directory_may_hold_the_model(self, load: Load, model_file: Path) -> None:
        write_identity(model_file / "model.onnx")
        assert load(BATCHED + X + Y).inputs

    def test_a_missing_file_is_named(self, load: Load, model_dir: Path) -> None:
        message = fault(load, BATCHED + X + Y)
        assert message == (
            f"{model_dir}/1/model.onnx: not found; put the model there, or name its file in default_model_filename"
        )

    def test_the_digest_is_of_all_files(self, load: Load, model_file: Path) -> None:
        weights = {"w": np.ones(3, np.float32)}
        write_onnx(
            model_file,
            [node("Add", "x w", "y")],
            {"x": ("FP32", ["n", 3])},
            {"y": ("FP32", ["n", 3])},
            defaults=weights,
            apart=True,
        )
        first, again = load(), load()
        data = model_file.with_name("model.onnx.data")
        data.write_bytes(data.read_bytes()[::-1])
        assert first.content_digest == again.content_digest != load().content_digest
        assert len(first.content_digest) == 64

    def test_nothing_stays_open_where_loading_fails(self, load: Load, model_file: Path) -> None:
        write_identity(model_file)
        script = TensorScript(model=identity())
        message = fault(load, BATCHED + X.replace("'x'", "'z'") + Y, engines={"onnxruntime": script.build})
        assert "input 'z' of config.pbtxt is not in model.onnx, which has x" in message
        assert (script.built, script.closed) == (1, 1)

    def test_an_engine_that_cannot_be_built_is_told(self, load: Load, model_file: Path) -> None:
        model_file.parent.mkdir(parents=True)
        model_file.write_bytes(b"no graph")
        assert "model.onnx cannot be loaded by ONNX Runtime" in fault(load, BATCHED + X + Y)


class TestAgreement:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (X, "input 'x' of config.pbtxt is not in model.onnx, which has a, b; correct config.pbtxt"),
            (Y, "output 'y' of config.pbtxt is not in model.onnx, which has c; correct config.pbtxt"),
            (
                "input { name: 'a' data_type: TYPE_STRING dims: 4 }",
                "input 'a': config.pbtxt says TYPE_STRING, model.onnx has TYPE_INT64; correct config.pbtxt",
            ),
            (
                "output { name: 'c' data_type: TYPE_FP32 dims: 4 }",
                "output 'c': config.pbtxt says TYPE_FP32, model.onnx has TYPE_INT64",
            ),
            (
                "input { name: 'a' data_type: TYPE_INT64 dims: 5 }",
                (
                    "input 'a': config.pbtxt says [-1, 5] (with the batch dimension, since max_batch_size is above 0), "
                    "model.onnx has [-1, 4]; correct config.pbtxt"
                ),
            ),
            ("input { name: 'a' data_type: TYPE_INT64 dims: -1 }", "'a': config.pbtxt says [-1, -1]"),
            ("input { name: 'a' data_type: TYPE_INT64 dims: [ -1, 4 ] }", "'a': config.pbtxt says [-1, -1, 4]"),
            ("output { name: 'c' data_type: TYPE_INT64 dims: 5 }", "output 'c': config.pbtxt says [-1, 5]"),
            (
                "input { name: 'a' data_type: TYPE_INT64 dims: [ 4 ] reshape { shape: [ 2, 2 ] } }",
                "input 'a': config.pbtxt says [-1, 2, 2]",
            ),
            (
                "input { name: 'a' data_type: TYPE_INT64 dims: 4 }",
                "model.onnx needs the input 'b', which config.pbtxt does not declare",
            ),
            (
                "input { name: 'a' data_type: TYPE_INT64 dims: 4 optional: true }",
                "input 'a' is optional in config.pbtxt, but has no default in model.onnx",
            ),
        ],
    )
    def test_a_contradiction_says_what_each_side_has(
        self, load: Load, model_file: Path, config: str, message: str
    ) -> None:
        add(model_file)
        assert message in fault(load, BATCHED + config)

    def test_a_fixed_first_dimension_is_no_batch_dimension(self, load: Load, model_file: Path) -> None:
        add(model_file, (3, 4))
        message = fault(load, BATCHED + "output { name: 'c' data_type: TYPE_INT64 dims: 4 }")
        assert "max_batch_size is 8, but 'a' of model.onnx has shape [3, 4], which does not begin with" in message
        declared = "".join(f"{what} {{ name: '{name}' data_type: TYPE_INT64 dims: 4 }}" for what, name in TENSORS)
        message = fault(load, BATCHED + declared)
        assert "input 'a': model.onnx has shape [3, 4], which does not begin with a dimension that varies" in message

    def test_a_first_dimension_of_1_will_do_for_batches_of_1(self, load: Load, model_file: Path) -> None:
        add(model_file, (1, 4))
        declared = "".join(f"{what} {{ name: '{name}' data_type: TYPE_INT64 dims: 4 }}" for what, name in TENSORS)
        assert load("max_batch_size: 1\n" + declared).inputs[0].shape == (4,)
        assert "which does not begin with a dimension that varies" in fault(load, "max_batch_size: 2\n" + declared)

    def test_a_request_may_be_held_to_a_size_that_the_file_leaves_open(self, load: Load, model_file: Path) -> None:
        write_identity(model_file)
        assert load(BATCHED + X.replace("-1", "7") + Y).inputs[0].shape == (7,)
        assert "output 'y': config.pbtxt says [-1, 7]" in fault(load, BATCHED + X + Y.replace("-1", "7"))

    def test_an_output_may_be_said_to_vary_that_does_not(self, load: Load, model_file: Path) -> None:
        write_identity(model_file, shape=("batch", 4))
        assert load(BATCHED + X.replace("-1", "4") + Y).outputs[0].shape == (-1,)

    def test_without_a_batch_size_shapes_are_whole(self, load: Load, model_file: Path) -> None:
        add(model_file, (3, None))
        declared = "".join(
            f"{what} {{ name: '{name}' data_type: TYPE_INT64 dims: [ 3, -1 ] }}" for what, name in TENSORS
        )
        loaded = load(declared)
        assert loaded.inputs[0].shape == (3, -1)
        assert loaded.settings.batching.max_batch_size == 0

    def test_a_reshape_is_compared_in_the_place_of_dims(self, load: Load, model_file: Path) -> None:
        write_identity(model_file, shape=("batch", 2, 2))
        shape = "dims: 4 reshape { shape: [ 2, 2 ] }"
        loaded = load(BATCHED + X.replace("dims: -1", shape) + Y.replace("dims: -1", shape))
        assert (loaded.inputs[0].shape, loaded.inputs[0].reshape) == ((4,), (2, 2))

    def test_a_scalar_is_one_element_for_requests(self, load: Load, model_file: Path) -> None:
        write_identity(model_file, shape=())
        loaded = load(X.replace("-1", "1") + Y.replace("-1", "1"))
        assert (loaded.inputs[0].shape, loaded.inputs[0].reshape) == ((1,), ())
        assert "config.pbtxt says [2], model.onnx has a scalar" in fault(load, X.replace("-1", "2") + Y)

    def test_not_all_outputs_need_be_declared(self, load: Load, model_file: Path) -> None:
        tensor = ("FP32", ("batch", "n"))
        write_onnx(
            model_file, [node("Neg", "x", "y"), node("Abs", "x", "z")], {"x": tensor}, {"y": tensor, "z": tensor}
        )
        assert [spec.name for spec in load(BATCHED + X + Y).outputs] == ["y"]

    def test_any_rank_takes_what_is_declared(self, load: Load, model_file: Path) -> None:
        write_identity(model_file, shape=None)
        assert load(BATCHED + X + Y).inputs[0].shape == (-1,)
        message = fault(load)
        assert (
            "input 'x' of model.onnx may have any number of dimensions: declare every input in config.pbtxt" in message
        )

    def test_an_input_with_a_default_may_be_declared_optional(self, load: Load, model_file: Path) -> None:
        write_onnx(
            model_file,
            [node("Mul", "x factor", "y")],
            {"x": ("FP32", ["n"]), "factor": ("FP32", [1])},
            {"y": ("FP32", ["n"])},
            defaults={"factor": np.array([2], np.float32)},
        )
        factor = "input { name: 'factor' data_type: TYPE_FP32 dims: 1 optional: true }"
        loaded = load(X + factor + Y)
        assert [(spec.name, spec.optional) for spec in loaded.inputs] == [("x", False), ("factor", True)]
        assert [spec.name for spec in load(X + Y).inputs] == ["x"]
        assert "input 'factor' is optional, which needs `max_batch_size: 0`" in fault(load, BATCHED + factor + X + Y)


TENSORS = (("input", "a"), ("input", "b"), ("output", "c"))


class TestCompletion:
    def test_inputs_outputs_and_batching_come_from_the_file(self, load: Load, model_file: Path) -> None:
        add(model_file)
        loaded = load()
        assert [(spec.name, spec.datatype, spec.shape) for spec in (*loaded.inputs, *loaded.outputs)] == [
            (name, "INT64", (4,)) for name in "abc"
        ]
        assert loaded.settings.batching == BatchingSettings(max_batch_size=4, joins_requests=True)
        assert loaded.settings.tensors is not None
        assert (loaded.settings.tensors.inputs, loaded.settings.tensors.outputs) == (loaded.inputs, loaded.outputs)
        (note,) = loaded.info.notes
        assert note == (
            "max_batch_size is 4: config.pbtxt gives none, and the first dimension of all inputs and outputs of "
            "model.onnx varies"
        )

    @pytest.mark.parametrize(("size", "joins"), [(1, False), (2, True)])
    def test_a_batch_size_that_is_given_stays(self, load: Load, model_file: Path, size: int, *, joins: bool) -> None:
        add(model_file)
        loaded = load(f"max_batch_size: {size}")
        assert loaded.settings.batching == BatchingSettings(max_batch_size=size, joins_requests=joins)
        assert loaded.info.notes == ()

    def test_a_fixed_first_dimension_leaves_no_batch_dimension(self, load: Load, model_file: Path) -> None:
        add(model_file, (3, 4))
        loaded = load()
        assert loaded.inputs[0].shape == (3, 4)
        assert loaded.settings.batching == BatchingSettings(max_batch_size=0, joins_requests=False)

    def test_one_element_of_each_row_is_a_scalar_for_the_model(self, load: Load, model_file: Path) -> None:
        write_identity(model_file, shape=("batch",))
        loaded = load()
        assert (loaded.inputs[0].shape, loaded.inputs[0].reshape) == ((1,), ())

    def test_whole_shapes_on_one_side_leave_no_batch_dimension(self, load: Load, model_file: Path) -> None:
        write_identity(model_file)
        loaded = load(X.replace("-1", "[ 2, -1 ]"))
        assert (loaded.inputs[0].shape, loaded.outputs[0].shape) == ((2, -1), (-1, -1))
        assert loaded.settings.batching.max_batch_size == 0

    def test_what_is_declared_on_one_side_counts(self, load: Load, model_file: Path) -> None:
        write_identity(model_file)
        loaded = load(X.replace("-1", "7"))
        assert (loaded.inputs[0].shape, loaded.outputs[0].shape) == ((7,), (-1,))


class TestWarmUp:
    def test_without_one_the_model_runs_on_zeros(self, load: Load, model_file: Path) -> None:
        write_identity(model_file)
        script = TensorScript(model=identity("BYTES", (-1, 3)))
        load(BATCHED, engines={"onnxruntime": script.build})
        ((batch,), (asked,)) = script.batches, script.asked
        assert batch["x"].tolist() == [[[b"", b"", b""]]]
        assert asked == ("y",)

    def test_a_model_that_fails_on_zeros_is_loaded_with_a_note(self, load: Load, model_file: Path) -> None:
        write_onnx(
            model_file,
            [node("Gather", "x one", "y", axis=1)],
            {"x": ("FP32", ["batch", "n"])},
            {"y": ("FP32", ["batch", 1])},
            defaults={"one": np.array([1])},
        )
        loaded = load(BATCHED)
        (note,) = loaded.info.notes
        assert note.startswith("the model fails on zeros, which may be no fault of it: the model failed on these")
        assert run(loaded, x=np.array([[5, 6]], np.float32)) == {"y": [[6.0]]}

    def test_warm_ups_run_on_every_instance(self, load: Load, model_file: Path) -> None:
        write_identity(model_file)
        script = TensorScript(model=identity("INT64", (-1,)))
        load(
            BATCHED + "instance_group { kind: KIND_CPU }"
            "model_warmup { batch_size: 3 count: 2"
            "  inputs { key: 'x' value { data_type: TYPE_INT64 dims: 5 random_data: true } } }",
            engines={"onnxruntime": script.build},
        )
        assert [batch["x"].shape for batch in script.batches] == [(3, 5)] * 4
        assert {0, 1} >= set(script.batches[0]["x"].ravel().tolist())

    @pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "FP16", "FP64", "BF16", "BYTES"])
    def test_random_data_suits_its_type(self, load: Load, model_file: Path, datatype: str) -> None:
        write_identity(model_file, datatype)
        name = "STRING" if datatype == "BYTES" else datatype
        load(f"model_warmup {{ inputs {{ key: 'x' value {{ data_type: TYPE_{name} dims: 50 random_data: true }} }} }}")

    def test_a_file_holds_a_row(self, load: Load, model_file: Path, model_dir: Path) -> None:
        write_identity(model_file)
        (model_dir / "warmup").mkdir()
        (model_dir / "warmup" / "row").write_bytes(np.array([1.5, 2.5], np.float32).tobytes())
        script = TensorScript(model=identity())
        load(BATCHED + warmup_file("TYPE_FP32", batch_size=2), engines={"onnxruntime": script.build})
        assert script.batches[0]["x"].tolist() == [[1.5, 2.5]] * 2

    def test_a_file_of_text_has_lengths(self, load: Load, model_file: Path, model_dir: Path) -> None:
        write_identity(model_file, "BYTES")
        (model_dir / "warmup").mkdir()
        (model_dir / "warmup" / "row").write_bytes(b"\1\0\0\0a\0\0\0\0")
        script = TensorScript(model=identity("BYTES"))
        load(BATCHED + warmup_file("TYPE_STRING"), engines={"onnxruntime": script.build})
        assert script.batches[0]["x"].tolist() == [[b"a", b""]]

    @pytest.mark.parametrize(
        ("datatype", "content", "message"),
        [
            ("FP32", None, "warmup/row: cannot be read: No such file or directory"),
            ("FP32", b"1234567", "warmup/row: has 7 bytes, the shape needs 8"),
            ("BYTES", b"\1\0\0\0a\2\0\0\0a", "warmup/row: ends within element 1 of 2"),
            ("BYTES", b"\1\0\0\0a\2\0", "warmup/row: ends within element 1 of 2"),
        ],
    )
    def test_a_file_that_does_not_hold_it_is_named(
        self, load: Load, model_file: Path, model_dir: Path, datatype: str, content: bytes | None, message: str
    ) -> None:
        write_identity(model_file, datatype)
        (model_dir / "warmup").mkdir()
        if content is not None:
            (model_dir / "warmup" / "row").write_bytes(content)
        said = fault(load, BATCHED + warmup_file("TYPE_STRING" if datatype == "BYTES" else "TYPE_FP32"))
        assert message in said
        assert said.startswith("model_warmup `model_warmup[0]`: input 'x': ")

    @pytest.mark.parametrize(
        ("warmup", "message"),
        [
            ("{ batch_size: 9 inputs { key: 'x' value { V } } }", "batch_size 9 exceeds max_batch_size 8"),
            ("{ inputs { key: 'z' value { V } } }", "the input 'x' is missing"),
            (
                "{ inputs { key: 'x' value { V } } inputs { key: 'z' value { V } } }",
                "the model has no input 'z'; it has x",
            ),
            (
                "{ inputs { key: 'x' value { data_type: TYPE_INT8 dims: 2 zero_data: true } } }",
                "input 'x': is INT8, but FP32 for requests",
            ),
            (
                "{ inputs { key: 'x' value { data_type: TYPE_FP32 dims: [ 1, 2 ] zero_data: true } } }",
                "input 'x': has dims [1, 2], but [-1] for requests",
            ),
        ],
    )
    def test_a_warm_up_that_does_not_fit_the_model_is_told(
        self, load: Load, model_file: Path, warmup: str, message: str
    ) -> None:
        write_identity(model_file)
        warmup = warmup.replace("V", "data_type: TYPE_FP32 dims: 2 zero_data: true")
        assert f"model_warmup `w`: {message}" in fault(
            load, BATCHED + "model_warmup " + warmup.replace("{", "{ name: 'w' ", 1)
        )

    def test_a_warm_up_that_fails_fails_the_load(self, load: Load, model_file: Path) -> None:
        write_onnx(
            model_file,
            [node("Gather", "x one", "y", axis=1)],
            {"x": ("FP32", ["batch", "n"])},
            {"y": ("FP32", ["batch", 1])},
            defaults={"one": np.array([1])},
        )
        config = "model_warmup { name: 'w' inputs { key: 'x' value { data_type: TYPE_FP32 dims: 1 zero_data: true } } }"
        assert fault(load, config).startswith("model_warmup `w` failed: the model failed on these tensors: ")


def warmup_file(data_type: str, batch_size: int = 1) -> str:
    data = f"data_type: {data_type} dims: 2 input_data_file: 'row'"
    return f"model_warmup {{ batch_size: {batch_size} inputs {{ key: 'x' value {{ {data} }} }} }}"
