"""What ModelConfig returns of a loaded version: as Triton completes a config, and fit to be read again."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from inference import model_config_pb2 as pb
from trivec_server.repository.loading import LoadedVersion, load_version
from trivec_server.repository.model_config import read_model_config, read_model_config_json
from trivec_server.repository.normalized_config import normalized_config
from trivec_server.repository.tensor_loading import LoadedTensors, load_tensors
from trivec_server.types import ModelSettings, ModelVersion

from tests.onnx_models import Tensor, node, write_onnx
from tests.scripted_engine import DIMENSION, Script, ScriptedEngine
from tests.small_repository import make_repository

IO = """
input { name: "A" data_type: TYPE_FP32 dims: -1 }
output { name: "B" data_type: TYPE_FP32 dims: 1 reshape { } }
"""
CPU = "instance_group { kind: KIND_CPU }\n"

LoadTensors = Callable[[str], LoadedTensors]
LoadEmbeddings = Callable[..., LoadedVersion]


@pytest.fixture
def load_tensors_of(tmp_path: Path) -> Iterator[LoadTensors]:
    """Loads the model in the directory `plain` with a config; by default one from FP32 `A` [-1] to its sum `B`."""
    loaded: list[LoadedTensors] = []
    version_dir = tmp_path / "plain" / "1"
    a: Tensor = ("FP32", ("batch", "n"))
    axis = {"axis": np.array([1])}
    nodes = [node("ReduceSum", "A axis", "B", keepdims=0)]
    write_onnx(version_dir / "model.onnx", nodes, {"A": a}, {"B": ("FP32", ["batch"])}, defaults=axis)

    def load(config: str) -> LoadedTensors:
        path = tmp_path / "plain" / "config.pbtxt"
        path.write_text(config, encoding="utf-8")
        loaded.append(load_tensors(ModelVersion("plain", 1), version_dir, read_model_config(path, "plain")))
        return loaded[-1]

    yield load
    for version in loaded:
        for device in version.devices:
            device.close()


@pytest.fixture
def load_embeddings(tmp_path: Path) -> LoadEmbeddings:
    """Loads an embedding model on an engine called `scripted`."""

    def load(config: str, device: str = "cpu") -> LoadedVersion:
        model_dir = tmp_path / "small"
        if not model_dir.exists():
            make_repository(tmp_path)
        (model_dir / "config.pbtxt").write_text('backend: "scripted"\n' + config, encoding="utf-8")
        settings = read_model_config(model_dir / "config.pbtxt", "small")
        script = Script(device=device)
        loaded = load_version(
            ModelVersion("small", 1), model_dir / "1", settings, {"scripted": lambda _: ScriptedEngine(script)}
        )
        for started in loaded.devices:
            started.close()
        return loaded

    return load


def parsed(text: str) -> pb.ModelConfig:
    return text_format.Parse(text, pb.ModelConfig())


TRITON = (
    """
name: "plain"
max_batch_size: 8
version_policy { latest { num_versions: 1 } }
optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
backend: "onnxruntime" platform: "onnxruntime_onnx" default_model_filename: "model.onnx"
"""
    + IO
)
"""What Triton adds to every config; the last line but the tensors is what it adds for ONNX files."""


class TestAsTriton:
    """What is expected is what Triton 2.51 returns, asked for the same config of a model of its python backend."""

    @pytest.mark.parametrize(
        ("config", "completed"),
        [
            ("", 'instance_group { name: "plain" count: 1 kind: KIND_CPU }'),
            (
                "instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_CPU } ]",
                """instance_group [
                  { name: "plain_0" count: 2 kind: KIND_CPU }, { name: "plain_1" count: 1 kind: KIND_CPU }
                ]""",
            ),
            (
                "dynamic_batching { }",
                'dynamic_batching { preferred_batch_size: 8 } instance_group { name: "plain" count: 1 kind: KIND_CPU }',
            ),
            (
                'parameters { key: "a" value { string_value: "b" } }',
                """parameters { key: "a" value { string_value: "b" } }
                instance_group { name: "plain" count: 1 kind: KIND_CPU }""",
            ),
        ],
    )
    def test_what_is_left_out_is_completed(self, load_tensors_of: LoadTensors, config: str, completed: str) -> None:
        loaded = load_tensors_of('backend: "onnxruntime" max_batch_size: 8\n' + IO + config)
        assert normalized_config(loaded) == parsed(TRITON + completed)

    @pytest.mark.parametrize("policy", ["all { }", "latest { num_versions: 3 }", "specific { versions: [ 1, 3 ] }"])
    def test_a_version_policy_stays(self, load_tensors_of: LoadTensors, policy: str) -> None:
        config = normalized_config(load_tensors_of(f"version_policy {{ {policy} }}"))
        assert config.version_policy == parsed(f"version_policy {{ {policy} }}").version_policy

    def test_what_is_given_of_batching_stays(self, load_tensors_of: LoadTensors) -> None:
        batching = """dynamic_batching {
          preferred_batch_size: [ 2, 4 ]
          max_queue_delay_microseconds: 5
          default_queue_policy { max_queue_size: 3 }
          priority_levels: 2
          default_priority_level: 1
          priority_queue_policy { key: 1 value { timeout_action: DELAY default_timeout_microseconds: 4 } }
        }"""
        config = normalized_config(load_tensors_of("max_batch_size: 8\n" + batching))
        assert config.dynamic_batching == parsed(batching).dynamic_batching

    def test_without_a_batch_dimension_there_is_no_empty_shape(
        self, load_tensors_of: LoadTensors, tmp_path: Path
    ) -> None:
        scalar: Tensor = ("FP32", [])
        write_onnx(tmp_path / "plain" / "1" / "model.onnx", [node("Neg", "A", "B")], {"A": scalar}, {"B": scalar})
        config = normalized_config(load_tensors_of(""))
        assert (list(config.input[0].dims), config.input[0].HasField("reshape")) == ([1], False)
        assert (list(config.output[0].dims), config.max_batch_size) == ([1], 0)


class TestEmbeddings:
    def test_inputs_and_outputs_are_those_of_requests(self, load_embeddings: LoadEmbeddings) -> None:
        config = normalized_config(load_embeddings("max_batch_size: 16"))
        assert config == parsed(
            """
            name: "small"
            version_policy { latest { num_versions: 1 } }
            max_batch_size: 16
            input { name: "text" data_type: TYPE_STRING dims: 1 }
            output [
              { name: "dense" data_type: TYPE_FP32 dims: DIMENSION },
              { name: "sparse_indptr" data_type: TYPE_INT64 dims: -1 },
              { name: "sparse_indices" data_type: TYPE_INT64 dims: -1 },
              { name: "sparse_values" data_type: TYPE_FP32 dims: -1 },
              { name: "multi_vector_offsets" data_type: TYPE_INT64 dims: -1 },
              { name: "multi_vector" data_type: TYPE_FP32 dims: [ -1, DIMENSION ] }
            ]
            instance_group { name: "small" count: 1 kind: KIND_CPU }
            dynamic_batching { preferred_batch_size: 16 }
            optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
            backend: "scripted"
            """.replace("DIMENSION", str(DIMENSION))
        )

    def test_kind_auto_is_what_it_came_to_be(self, load_embeddings: LoadEmbeddings) -> None:
        (group,) = normalized_config(load_embeddings("max_batch_size: 16", device="cuda:1")).instance_group
        assert (group.kind, list(group.gpus)) == (pb.ModelInstanceGroup.KIND_GPU, [1])


TENSORS = """
backend: "onnxruntime"
max_batch_size: 16
input { name: "A" data_type: TYPE_FP32 dims: [ -1, 1 ] reshape { shape: [ -1 ] } allow_ragged_batch: true }
output { name: "B" data_type: TYPE_FP32 dims: 1 reshape { } }
version_policy { specific { versions: [ 1, 5 ] } }
instance_group [ { kind: KIND_CPU count: 2 }, { kind: KIND_CPU } ]
dynamic_batching {
  preferred_batch_size: [ 4 ]
  max_queue_delay_microseconds: 100
  default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 9 allow_timeout_override: true }
}
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
model_warmup {
  name: "w" batch_size: 2 count: 3 inputs { key: "A" value { data_type: TYPE_FP32 dims: [ 2, 1 ] random_data: true } }
}
"""
EMBEDDINGS = """
max_batch_size: 16
instance_group { kind: KIND_CPU }
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  priority_levels: 2 default_priority_level: 2
  default_queue_policy { max_queue_size: 9 }
  priority_queue_policy { key: 1 value { max_queue_size: 7 } }
}
response_cache { enable: true }
model_warmup { name: "w" batch_size: 2 inputs { key: "text" value { data_type: TYPE_STRING dims: 8 zero_data: true } } }
parameters { key: "max_tokens" value { string_value: "32" } }
parameters { key: "token_budget" value { string_value: "100" } }
parameters { key: "query_prefix" value { string_value: "w11 " } }
parameters { key: "score_weights" value { string_value: "0.4,0.25,1" } }
parameters { key: "intra_op_threads" value { string_value: "1" } }
parameters { key: "worker_process" value { string_value: "false" } }
"""


def read_again(loaded: LoadedVersion | LoadedTensors, model_dir: Path) -> list[ModelSettings]:
    """The settings of what is returned, written as text and as JSON; without the warnings of what has no effect."""
    config = normalized_config(loaded)
    path = model_dir / "config.pbtxt"
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    as_json = json_format.MessageToJson(config, preserving_proto_field_name=True)
    read = [
        read_model_config(path, loaded.key.name),
        read_model_config_json(as_json, loaded.key.name, model_dir=model_dir),
    ]
    return [replace(settings, warnings=()) for settings in read]


class TestReadAgain:
    def test_the_settings_of_tensors_are_the_same(self, load_tensors_of: LoadTensors, tmp_path: Path) -> None:
        loaded = load_tensors_of(TENSORS)
        assert read_again(loaded, tmp_path / "plain") == [loaded.settings] * 2

    def test_what_was_completed_is_not_completed_anew(self, load_tensors_of: LoadTensors, tmp_path: Path) -> None:
        loaded = load_tensors_of(CPU)
        settings, _ = read_again(loaded, tmp_path / "plain")
        preferred = replace(loaded.settings.batching, preferred_batch_sizes=(4,))
        assert settings == replace(loaded.settings, batching=preferred)

    def test_the_settings_of_embeddings_are_the_same(self, load_embeddings: LoadEmbeddings, tmp_path: Path) -> None:
        loaded = load_embeddings(EMBEDDINGS)
        declared = replace(
            loaded.settings,
            declared_modes=loaded.info.modes,
            dense_dimension=loaded.info.dense_dimension,
            multi_vector_dimension=loaded.info.multi_vector_dimension,
        )
        assert read_again(loaded, tmp_path / "small") == [declared] * 2
