"""The `config.pbtxt` of a model that takes tensors: when it is one, what it becomes, and what an error says."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trivec_server.errors import ConfigError
from trivec_server.repository.model_config import read_model_config
from trivec_server.types import (
    BatchingSettings,
    InstanceGroup,
    InstanceKind,
    ModelSettings,
    QueuePolicy,
    TensorSettings,
    TensorSpec,
    TensorWarmup,
    TimeoutAction,
    VersionPolicy,
    WarmupData,
    WarmupTensor,
)

START = 'backend: "onnxruntime"\nmax_batch_size: 8\n'
"""Two lines that every config below begins with: a line of its own is line 3."""
INPUT = 'input { name: "INPUT0" data_type: TYPE_FP32 dims: -1 }\n'
DENSE = 'output { name: "dense" data_type: TYPE_FP32 dims: 4 }\n'

Read = Callable[..., ModelSettings]
Fault = Callable[..., str]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "reranker"
    directory.mkdir()
    return directory


@pytest.fixture
def read(model_dir: Path) -> Read:
    def read_text(text: str, start: str = START) -> ModelSettings:
        path = model_dir / "config.pbtxt"
        path.write_text(start + text, encoding="utf-8")
        return read_model_config(path, "reranker")

    return read_text


@pytest.fixture
def fault(read: Read, model_dir: Path) -> Fault:
    """Reads a wrong config; gives the message without the path of the file."""

    def read_wrong(text: str, start: str = START) -> str:
        with pytest.raises(ConfigError) as caught:
            read(text, start)
        return str(caught.value).removeprefix(f"{model_dir}/config.pbtxt:")

    return read_wrong


def put(model_dir: Path, *paths: str) -> None:
    for path in paths:
        (model_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (model_dir / path).touch()


class TestKind:
    @pytest.mark.parametrize(
        "text",
        [
            INPUT,
            'output { name: "label" data_type: TYPE_STRING dims: 1 }',
            'input { name: "text" data_type: TYPE_STRING dims: 1 } output { name: "c" data_type: TYPE_INT8 dims: 1 }',
            INPUT + DENSE,
        ],
    )
    def test_other_inputs_or_outputs_are_of_a_model_that_takes_tensors(self, read: Read, text: str) -> None:
        assert read(text).tensors is not None

    @pytest.mark.parametrize("text", [DENSE, 'input { name: "text" data_type: TYPE_STRING dims: 1 }', ""])
    def test_an_embedding_model_whose_manifest_is_on_its_way_stays_one(
        self, read: Read, model_dir: Path, text: str
    ) -> None:
        put(model_dir, "1/tokenizer.json", *["1/model.onnx"] * bool(text))
        assert read(text).tensors is None

    def test_a_parameter_of_embedding_models_makes_it_one(self, read: Read, model_dir: Path) -> None:
        put(model_dir, "1/model.onnx")
        assert read('parameters { key: "pooling" value { string_value: "cls" } }').tensors is None

    def test_another_backend_serves_embedding_models(self, fault: Fault) -> None:
        message = fault(INPUT, start='backend: "openvino"\n')
        assert (
            "'INPUT0' is not `text`, the only input of an embedding model; a model that takes tensors needs" in message
        )

    def test_where_nothing_is_declared_a_model_file_without_a_manifest_decides(
        self, read: Read, model_dir: Path
    ) -> None:
        put(model_dir, "1/model.onnx")
        assert read("").tensors is not None
        put(model_dir, "2/manifest.json")
        assert read("").tensors is None

    def test_the_model_file_may_have_another_name(self, read: Read, model_dir: Path) -> None:
        put(model_dir, "3/reranker.onnx")
        assert read("").tensors is None
        assert read('default_model_filename: "reranker.onnx"').tensors is not None

    @pytest.mark.parametrize("text", ["", INPUT])
    def test_the_backend_may_be_left_out_beside_a_model_file(self, read: Read, model_dir: Path, text: str) -> None:
        put(model_dir, "1/model.onnx")
        read_settings = read(text, start="")
        assert (read_settings.backend, read_settings.tensors is None) == ("onnxruntime", False)

    def test_without_a_model_file_the_backend_is_needed(self, fault: Fault) -> None:
        assert "backend: missing" in fault("max_batch_size: 1", start="")


FULL = """
platform: "onnxruntime_onnx"
max_batch_size: 32
default_model_filename: "sub/reranker.onnx"
input [
  { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] allow_ragged_batch: true },
  { name: "scalar" data_type: TYPE_BF16 dims: [ 1 ] reshape { shape: [ ] } },
  { name: "words" data_type: TYPE_STRING dims: [ 2, -1, 3 ] reshape { shape: [ 1, 2, -1, 3, 1 ] } optional: true }
]
output { name: "score" data_type: TYPE_FP16 dims: [ 1 ] reshape { shape: [ 1, 1 ] } }
version_policy { all { } }
instance_group { kind: KIND_CPU count: 2 }
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 7
  default_queue_policy {
    timeout_action: DELAY default_timeout_microseconds: 5 allow_timeout_override: true max_queue_size: 3
  }
}
model_warmup {
  name: "some" batch_size: 2 count: 3
  inputs { key: "ids" value { data_type: TYPE_INT64 dims: 5 random_data: true } }
  inputs { key: "scalar" value { data_type: TYPE_BF16 dims: 1 zero_data: true } }
  inputs { key: "words" value { data_type: TYPE_STRING dims: [ 2, 1, 3 ] input_data_file: "words.raw" } }
}
parameters { key: "intra_op_thread_count" value { string_value: "2" } }
"""


class TestSettings:
    def test_every_field_that_is_acted_on_reaches_the_settings(self, read: Read) -> None:
        assert read(FULL, start="") == ModelSettings(
            name="reranker",
            backend="onnxruntime",
            version_policy=VersionPolicy(latest=None),
            batching=BatchingSettings(
                max_batch_size=32,
                preferred_batch_sizes=(4, 8),
                max_queue_delay_us=7,
                queue_policy=QueuePolicy(
                    timeout_action=TimeoutAction.DELAY, timeout_us=5, allow_timeout_override=True, max_queue_size=3
                ),
            ),
            instance_groups=(InstanceGroup(kind=InstanceKind.CPU, count=2),),
            intra_op_threads=2,
            tensors=TensorSettings(
                inputs=(
                    TensorSpec(name="ids", datatype="INT64", shape=(-1,), allow_ragged=True),
                    TensorSpec(name="scalar", datatype="BF16", shape=(1,), reshape=()),
                    TensorSpec(
                        name="words", datatype="BYTES", shape=(2, -1, 3), reshape=(1, 2, -1, 3, 1), optional=True
                    ),
                ),
                outputs=(TensorSpec(name="score", datatype="FP16", shape=(1,), reshape=(1, 1)),),
                model_filename="sub/reranker.onnx",
                warmups=(
                    TensorWarmup(
                        name="some",
                        batch_size=2,
                        count=3,
                        inputs=(
                            WarmupTensor(name="ids", datatype="INT64", shape=(5,), data=WarmupData.RANDOM),
                            WarmupTensor(name="scalar", datatype="BF16", shape=(1,)),
                            WarmupTensor(
                                name="words",
                                datatype="BYTES",
                                shape=(2, 1, 3),
                                data=WarmupData.FILE,
                                filename="words.raw",
                            ),
                        ),
                    ),
                ),
                parameters={"intra_op_thread_count": "2"},
            ),
        )

    def test_without_a_batch_size_there_is_no_batch_dimension(self, read: Read) -> None:
        batching = read('backend: "onnxruntime"' + INPUT, start="").batching
        assert (batching.max_batch_size, batching.joins_requests) == (0, False)

    def test_requests_are_joined_only_with_dynamic_batching(self, read: Read) -> None:
        assert not read(INPUT).batching.joins_requests
        assert read(INPUT + "dynamic_batching { }").batching.joins_requests

    def test_a_reshape_to_the_same_shape_is_none(self, read: Read) -> None:
        tensors = read('input { name: "a" data_type: TYPE_BOOL dims: [ 2, -1 ] reshape { shape: [ 2, -1 ] } }').tensors
        assert tensors is not None
        assert tensors.inputs[0].reshape is None

    @pytest.mark.parametrize(
        "datatype",
        [
            "BOOL",
            "UINT8",
            "UINT16",
            "UINT32",
            "UINT64",
            "INT8",
            "INT16",
            "INT32",
            "INT64",
            "FP16",
            "FP32",
            "FP64",
            "BF16",
        ],
    )
    def test_every_numeric_type_has_its_name(self, read: Read, datatype: str) -> None:
        tensors = read(f'input {{ name: "a" data_type: TYPE_{datatype} dims: 1 }}').tensors
        assert tensors is not None
        assert tensors.inputs[0].datatype == datatype

    @pytest.mark.parametrize(
        ("text", "field"),
        [
            ("response_cache { enable: true }", "response_cache"),
            ('input { name: "b" data_type: TYPE_FP32 dims: [ 1, 2, 2 ] format: FORMAT_NCHW }', "input[1].format"),
            ("dynamic_batching { preserve_ordering: true }", "dynamic_batching.preserve_ordering"),
            (
                'optimization { execution_accelerators { gpu_execution_accelerator { name: "auto" } } }',
                "optimization.execution_accelerators.gpu_execution_accelerator[0].name",
            ),
            ('parameters { key: "mine" value { string_value: "1" } }', 'parameters["mine"]'),
        ],
    )
    def test_a_field_without_effect_is_one_warning_with_its_place(self, read: Read, text: str, field: str) -> None:
        (warning,) = read(INPUT + text).warnings
        assert re.search(rf"config\.pbtxt:4:\d+: {re.escape(field)}: accepted, but has no effect here", warning)

    def test_a_key_near_one_that_counts_is_suggested(self, read: Read) -> None:
        (warning,) = read(INPUT + 'parameters { key: "intra_op_thread" value { string_value: "1" } }').warnings
        assert warning.endswith("did you mean `intra_op_threads`?")

    def test_0_threads_are_as_many_as_fit(self, read: Read) -> None:
        text = 'parameters { key: "intra_op_thread_count" value { string_value: "0" } }'
        assert read(INPUT + text).intra_op_threads is None


def tensor(fields: str) -> str:
    return f'input {{ name: "a" data_type: TYPE_FP32 {fields} }}'


def warmup(fields: str) -> str:
    return f'model_warmup {{ inputs {{ key: "a" value {{ {fields} }} }} }}'


class TestFaults:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("input { data_type: TYPE_FP32 dims: 1 }", "4:1: input[1].name: missing: it is the name of the input in"),
            (tensor("dims: 1") * 2, "input[2].name: input 'a' is given twice"),
            ('output { name: "a" dims: 1 }', "4:1: output[0].data_type: missing; it is one of TYPE_BOOL, TYPE_UINT8"),
            ('output { name: "a" data_type: 99 dims: 1 }', "output[0].data_type: 99 is no data type; it is one of"),
            (tensor(""), "input[1].dims: empty: a scalar is `dims: [ 1 ]` with `reshape { shape: [ ] }`"),
            (tensor("dims: 0"), "input[1].dims[0]: 0 is neither from 1 nor -1, a dimension that varies"),
            (tensor("dims: [ 4,\n -2 ]"), "5:2: input[1].dims[1]: -2 is neither from 1 nor -1"),
            (tensor("dims: 4 reshape { shape: [ 2, 0 ] }"), "input[1].reshape.shape[1]: 0 is neither"),
            (
                tensor("dims: 4 reshape { shape: [ 3 ] }"),
                "input[1].reshape.shape: [3] has not as many elements as dims [4]",
            ),
            (tensor("dims: 4 reshape { shape: [ ] }"), "[] has not as many elements as dims [4]"),
            (tensor("dims: -1 reshape { shape: [ ] }"), "[] has not as many elements as dims [-1]"),
            (tensor("dims: [ 2, -1, 3 ] reshape { shape: [ 3, -1, 2 ] }"), "[3, -1, 2] has not as many elements"),
            (tensor("dims: [ -1, -1 ] reshape { shape: [ -1 ] }"), "[-1] has not as many elements as dims [-1, -1]"),
            ('default_model_filename: "../../secret"', "is not the path of a file inside its directory"),
            ('default_model_filename: "/etc/passwd"', "'/etc/passwd' is not the path of a file inside"),
            ('default_model_filename: "a\\000b"', "is not the path of a file inside its directory"),
            ("dynamic_batching { preferred_batch_size: 9 }", "preferred_batch_size[0]: 9 exceeds max_batch_size 8"),
            ("instance_group { kind: KIND_MODEL }", "KIND_MODEL is not supported"),
            ("sequence_batching { }", "sequence_batching: not supported: sequences of requests cannot be served"),
            ("model_transaction_policy { decoupled: true }", "decoupled: not supported: every request gets exactly"),
            ('batch_input { target_name: "x" }', "batch_input: not supported: the server adds no tensors"),
            ('batch_output { target_name: "x" }', "batch_output: not supported: the server adds no tensors"),
            (tensor("dims: 1 is_shape_tensor: true"), "input[1].is_shape_tensor: not supported: only TensorRT plans"),
            ("model_warmup { }", "model_warmup[0].inputs: missing: a warm-up needs every input of the model"),
            ("model_warmup { batch_size: 0 }", "model_warmup[0].batch_size: 0 is below 1"),
            (warmup("data_type: TYPE_FP32 dims: 1"), 'model_warmup[0].inputs["a"]: has no data: add `zero_data: true`'),
            (warmup("data_type: TYPE_FP32 dims: -1 zero_data: true"), "-1 is below 1: a warm-up states the size of"),
            (
                warmup("dims: 1 zero_data: true"),
                'model_warmup[0].inputs["a"].data_type: missing; it is one of TYPE_BOOL',
            ),
            (
                warmup('data_type: TYPE_FP32 dims: 1 input_data_file: "../x"'),
                "inputs[\"a\"].input_data_file: '../x' is not the path of a file inside its directory",
            ),
            (warmup('data_type: TYPE_FP32 dims: 1 input_data_file: ""'), "input_data_file: empty: it is the name of a"),
            (
                'parameters { key: "intra_op_threads" value { string_value: "0" } }',
                "'0' is not a whole number from 1 to 1024",
            ),
            (
                (
                    'parameters { key: "intra_op_threads" value { string_value: "1" } }'
                    'parameters { key: "intra_op_thread_count" value { string_value: "1" } }'
                ),
                'parameters["intra_op_thread_count"]: the same as `intra_op_threads`; remove one of them',
            ),
        ],
    )
    def test_a_wrong_value_names_its_field_and_what_is_allowed(self, fault: Fault, text: str, message: str) -> None:
        assert message in (
            fault(INPUT + text) if text else fault(INPUT, start='name: "other"\nbackend: "onnxruntime"\n')
        )

    def test_a_batch_size_below_0_is_refused(self, fault: Fault) -> None:
        message = fault(INPUT, start='backend: "onnxruntime" max_batch_size: -1\n')
        assert "max_batch_size: -1 is below 0: 0 is a model without a batch dimension" in message


WORDS = sorted(set(re.findall(r'"[^"\n]*"|[\w.-]+|[^\w\s]', FULL)) | {"\n", '"', "<", "9" * 30, "-1"})


class TestAnyBytes:
    """Nothing but ConfigError comes out of a file, whatever is in it."""

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        start=st.integers(0, len(FULL)), length=st.integers(0, 30), insert=st.text(max_size=10) | st.sampled_from(WORDS)
    )
    def test_a_config_with_a_piece_replaced(self, model_dir: Path, start: int, length: int, insert: str) -> None:
        path = model_dir / "config.pbtxt"
        path.write_bytes((FULL[:start] + insert + FULL[start + length :]).encode(errors="surrogatepass"))
        message = str(path)
        try:
            assert isinstance(read_model_config(path, "reranker"), ModelSettings)
        except ConfigError as error:
            message = str(error)
        assert message.isprintable()
        assert message.startswith(str(path))
