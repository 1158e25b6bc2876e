"""Models that their engines cannot run: each is UNAVAILABLE and says why, and the server serves the others."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from trivec_client import TrivecClient
from trivec_client.models import ModelInfo
from trivec_server.repository.manifest import Manifest, read_manifest, write_manifest
from trivec_server.repository.pull import pull

from tests.model_settings import rename, set_backend, set_parameter
from tests.serving_process import serve
from tests.tiny_model import write_tiny_model

Change = Callable[[Path], None]


def backend(engine: str, **parameters: str) -> Change:
    def change(model_dir: Path) -> None:
        set_backend(model_dir, engine)
        for key, value in parameters.items():
            set_parameter(model_dir, key, value)

    return change


@contextmanager
def without_gpus() -> Iterator[None]:
    """Where there are some, the server does not see them."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def on_gpus(engine: str) -> Change:
    def change(model_dir: Path) -> None:
        set_backend(model_dir, engine)
        config = model_dir / "config.pbtxt"
        config.write_text(config.read_text(encoding="utf-8").replace("KIND_AUTO", "KIND_GPU"), encoding="utf-8")

    return change


def with_tensorrt(model_dir: Path) -> None:
    set_backend(model_dir, "onnxruntime")
    with (model_dir / "config.pbtxt").open("a", encoding="utf-8") as config:
        config.write('optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }\n')


def from_another_exporter(model_dir: Path) -> None:
    """A graph with one output, `last_hidden_state`, as most exporters write it."""
    set_backend(model_dir, "onnxruntime")
    version_dir = model_dir / "1"
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    hidden = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens"])
    node = helper.make_node("Cast", ["input_ids"], ["last_hidden_state"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "foreign", [ids], [hidden])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), version_dir / "model.onnx")
    sign_again(version_dir)


def with_a_damaged_graph(model_dir: Path) -> None:
    set_backend(model_dir, "onnxruntime")
    (model_dir / "1" / "model.onnx").write_bytes(b"not a graph")
    sign_again(model_dir / "1")


def with_damaged_weights(model_dir: Path) -> None:
    set_backend(model_dir, "openvino")
    data = model_dir / "1" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4096])


def with_other_weights_than_it_says(model_dir: Path) -> None:
    """The manifest fits the files, but the graph's data is too short."""
    set_backend(model_dir, "openvino")
    data = model_dir / "1" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:5000])
    sign_again(model_dir / "1")


def sign_again(version_dir: Path) -> None:
    """A manifest that fits the files as they are now."""
    manifest: Manifest = read_manifest(version_dir)
    write_manifest(version_dir, manifest.model, manifest.source, manifest.files)


FAULTS: Mapping[str, tuple[Change, str]] = {
    "unknown-engine": (backend("tensorflow"), "backend `tensorflow` is not known; use one of: auto, flagembedding"),
    "no-gpu": (on_gpus("auto"), "instance_group asks for KIND_GPU, but no NVIDIA GPU is visible"),
    "onnxruntime-no-gpu": (on_gpus("onnxruntime"), "KIND_GPU"),
    "openvino-gpu": (on_gpus("openvino"), "KIND_GPU"),
    "pytorch-missing": (backend("pytorch"), "the engine `pytorch` needs its packages (missing: torch): pip install"),
    "no-fp8": (backend("openvino", precision="float8"), "float8"),
    "no-fp16": (backend("openvino", precision="float16"), "float16"),
    "no-int8": (backend("openvino", precision="int8"), "trivec export"),
    "onnxruntime-bf16": (backend("onnxruntime", precision="bfloat16"), "bfloat16"),
    "tensorrt": (with_tensorrt, "tensorrt"),
    "foreign-graph": (from_another_exporter, "found last_hidden_state"),
    "damaged-graph": (with_a_damaged_graph, "model.onnx"),
    "damaged-weights": (with_damaged_weights, "model.onnx.data: truncated"),
    "short-weights": (with_other_weights_than_it_says, "cannot be read"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, ModelInfo]]:
    """What a server says of its models: `good`, and one of each fault."""
    root = tmp_path_factory.mktemp("faults")
    write_tiny_model(root / "checkpoint")
    pull(str(root / "checkpoint"), root / "repository", name="good", report=lambda _: None)
    for name, (change, _) in FAULTS.items():
        shutil.copytree(root / "repository" / "good", root / "repository" / name)
        rename(root / "repository" / name)
        change(root / "repository" / name)
    with without_gpus(), serve(root / "repository") as server, TrivecClient(server.target, model="good") as client:
        # With all the others broken, this one answers.
        assert client.encode(["hello world"], max_length=64)["dense_vecs"] is not None
        yield {model.name: model for model in client.list_models()}


@pytest.mark.parametrize("name", FAULTS)
def test_a_model_that_cannot_be_run_is_unavailable_and_says_why(models: Mapping[str, ModelInfo], name: str) -> None:
    model = models[name]
    assert model.state == "UNAVAILABLE"
    assert FAULTS[name][1] in model.state_reason
    assert "\n" not in model.state_reason
    assert "/repository/" not in model.state_reason


def test_every_other_model_is_ready(models: Mapping[str, ModelInfo]) -> None:
    assert [model.name for model in models.values() if model.state == "READY"] == ["good"]
