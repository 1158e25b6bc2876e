"""The onnxruntime engine and the versions that are exported for it, on the CPU."""

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer
from trivec_server.backends.graph.nodes import DATA_FILE
from trivec_server.backends.graph.spec import MODEL_FILE, EncoderSpec
from trivec_server.backends.graph.write import write_graph
from trivec_server.backends.interface import Engine, EngineLost, EngineOutput, EngineRequest, TokenBatch
from trivec_server.backends.onnxruntime.engine import OnnxRuntimeEngine, build_onnxruntime
from trivec_server.backends.onnxruntime.export import export_onnxruntime
from trivec_server.backends.onnxruntime.options import BatchLimits, RunShape
from trivec_server.backends.onnxruntime.providers import Placement
from trivec_server.backends.onnxruntime.session import (
    DeviceRunner,
    Feeds,
    Outputs,
    Runner,
    RunnersByLength,
    int8_products_are_exact,
    open_session,
    understood,
)
from trivec_server.backends.weights.stored_model import StoredModel, open_stored_model
from trivec_server.errors import LoadError
from trivec_server.types import InstanceKind, Mode

from tests.graph_reference import (
    LINEAR_HEADS,
    VOCABULARY,
    XLM_ROBERTA,
    Array,
    ArraySource,
    Floats,
    Ids,
    random_tensors,
    random_texts,
)
from tests.numerics.retrieval_set import PASSAGES

SPEC = replace(XLM_ROBERTA, hidden=64, intermediate=128, layers=3)


def model(spec: EncoderSpec = SPEC, changed: Mapping[str, Array] | None = None) -> StoredModel:
    return StoredModel(spec, LINEAR_HEADS, ArraySource(random_tensors(spec) | dict(changed or {})))


def batch(texts: list[Ids]) -> TokenBatch:
    return TokenBatch(np.concatenate(texts), np.array([len(text) for text in texts]))


def build(directory: Path, **settings: object) -> Engine:
    request = EngineRequest(version_dir=directory, kind=InstanceKind.CPU, intra_op_threads=1)
    return build_onnxruntime(replace(request, **settings))  # type: ignore[arg-type] # the tests' own names


def cosines(first: Floats, second: Floats) -> Floats:
    return np.asarray((first * second).sum(axis=-1))


def dense(output: EngineOutput) -> Floats:
    assert output.dense is not None
    return output.dense.astype(np.float64)


def weights(output: EngineOutput) -> Floats:
    assert output.token_weights is not None
    return output.token_weights.astype(np.float64)


def vectors(output: EngineOutput) -> Floats:
    assert output.multi_vector is not None
    return np.concatenate(output.multi_vector).astype(np.float64)


def assert_same(found: EngineOutput, expected: EngineOutput, tolerance: float) -> None:
    for part in (dense, weights, vectors):
        np.testing.assert_allclose(part(found), part(expected), rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version as `trivec pull` makes it."""
    directory = tmp_path_factory.mktemp("pulled")
    write_graph(directory, SPEC, model().tensors, LINEAR_HEADS)
    return directory


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory, pulled: Path) -> Path:
    """The same exported in int8."""
    directory = tmp_path_factory.mktemp("int8")
    export_onnxruntime(open_stored_model(pulled), directory, "int8")
    return directory


@pytest.fixture(scope="module")
def float16(tmp_path_factory: pytest.TempPathFactory, pulled: Path) -> Path:
    """The same exported in float16."""
    directory = tmp_path_factory.mktemp("float16")
    export_onnxruntime(open_stored_model(pulled), directory, "float16")
    return directory


def test_a_pulled_version_computes_in_float32(pulled: Path) -> None:
    info = build(pulled).info
    assert (info.engine, info.device, info.precision, info.notes) == ("onnxruntime", "cpu", "float32", ())


def test_weights_stored_as_float16_are_computed_in_float32(tmp_path: Path) -> None:
    write_graph(tmp_path, replace(SPEC, precision="float16"), model().tensors, LINEAR_HEADS)
    assert build(tmp_path).info.precision == "float32"


def test_an_int8_version_says_so(int8: Path) -> None:
    assert build(int8, precision="int8").info.precision == "int8"
    assert build(int8).info.precision == "int8"


def test_an_export_in_float32_gives_the_same_numbers(tmp_path: Path, pulled: Path) -> None:
    export_onnxruntime(open_stored_model(pulled), tmp_path, "float32")
    texts = batch(random_texts(2, 40, 64, 17))
    assert_same(build(tmp_path).run(texts, Mode.HYBRID), build(pulled).run(texts, Mode.HYBRID), 1e-5)


def test_int8_keeps_all_vectors_near_float32(pulled: Path, int8: Path) -> None:
    texts = batch(random_texts(2, 40, 64, 17, 30, 9))
    exact, rounded = (build(path).run(texts, Mode.HYBRID) for path in (pulled, int8))
    assert cosines(dense(exact), dense(rounded)).min() >= 0.99
    assert cosines(vectors(exact), vectors(rounded)).min() >= 0.99


def test_int8_keeps_the_dense_vectors_of_real_texts_near_float32(tmp_path: Path, mini_repository: Path) -> None:
    version = mini_repository / "m3-mini" / "1"
    export_onnxruntime(open_stored_model(version), tmp_path, "int8")
    tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))
    texts = batch([np.array(tokenizer.encode(text).ids) for text in list(PASSAGES.values())[::3]])
    exact, rounded = (build(path).run(texts, Mode.HYBRID) for path in (version, tmp_path))
    found = cosines(dense(exact), dense(rounded))
    assert found.min() >= 0.99
    assert found.mean() >= 0.998


def test_int8_gives_a_text_nearly_the_same_alone_and_in_a_batch(int8: Path) -> None:
    engine, texts = build(int8), random_texts(5, 64, 2, 33)
    for text, among in zip(texts, dense(engine.run(batch(texts), Mode.DENSE)), strict=True):
        assert cosines(dense(engine.run(batch([text]), Mode.DENSE)), among).min() >= 0.9999


def test_int8_takes_a_third_of_the_room(tmp_path: Path) -> None:
    sizes = {}
    for precision in ("float32", "int8"):
        export_onnxruntime(model(replace(SPEC, hidden=256, intermediate=1024)), tmp_path, precision)
        sizes[precision] = (tmp_path / DATA_FILE).stat().st_size
    assert sizes["int8"] < sizes["float32"] / 3


def test_layers_of_zeros_can_be_rounded_to_int8(tmp_path: Path) -> None:
    name = "encoder.layer.0.output.dense.weight"
    export_onnxruntime(model(changed={name: np.zeros((64, 128), np.float32)}), tmp_path, "int8")
    assert np.isfinite(dense(build(tmp_path).run(batch(random_texts(9)), Mode.DENSE))).all()


def test_an_exported_int8_version_cannot_be_exported_again(int8: Path) -> None:
    with pytest.raises(LoadError, match="does not say what encoder its weights belong to"):
        open_stored_model(int8)


def test_a_float16_version_has_a_second_graph_for_tensorrt(float16: Path) -> None:
    assert sorted(path.name for path in float16.iterdir()) == [MODEL_FILE, DATA_FILE, "model.tensorrt.onnx"]


def test_a_float16_version_is_refused_on_the_cpu(float16: Path) -> None:
    with pytest.raises(LoadError, match="computes in float16, which ONNX Runtime does on GPUs only"):
        build(float16)


def test_another_precision_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="has no precision `bfloat16`; use one of: float32, float16, int8"):
        export_onnxruntime(model(), tmp_path, "bfloat16")


def test_a_precision_that_the_graph_does_not_compute_in_is_refused(pulled: Path) -> None:
    with pytest.raises(LoadError, match=r"asks for precision int8, but this version's graph computes in float32"):
        build(pulled, precision="int8")


def test_an_accelerator_on_the_cpu_is_refused(pulled: Path) -> None:
    with pytest.raises(LoadError, match="accelerator `tensorrt` needs a GPU"):
        build(pulled, accelerator="tensorrt")


def test_a_graph_with_other_outputs_is_refused_with_those_it_has(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["last_hidden_state"])
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], [value])
    onnx.save(helper.make_model(graph), tmp_path / MODEL_FILE)
    with pytest.raises(LoadError, match=r"it must have the outputs dense, .* \(found last_hidden_state\)"):
        build(tmp_path)


def test_a_graph_that_computes_in_what_is_not_known_is_refused(tmp_path: Path, pulled: Path) -> None:
    graph = onnx.load(pulled / MODEL_FILE, load_external_data=False)
    graph.metadata_props.add(key="trivec.arithmetic", value="float8")
    (tmp_path / MODEL_FILE).write_bytes(graph.SerializeToString())
    with pytest.raises(LoadError, match="computes in `float8`, which this version of Trivec does not know"):
        build(tmp_path)


def test_weights_that_are_cut_off_are_refused_by_name(tmp_path: Path, pulled: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes((pulled / MODEL_FILE).read_bytes())
    (tmp_path / DATA_FILE).write_bytes((pulled / DATA_FILE).read_bytes()[:5000])
    with pytest.raises(LoadError, match=r"model\.onnx cannot be loaded by ONNX Runtime"):
        build(tmp_path)


def test_missing_weights_are_refused_by_name(tmp_path: Path, pulled: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes((pulled / MODEL_FILE).read_bytes())
    with pytest.raises(LoadError, match=r"model\.onnx\.data, the weights of model\.onnx, is missing"):
        build(tmp_path)


def test_a_session_that_opens_on_another_provider_than_chosen_is_refused(pulled: Path) -> None:
    """As ONNX Runtime does, with a warning only, where CUDA's libraries are missing."""
    on_gpu = Placement(device="cuda")
    with pytest.raises(LoadError, match="could not start CUDAExecutionProvider and offers CPUExecutionProvider"):
        open_session(pulled / MODEL_FILE, on_gpu, [("CPUExecutionProvider", {})], 1)


def test_a_library_that_cannot_be_loaded_is_named_where_cuda_does_not_start(
    pulled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime prints it, which is not what a server's standard output is for; other threads may go on printing."""

    def preload_dlls() -> None:
        other = threading.Thread(target=sys.stdout.write, args=("of another thread",))
        other.start()
        other.join()
        sys.stdout.write("Failed to load libcublas.so.12: cannot open shared object file\n")
        sys.stdout.write("Please follow the documentation to install CUDA.\n")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    with pytest.raises(
        LoadError, match=r"brings the libraries \(Failed to load libcublas\.so\.12: cannot open [^;]*\)$"
    ):
        open_session(pulled / MODEL_FILE, Placement(device="cuda"), [("CPUExecutionProvider", {})], 1)
    assert capsys.readouterr().out == "of another thread"


def cpu_session(path: Path) -> onnxruntime.InferenceSession:
    return open_session(path / MODEL_FILE, Placement(device="cpu"), [("CPUExecutionProvider", {})], 1)


def engine_of(pulled: Path, runner: object, limits: BatchLimits) -> OnnxRuntimeEngine:
    flags = {f"with_{name}" for name in ("dense", "token_weights", "multi_vector")}
    return OnnxRuntimeEngine(build(pulled).info, runner, flags, limits)  # type: ignore[arg-type] # fakes are runners


@pytest.mark.parametrize("modes", [Mode.HYBRID, Mode.SPARSE, Mode.DENSE | Mode.MULTI_VECTOR])
def test_bound_inputs_and_outputs_give_what_copied_ones_do(pulled: Path, modes: Mode) -> None:
    """The path that GPUs take, with the CPU as the device."""
    engine = engine_of(pulled, DeviceRunner(cpu_session(pulled), "cpu", 0), BatchLimits(token_budget=1024))
    texts = batch(random_texts(5, 64, 2))
    found, expected = (each.run(texts, modes) for each in (engine, build(pulled)))
    assert (found.dense is None) == (Mode.DENSE not in modes)
    for mode, part in ((Mode.DENSE, dense), (Mode.SPARSE, weights), (Mode.MULTI_VECTOR, vectors)):
        if mode in modes:
            np.testing.assert_array_equal(part(found), part(expected))


def test_memory_of_a_device_is_released_between_runs(pulled: Path) -> None:
    runner = DeviceRunner(cpu_session(pulled), "cpu", 0)
    engine = engine_of(pulled, runner, BatchLimits(token_budget=1024))
    texts = batch(random_texts(5, 64, 2))
    before = engine.run(texts, Mode.HYBRID)
    runner.release_memory()
    assert_same(engine.run(texts, Mode.HYBRID), before, 1e-6)


def test_a_batch_of_more_texts_than_a_run_takes_is_computed_in_parts(pulled: Path) -> None:
    limits = BatchLimits(token_budget=1024, shapes=(RunShape(2, 64),))
    engine = engine_of(pulled, DeviceRunner(cpu_session(pulled), "cpu", 0), limits)
    texts = batch(random_texts(5, 64, 2, 9, 33))
    assert_same(engine.run(texts, Mode.HYBRID), build(pulled).run(texts, Mode.HYBRID), 1e-6)
    assert engine.run(texts, Mode.DENSE).multi_vector is None


class SeenRunner:
    """A runner that notes the shape of each run."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.shapes: list[tuple[int, ...]] = []

    def run(self, outputs: Sequence[str], feeds: Feeds) -> Outputs:
        self.shapes.append(feeds["input_ids"].shape)
        return self._runner.run(outputs, feeds)

    def release_memory(self) -> None:
        self.shapes.append(())


def test_each_run_goes_to_the_session_that_is_built_for_its_length(pulled: Path) -> None:
    """As with TensorRT: one for batches of short texts, one for single long ones."""
    shapes = (RunShape(2, 16), RunShape(1, 64))
    short, long = (SeenRunner(DeviceRunner(cpu_session(pulled), "cpu", 0)) for _ in shapes)
    runner = RunnersByLength([(16, short), (64, long)])
    engine = engine_of(pulled, runner, BatchLimits(token_budget=64, shapes=shapes))
    for texts in (batch(random_texts(5, 16, 9)), batch(random_texts(17, 4, 64))):
        assert_same(engine.run(texts, Mode.HYBRID), build(pulled).run(texts, Mode.HYBRID), 1e-6)
    assert (short.shapes, long.shapes) == ([(2, 16), (1, 9), (1, 4)], [(1, 17), (1, 64)])
    runner.release_memory()
    assert (short.shapes[-1], long.shapes[-1]) == ((), ())


class FullDevice:
    """A runner whose device has no memory left."""

    def __init__(self) -> None:
        self.released = 0

    def run(self, outputs: object, feeds: Feeds) -> Outputs:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 268435456")

    def release_memory(self) -> None:
        self.released += 1


def test_a_batch_that_does_not_fit_is_a_memory_error_and_the_arena_is_emptied_for_the_next(pulled: Path) -> None:
    device = FullDevice()
    with pytest.raises(MemoryError):
        engine_of(pulled, device, BatchLimits(token_budget=1024)).run(batch(random_texts(9)), Mode.DENSE)
    assert device.released == 1


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("std::bad_alloc", MemoryError),
        ("Available memory of 1048576 is smaller than requested bytes of 4194304", MemoryError),
        ("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc", MemoryError),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", MemoryError),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", EngineLost),
        ("CUDA failure 999: unknown error ; GPU=1 ; expr=cudaStreamSynchronize", EngineLost),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0", EngineLost),
        ("Non-zero status code returned while running Gather node", RuntimeError),
    ],
)
def test_an_error_of_a_run_is_understood(message: str, kind: type[Exception]) -> None:
    assert type(understood(RuntimeError(message))) is kind


def test_an_int8_version_warns_on_a_cpu_whose_products_overflow_and_only_there(int8: Path) -> None:
    warned = any("overflow" in note for note in build(int8).info.notes)
    assert warned != int8_products_are_exact()


def test_token_ids_at_the_edges_of_the_vocabulary_are_looked_up(int8: Path) -> None:
    output = build(int8).run(batch([np.array([0, VOCABULARY - 1, 3, 2])]), Mode.HYBRID)
    assert np.isfinite(weights(output)).all()
