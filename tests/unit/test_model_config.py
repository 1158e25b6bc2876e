"""Reading `config.pbtxt`: what is accepted, what it becomes, and what an error says."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference import model_config_pb2 as pb
from trivec_server.errors import ConfigError
from trivec_server.repository.config_fields import EMBEDDING_FIELDS, TENSOR_FIELDS, FieldRules
from trivec_server.repository.config_reader import PLATFORM_BACKENDS
from trivec_server.repository.model_config import read_model_config
from trivec_server.repository.parameters import PARAMETERS
from trivec_server.repository.pbtxt import MAX_FILE_BYTES
from trivec_server.types import (
    InstanceGroup,
    InstanceKind,
    Mode,
    ModelSettings,
    QueuePolicy,
    ScoreWeights,
    TimeoutAction,
    VersionPolicy,
    Warmup,
)

DOCS = Path(__file__).parents[2] / "docs" / "model-repository.md"
START = 'backend: "auto"\nmax_batch_size: 64\n'
"""Two lines that every config below begins with: a line of its own is line 3."""

Read = Callable[..., ModelSettings]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_text(text: str, start: str = START) -> ModelSettings:
        path = tmp_path / "config.pbtxt"
        path.write_text(start + text, encoding="utf-8")
        return read_model_config(path, "m3")

    return read_text


@pytest.fixture
def fault(read: Read, tmp_path: Path) -> Callable[..., str]:
    """Reads a wrong config; gives the message without the path of the file."""

    def read_wrong(text: str, start: str = START) -> str:
        with pytest.raises(ConfigError) as caught:
            read(text, start)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / "config.pbtxt"))
        return message.removeprefix(f"{tmp_path}/config.pbtxt:")

    return read_wrong


Fault = Callable[..., str]


class TestWholeFiles:
    def test_two_lines_are_enough_and_give_the_defaults(self, read: Read) -> None:
        assert read("") == ModelSettings(name="m3", backend="auto")

    def test_every_field_that_is_acted_on_reaches_the_settings(self, read: Read) -> None:
        read_settings = read(FULL, start="")
        batching = read_settings.batching
        assert read_settings.name == "m3"
        assert read_settings.backend == "onnxruntime"
        assert read_settings.version_policy == VersionPolicy(latest=2)
        assert batching.max_batch_size == 32
        assert batching.preferred_batch_sizes == (8, 16, 32)
        assert batching.max_queue_delay_us == 500
        assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
        assert batching.queue_policy == QueuePolicy(
            timeout_action=TimeoutAction.DELAY, timeout_us=1000, allow_timeout_override=True, max_queue_size=100
        )
        assert dict(batching.priority_queue_policies) == {1: QueuePolicy(max_queue_size=7)}
        assert batching.token_budget == 16384
        assert read_settings.instance_groups == (
            InstanceGroup(kind=InstanceKind.GPU, count=2, gpus=(0, 1)),
            InstanceGroup(kind=InstanceKind.CPU, count=1),
        )
        assert read_settings.warmups == (Warmup(name="long", batch_size=4, tokens=512, count=2),)
        assert read_settings.declared_modes == Mode.HYBRID
        assert (read_settings.dense_dimension, read_settings.multi_vector_dimension) == (1024, 128)
        assert (read_settings.pooling, read_settings.precision) == ("cls", "float16")
        assert (read_settings.max_tokens, read_settings.intra_op_threads) == (8192, 4)
        assert (read_settings.query_prefix, read_settings.passage_prefix) == ("query: ", "passage: ")
        assert read_settings.score_weights == ScoreWeights(0.4, 0.2, 0.4)
        assert read_settings.response_cache
        assert read_settings.tensors is None
        assert read_settings.warnings == ()

    def test_a_byte_order_mark_and_windows_line_ends_are_read(self, read: Read) -> None:
        assert read("\ufeff" + START.replace("\n", "\r\n"), start="") == ModelSettings(name="m3", backend="auto")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"absent\.pbtxt: not found"):
            read_model_config(tmp_path / "absent.pbtxt", "m3")

    def test_a_directory_in_its_place_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            read_model_config(tmp_path, "m3")

    def test_bytes_that_are_not_utf8_are_named_with_their_line(self, tmp_path: Path) -> None:
        path = tmp_path / "config.pbtxt"
        path.write_bytes(b"# good\n# b\xffd\n")
        with pytest.raises(ConfigError, match=r"config\.pbtxt:2: not UTF-8: byte 0xff"):
            read_model_config(path, "m3")

    def test_a_file_over_the_size_limit_is_refused(self, fault: Fault) -> None:
        assert "larger than 1048576 bytes" in fault("#" * MAX_FILE_BYTES)


FULL = """
name: "m3"  # the directory
platform: "onnxruntime_onnx"
backend: "onnxruntime"
max_batch_size: 32
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "dense" data_type: TYPE_FP32 dims: [ 1024 ] },
  { name: "sparse" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "multi_vector" data_type: TYPE_FP32 dims: [ -1, 128 ] }
]
version_policy { latest { num_versions: 2 } }
instance_group [ { kind: KIND_GPU count: 2 gpus: [ 0, 1 ] }, { kind: KIND_CPU } ]
dynamic_batching {
  preferred_batch_size: [ 32, 8, 16, 8 ]
  max_queue_delay_microseconds: 500
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy {
    timeout_action: DELAY
    default_timeout_microseconds: 1000
    allow_timeout_override: true
    max_queue_size: 100
  }
  priority_queue_policy { key: 1 value { max_queue_size: 7 } }
}
model_warmup [ {
  name: "long"
  batch_size: 4
  count: 2
  inputs { key: "text" value { data_type: TYPE_STRING dims: [ 512 ] random_data: true } }
} ]
response_cache { enable: true }
parameters { key: "max_tokens" value { string_value: "8192" } }
parameters { key: "token_budget" value { string_value: "16384" } }
parameters { key: "pooling" value { string_value: "cls" } }
parameters { key: "query_prefix" value { string_value: "query: " } }
parameters { key: "passage_prefix" value { string_value: "passage: " } }
parameters { key: "precision" value { string_value: "float16" } }
parameters { key: "score_weights" value { string_value: "0.4, 0.2, 0.4" } }
parameters { key: "intra_op_threads" value { string_value: "4" } }
"""


class TestSyntax:
    """A fault of the text is placed at its line and column."""

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "  max_bath_size: 4",
                "3:3: unknown field `max_bath_size` in ModelConfig; did you mean `max_batch_size`?",
            ),
            (
                "dynamic_batching {\n  max_queue_delay_microsecond: 4 }",
                (
                    "4:3: unknown field `max_queue_delay_microsecond` in ModelDynamicBatching; "
                    "did you mean `max_queue_delay_microseconds`?"
                ),
            ),
            ("zzz: 1", "3:1: unknown field `zzz` in ModelConfig"),
            (
                "instance_group [ { kind: KIND_GUP } ]",
                "3:26: instance_group.kind: unknown value 'KIND_GUP'; did you mean `KIND_GPU`?",
            ),
            (
                "dynamic_batching { default_queue_policy {\ntimeout_action: 'x' } }",
                (
                    "4:17: dynamic_batching.default_queue_policy.timeout_action: unknown value \"'x'\"; "
                    "it is one of REJECT, DELAY"
                ),
            ),
            ("name: 3", "3:7: name: expected string but found: '3'"),
            (
                'dynamic_batching { preferred_batch_size: [ 4,\n "8" ] }',
                '4:2: dynamic_batching.preferred_batch_size[1]: couldn\'t parse integer: "8"',
            ),
            (
                "dynamic_batching { preferred_batch_size: [ 4, 99999999999 ] }",
                "3:47: dynamic_batching.preferred_batch_size[1]: value out of range: 99999999999",
            ),
            ("instance_group { kind: 99999999999 }", "3:24: Value out of range: 99999999999"),
            ("max_batch_size: 3", "3:17: `max_batch_size` is given twice"),
            ("dynamic_batching { }\nsequence_batching { }", "`sequence_batching` and `dynamic_batching` exclude"),
            ('name: "m3', "3:7: name: string missing ending quote"),
            ("name:", "3:6: name: expected string but found: ''"),
            ("instance_group [ { count: 1 }", "expected"),
            ("}", "3:1: expected identifier or number, got }"),
            ('name: "C:\\models"', "3:10: `\\m` is no escape; a backslash is written `\\\\`"),
            ('name: "\\401"', "3:8: `\\4` is no escape"),
        ],
    )
    def test_a_fault_names_line_column_and_what_is_wrong(self, fault: Fault, text: str, message: str) -> None:
        assert message in fault(text)

    def test_a_key_of_a_map_given_twice_is_refused(self, fault: Fault) -> None:
        entry = 'parameters { key: "max_tokens" value { string_value: "4" } }\n'
        assert fault(entry * 2) == '4:1: parameters["max_tokens"]: given twice'

    def test_legal_escapes_and_comments_are_read(self, read: Read) -> None:
        text = (
            'parameters { key: "query_prefix" # "not\\a string\n value { string_value: "a\\tb\\x41\\101\\\\d" \'"\' } }'
        )
        assert read(text).query_prefix == 'a\tbAA\\d"'


class TestValues:
    """A value out of range is named by field path, line, and what is allowed."""

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('name: "m4"', "3:7: name: 'm4' is not the name of the model's directory, 'm3'"),
            ('platform: "onnxruntime"', "did you mean `onnxruntime_onnx`?"),
            ('platform: "tensorrt_plan"', "'tensorrt_plan' is backend tensorrt, not 'auto'"),
            ('platform: "ensemble"', "3:11: platform: not supported: ensembles"),
            ('input { name: "TEXT" data_type: TYPE_STRING dims: 1 }', "3:15: input[0].name: 'TEXT' is not `text`"),
            ('input { name: "text" data_type: TYPE_INT64 dims: 1 }', "input[0].data_type: TYPE_INT64 is not TYPE_ST"),
            ('input { name: "text" dims: 1 }', "input[0].data_type: TYPE_INVALID is not TYPE_STRING"),
            ('input { name: "text" data_type: TYPE_STRING dims: -1 }', "input[0].dims: [-1] is not [1]"),
            (
                'input { name: "text" data_type: TYPE_STRING dims: 1 } input { name: "b" }',
                "input[1]: there is only one",
            ),
            ('output { name: "dens" data_type: TYPE_FP32 dims: 4 }', "output[0].name: unknown output 'dens'; did you"),
            ('output { name: "dense" data_type: TYPE_INT8 dims: 4 }', "TYPE_INT8 is not TYPE_FP32 or TYPE_FP16"),
            ('output { name: "dense" data_type: 99 dims: 4 }', "99 is not TYPE_FP32 or TYPE_FP16"),
            ('output { name: "dense" data_type: TYPE_FP32 dims: 0 }', "3:51: output[0].dims: [0] is not [D]"),
            ('output { name: "dense" data_type: TYPE_FP32 dims: [ -1, 4 ] }', "output[0].dims: [-1, 4] is not [D]"),
            ('output { name: "dense" data_type: TYPE_FP32 }', "output[0].dims: [] is not [D]"),
            ('output { name: "sparse" data_type: TYPE_FP32 dims: 4 }', "output[0].dims: [4] is not [-1]"),
            ('output { name: "multi_vector" data_type: TYPE_FP32 dims: 4 }', "output[0].dims: [4] is not [-1, D]"),
            ('output { name: "multi_vector" data_type: TYPE_FP32 dims: [ 4, 4 ] }', "[4, 4] is not [-1, D]"),
            ('output { name: "sparse_indptr" data_type: TYPE_FP32 dims: -1 }', "TYPE_FP32 is not TYPE_INT64"),
            ('output { name: "sparse_values" data_type: TYPE_FP32 dims: 4 }', "output[0].dims: [4] is not [-1]"),
            (
                'output [ { name: "sparse" data_type: TYPE_FP32 dims: -1 }, { name: "sparse" } ]',
                "'sparse' is given twice",
            ),
            ("version_policy { latest { num_versions: 0 } }", "3:41: version_policy.latest.num_versions: 0 is below 1"),
            ("version_policy { specific { } }", "3:18: version_policy.specific.versions: empty"),
            ("version_policy { specific { versions: [ 3, 0 ] } }", "version_policy.specific.versions[1]: 0 is below 1"),
            ("instance_group { count: 0 }", "3:25: instance_group[0].count: 0 is below 1"),
            (
                "instance_group { count: 65 }",
                "instance_group[0].count: 65 engine instances; at most 64 of a model can run in one server",
            ),
            ("instance_group { count: 33 gpus: [ 0, 1 ] }", "instance_group[0].count: 66 engine instances; at most 64"),
            ("instance_group [ { count: 60 }, { count: 5 } ]", "instance_group: 65 engine instances; at most 64"),
            ("instance_group { count: -2 }", "instance_group[0].count: -2 is below 1"),
            ("instance_group [ { }, { kind: KIND_MODEL } ]", "instance_group[1].kind: KIND_MODEL is not supported"),
            ("instance_group { kind: 9 }", "instance_group[0].kind: 9 is not KIND_AUTO"),
            ("instance_group { kind: KIND_CPU gpus: 0 }", "instance_group[0].gpus: excluded by KIND_CPU"),
            ("instance_group { gpus: [ 0, -1 ] }", "instance_group[0].gpus[1]: -1 is below 0"),
            ("instance_group { gpus: [ 1, 1 ] }", "instance_group[0].gpus[1]: 1 is given twice"),
            (
                "dynamic_batching {\n  preferred_batch_size: [ 8,\n 128 ] }",
                "5:2: dynamic_batching.preferred_batch_size[1]: 128 exceeds max_batch_size 64",
            ),
            ("dynamic_batching { preferred_batch_size: 0 }", "dynamic_batching.preferred_batch_size[0]: 0 is below 1"),
            ("dynamic_batching { priority_levels: 2 }", "default_priority_level: 0 is not a level from 1 to"),
            ("dynamic_batching { priority_levels: 2 default_priority_level: 3 }", "3 is not a level from 1 to"),
            ("dynamic_batching { priority_levels: 4294967296 }", "4294967296 exceeds 4294967295"),
            (
                (
                    "dynamic_batching { priority_levels: 2 default_priority_level: 1\n"
                    "priority_queue_policy { key: 3 value { } } }"
                ),
                '4:1: dynamic_batching.priority_queue_policy["3"]: 3 is not a level from 1 to priority_levels 2',
            ),
            ("dynamic_batching { default_queue_policy { timeout_action: 5 } }", "timeout_action: 5 is not REJECT or D"),
            (
                "dynamic_batching { preserve_ordering: true priority_levels: 2 default_priority_level: 1 }",
                "preserve_ordering: excludes priority_levels 2",
            ),
            (
                "dynamic_batching { preserve_ordering: true default_queue_policy { timeout_action: DELAY } }",
                "preserve_ordering: excludes a queue policy with timeout_action DELAY",
            ),
            ("model_warmup { batch_size: 65 }", "model_warmup[0].batch_size: 65 exceeds max_batch_size 64"),
            ("model_warmup { batch_size: 0 }", "model_warmup[0].batch_size: 0 is below 1"),
            ("model_warmup { count: 0 }", "model_warmup[0].count: 0 is below 1"),
            ('model_warmup { inputs { key: "ids" } }', 'model_warmup[0].inputs["ids"]: the only input is `text`'),
            (
                'model_warmup { inputs { key: "text" value { data_type: TYPE_STRING } } }',
                'model_warmup[0].inputs["text"].dims: [] is not [n]',
            ),
            ('model_warmup { inputs { key: "text" value { dims: 4 } } }', "TYPE_INVALID is not TYPE_STRING"),
            (
                (
                    'model_warmup { inputs { key: "text" value { data_type: TYPE_STRING dims: 9 } } }'
                    ' parameters { key: "max_tokens" value { string_value: "8" } }'
                ),
                "9 tokens exceed max_tokens 8",
            ),
        ],
    )
    def test_a_wrong_value_names_its_field_and_what_is_allowed(self, fault: Fault, text: str, message: str) -> None:
        assert message in fault(text)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("max_batch_size: 1", "backend: missing: name the engine"),
            ('backend: "a b" max_batch_size: 1', "1:10: backend: 'a b' is not a name"),
            ('backend: "x" max_batch_size: 0', "1:30: max_batch_size: 0 is below 1"),
            ('backend: "x" max_batch_size: -1', "1:30: max_batch_size: -1 is below 1"),
        ],
    )
    def test_backend_and_max_batch_size_are_checked(self, fault: Fault, text: str, message: str) -> None:
        assert message in fault(text, start="")

    def test_a_message_stays_one_short_line_whatever_the_file_holds(self, fault: Fault) -> None:
        message = fault('parameters { key: "' + "x\\n\\001" * 500 + '" }')
        assert message.isprintable()
        assert len(message) < 1000


class TestMeaning:
    @pytest.mark.parametrize("platform", PLATFORM_BACKENDS)
    def test_a_platform_of_triton_stands_for_its_backend(self, read: Read, platform: str) -> None:
        assert read(f'platform: "{platform}" max_batch_size: 1', start="").backend == PLATFORM_BACKENDS[platform]

    def test_the_backend_may_be_left_to_the_server(self, read: Read) -> None:
        assert read('backend: "auto" max_batch_size: 1', start="").backend == "auto"

    def test_max_batch_size_left_out_is_64_with_a_warning(self, read: Read) -> None:
        read_settings = read('backend: "auto"', start="")
        assert read_settings.batching.max_batch_size == 64
        assert [warning.partition("config.pbtxt: ")[2] for warning in read_settings.warnings] == [
            "max_batch_size: not given: 64 texts are taken as the largest batch"
        ]

    @pytest.mark.parametrize(
        ("text", "policy"),
        [
            ("", VersionPolicy(latest=1)),
            ("version_policy { }", VersionPolicy(latest=1)),
            ("version_policy { latest { } }", VersionPolicy(latest=1)),
            ("version_policy { latest { num_versions: 3 } }", VersionPolicy(latest=3)),
            ("version_policy { all { } }", VersionPolicy(latest=None)),
            (
                "version_policy: { specific: { versions: [ 7, 2, 7 ] } }",
                VersionPolicy(latest=None, specific=(2, 7)),
            ),
        ],
    )
    def test_version_policies(self, read: Read, text: str, policy: VersionPolicy) -> None:
        assert read(text).version_policy == policy

    def test_a_dimension_of_minus_one_is_not_stated(self, read: Read) -> None:
        read_settings = read('output { name: "dense" data_type: TYPE_FP32 dims: -1 }')
        assert (read_settings.declared_modes, read_settings.dense_dimension) == (Mode.DENSE, None)

    def test_outputs_left_out_declare_nothing(self, read: Read) -> None:
        assert read("").declared_modes is None

    def test_a_warm_up_of_one_text_says_nothing_of_its_length(self, read: Read) -> None:
        inputs = '{ key: "text" value { data_type: TYPE_STRING dims: 1 zero_data: true } }'
        assert read(f'model_warmup {{ name: "w" inputs {inputs} }}').warmups == (Warmup(name="w"),)

    def test_a_warm_up_of_open_length_stays_within_max_tokens(self, read: Read) -> None:
        assert read("model_warmup { } " + parameter("max_tokens", "8")).warmups[0].tokens == 8

    def test_a_warm_up_without_a_name_is_named_by_its_place(self, read: Read) -> None:
        assert read("model_warmup { }").warmups[0].name == "model_warmup[0]"

    def test_the_names_of_outputs_in_answers_stand_for_their_embedding(self, read: Read) -> None:
        read_settings = read(
            """output [
              { name: "sparse_indptr" data_type: TYPE_INT64 dims: -1 },
              { name: "sparse_indices" data_type: TYPE_INT64 dims: -1 },
              { name: "sparse_values" data_type: TYPE_FP32 dims: -1 },
              { name: "multi_vector_offsets" data_type: TYPE_INT64 dims: -1 },
              { name: "multi_vector" data_type: TYPE_FP32 dims: [ -1, 8 ] }
            ]"""
        )
        assert read_settings.declared_modes == Mode.SPARSE | Mode.MULTI_VECTOR
        assert read_settings.multi_vector_dimension == 8

    def test_a_timeout_may_be_overridden_where_there_is_none(self, read: Read) -> None:
        settings = read("dynamic_batching { default_queue_policy { allow_timeout_override: true } }")
        assert settings.warnings == ()
        assert settings.batching.queue_policy.allow_timeout_override

    def test_priorities_without_levels_warn(self, read: Read) -> None:
        read_settings = read(
            "dynamic_batching { default_priority_level: 1 priority_queue_policy { key: 1 value { } } }"
        )
        assert len(read_settings.warnings) == 2
        assert read_settings.batching.default_priority_level == 0
        assert not read_settings.batching.priority_queue_policies


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


class TestParameters:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *[("max_tokens", value) for value in ("", "1", "-5", "1048577", "8k", "1_000", " 8", "9" * 5000, "１２")],
            *[("token_budget", value) for value in ("1", "2147483648", "1e4")],
            *[("pooling", value) for value in ("", "CLS", "max")],
            *[("precision", value) for value in ("", "fp16", "float")],
            *[("score_weights", value) for value in ("", "1", "1,1", "1,1,1,1", "0,0,0", "1,-1,1", "1,nan,1", "a,1,1")],
            *[("score_weights", value) for value in ("1,inf,1", "1e39,1,1")],
            *[("intra_op_threads", value) for value in ("0", "1025", "two")],
        ],
    )
    def test_a_wrong_value_names_key_value_and_what_is_allowed(self, fault: Fault, key: str, value: str) -> None:
        message = fault(parameter(key, value))
        assert message.startswith(f'3:1: parameters["{key}"]: ')
        assert repr(value[:80])[:-1] in message
        assert f"is not {PARAMETERS[key]}" in message

    def test_an_unknown_key_is_an_error_with_a_suggestion(self, fault: Fault) -> None:
        message = fault("\n" + parameter("max_token", "512"))
        assert message == '4:1: parameters["max_token"]: unknown key; did you mean `max_tokens`?'

    def test_an_unknown_key_like_no_other_lists_the_known_ones(self, fault: Fault) -> None:
        assert "known are max_tokens, token_budget" in fault(parameter("zzz", "1"))

    def test_a_near_choice_is_suggested(self, fault: Fault) -> None:
        assert "did you mean `float16`?" in fault(parameter("precision", "floot16"))

    def test_a_weight_of_zero_is_allowed_beside_one_above(self, read: Read) -> None:
        assert read(parameter("score_weights", "1,0,0")).score_weights == ScoreWeights(1.0, 0.0, 0.0)

    def test_a_prefix_is_taken_to_the_letter(self, read: Read) -> None:
        assert read(parameter("query_prefix", "  查询: ")).query_prefix == "  查询: "


class TestFieldsNotActedOn:
    """Every field of the schema is acted on, passed over with a warning, or refused."""

    @pytest.mark.parametrize("rules", [EMBEDDING_FIELDS, TENSOR_FIELDS], ids=["embedding", "tensors"])
    def test_each_field_of_the_schema_is_in_exactly_one_list(self, rules: FieldRules) -> None:
        lists = [*rules.acted_on, *rules.ignored, *rules.refused]
        assert len(set(lists)) == len(lists)

        def undecided(descriptor: object, prefix: str) -> list[str]:
            found: list[str] = []
            for field in getattr(descriptor, "fields"):  # noqa: B009 - descriptors have no useful type
                path = prefix + field.name
                if path in lists:
                    remaining.discard(path)
                elif field.message_type is None:
                    found.append(path)
                elif field.message_type.GetOptions().map_entry:
                    found += undecided(field.message_type.fields_by_name["value"].message_type, f"{path}.")
                else:
                    found += undecided(field.message_type, f"{path}.")
            return found

        remaining = set(lists)
        assert undecided(pb.ModelConfig.DESCRIPTOR, "") == []
        assert not remaining

    @pytest.mark.parametrize(
        ("text", "field"),
        [
            ('runtime: "x"', "runtime"),
            ("optimization { graph { level: 1 } }", "optimization.graph"),
            ('metric_tags { key: "a" value: "b" } metric_tags { key: "c" value: "d" }', "metric_tags"),
            ('default_model_filename: "model.onnx"', "default_model_filename"),
            ("instance_group { passive: true }", "instance_group[0].passive"),
            ('instance_group [ { }, { host_policy: "a" } ]', "instance_group[1].host_policy"),
            ("dynamic_batching { preserve_ordering: true }", "dynamic_batching.preserve_ordering"),
            (
                'model_warmup { inputs { key: "text" value { data_type: TYPE_STRING dims: 8 input_data_file: "f" } } }',
                'model_warmup[0].inputs["text"].input_data_file',
            ),
            (
                'input { name: "text" data_type: TYPE_STRING dims: 1 optional: true }',
                "input[0].optional",
            ),
            ('output { name: "dense" data_type: TYPE_FP16 dims: 4 }', "output[0].data_type"),
        ],
    )
    def test_a_field_without_effect_is_one_warning_with_its_place(self, read: Read, text: str, field: str) -> None:
        (warning,) = read(text).warnings
        assert re.search(rf"config\.pbtxt:3:\d+: {re.escape(field)}: .*accepted, but has no effect here", warning)

    @pytest.mark.parametrize(
        "text", ["response_cache { enable: false }", "optimization { }", "input { optional: false }"]
    )
    def test_a_field_at_its_default_is_no_warning(self, read: Read, text: str) -> None:
        text = text.replace("input {", 'input { name: "text" data_type: TYPE_STRING dims: 1')
        assert read(text).warnings == ()

    @pytest.mark.parametrize(
        "text",
        [
            "sequence_batching { }",
            "ensemble_scheduling { }",
            "model_transaction_policy { decoupled: true }",
            'model_repository_agents { agents { name: "checksum" } }',
        ],
    )
    def test_a_field_that_would_make_another_model_of_it_is_refused(self, fault: Fault, text: str) -> None:
        assert re.match(r"3:\d+: [a-z_.]+: not supported: .*remove it", fault(text))

    def test_not_decoupled_is_what_it_is(self, read: Read) -> None:
        assert read("model_transaction_policy { decoupled: false }").warnings == ()


class TestDocumentation:
    """docs/model-repository.md lists what the code has: no more, no less."""

    @pytest.mark.parametrize(
        ("heading", "names"),
        [
            ("Fields acted on", set(EMBEDDING_FIELDS.acted_on)),
            ("Fields accepted with a warning", set(EMBEDDING_FIELDS.ignored)),
            ("Fields refused", set(EMBEDDING_FIELDS.refused)),
            ("Parameters", set(PARAMETERS)),
        ],
    )
    def test_a_table_names_exactly_what_the_code_knows(self, heading: str, names: set[str]) -> None:
        assert {first_cell for first_cell, _ in _table(heading)} == names

    def test_what_is_different_for_models_that_take_tensors_is_named(self) -> None:
        named = {first_cell for first_cell, _ in _table("Models that take tensors")}
        lists = [
            (set(rules.acted_on), set(rules.ignored), set(rules.refused)) for rules in (EMBEDDING_FIELDS, TENSOR_FIELDS)
        ]
        assert set[str]().union(*map(set[str].symmetric_difference, *lists)) <= named <= set[str]().union(*lists[0])

    def test_the_table_of_parameters_says_what_an_error_says(self) -> None:
        assert {key: rest.split(" | ")[0] for key, rest in _table("Parameters")} == dict(PARAMETERS)

    def test_the_examples_are_read_without_a_warning(self, read: Read) -> None:
        examples = re.findall(r"```protobuf\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
        embedding, tensors = (read(example, start="") for example in examples)
        assert (embedding.warnings, embedding.tensors) == ((), None)
        assert (tensors.warnings, tensors.tensors is None) == ((), False)


def _table(heading: str) -> list[tuple[str, str]]:
    """First cell, without backquotes, and the rest of each row of the table below a heading."""
    section = DOCS.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \| (.*)\|$", section, re.MULTILINE)


def _read_any(directory: Path, content: bytes) -> None:
    """Reads any bytes as a config: settings, or a ConfigError on one printable line."""
    path = directory / "config.pbtxt"
    path.write_bytes(content)
    message = str(path)
    try:
        assert isinstance(read_model_config(path, "m3"), ModelSettings)
    except ConfigError as error:
        message = str(error)
    assert message.isprintable()
    assert message.startswith(str(path))


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = sorted(
    set(re.findall(r'"[^"\n]*"|[\w.-]+|[^\w\s]', FULL)) | {"\n", '"', "'", "\\", "#", "[", "<", ">", "x", "9" * 30}
)


class TestAnyBytes:
    """Nothing but ConfigError comes out of a file, whatever is in it."""

    @FUZZ
    @given(content=st.binary(max_size=200))
    def test_random_bytes(self, tmp_path: Path, content: bytes) -> None:
        _read_any(tmp_path, content)

    @FUZZ
    @given(content=st.text(max_size=200))
    def test_random_text(self, tmp_path: Path, content: str) -> None:
        _read_any(tmp_path, content.encode(errors="surrogatepass"))

    @FUZZ
    @given(words=st.lists(st.sampled_from(WORDS), max_size=40))
    def test_the_words_of_a_config_in_any_order(self, tmp_path: Path, words: list[str]) -> None:
        _read_any(tmp_path, " ".join(words).encode())

    @FUZZ
    @given(
        start=st.integers(0, len(FULL)), length=st.integers(0, 30), insert=st.text(max_size=10) | st.sampled_from(WORDS)
    )
    def test_a_config_with_a_piece_replaced(self, tmp_path: Path, start: int, length: int, insert: str) -> None:
        content = FULL[:start] + insert + FULL[start + length :]
        _read_any(tmp_path, content.encode(errors="surrogatepass"))

    @FUZZ
    @given(escape=st.text(alphabet="\\01789abnrtuvxN{}UDFA?\"'", max_size=12))
    def test_any_escape_in_a_text(self, tmp_path: Path, escape: str) -> None:
        _read_any(tmp_path, f'{START}name: "{escape}"'.encode())

    @FUZZ
    @given(number=st.integers() | st.floats(), field=st.sampled_from(sorted(re.findall(r"(\w+): \[? ?[\d-]", FULL))))
    def test_any_number_in_a_field(self, tmp_path: Path, number: float, field: str) -> None:
        content = re.sub(rf"({field}: \[? ?)-?\d+", rf"\g<1>{number}", FULL)
        _read_any(tmp_path, content.encode())

    def test_deep_nesting(self, tmp_path: Path) -> None:
        for opening in ("name {", "input [", "input {", "optimization { cuda { graph_spec { input { value {"):
            _read_any(tmp_path, opening.encode() * 50_000)
