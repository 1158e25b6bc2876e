"""A model's configuration as JSON, as a load by call brings it."""

import json
from pathlib import Path

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference import model_config_pb2 as pb
from trivec_server.errors import ConfigError
from trivec_server.repository.model_config import read_model_config, read_model_config_json
from trivec_server.repository.pbtxt import MAX_FILE_BYTES, read_pbtxt
from trivec_server.types import ModelSettings, TensorSpec

from tests.unit.test_model_config import FULL
from tests.unit.test_tensor_config import FULL as FULL_TENSORS


def read(text: str, model_dir: Path = Path("absent")) -> ModelSettings:
    return read_model_config_json(text, "m3", model_dir=model_dir)


def fault(document: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read(document if isinstance(document, str) else json.dumps(document))
    return str(caught.value)


@pytest.mark.parametrize("text", [FULL, FULL_TENSORS], ids=["embedding", "tensors"])
@pytest.mark.parametrize("as_written", [True, False], ids=["snake_case", "camelCase"])
def test_json_says_the_same_as_text(tmp_path: Path, text: str, as_written: bool) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text(text, encoding="utf-8")
    config = pb.ModelConfig()
    read_pbtxt(path, config)
    written = json_format.MessageToJson(config, preserving_proto_field_name=as_written)
    assert read(written, tmp_path) == read_model_config(path, "m3")


def test_numbers_of_64_bits_may_be_numbers() -> None:
    tensors = read(
        '{"backend": "onnxruntime", "input": [{"name": "a", "data_type": "TYPE_FP32", "dims": [-1, 4]}]}'
    ).tensors
    assert tensors is not None
    assert tensors.inputs == (TensorSpec(name="a", datatype="FP32", shape=(-1, 4)),)


def test_versions_of_the_model_decide_on_its_kind_where_nothing_is_declared(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").touch()
    assert read("{}", tmp_path).tensors is not None
    assert read('{"backend": "auto", "max_batch_size": 2}', tmp_path).tensors is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "config:1:1: is not JSON: Expecting value"),
        ('{"name": \n}', "config:2:1: is not JSON: Expecting value"),
        ("[]", "config: is not a JSON object"),
        ('{"max_batch_size": 1, "max_batch_size": 2}', "config: duplicate key max_batch_size"),
        (
            {"max_bath_size": 1},
            "config: unknown field `max_bath_size` in ModelConfig; did you mean `max_batch_size`?",
        ),
        (
            {"input": [{"name": "a"}, {"dim": [1]}]},
            "config: input[1]: unknown field `dim` in ModelInput; did you mean `dims`?",
        ),
        ({"input": [{"dims": ["x"]}]}, "dims: invalid literal for int() with base 10: 'x'"),
        ({"input": [{"data_type": "TYPE_FP31"}]}, "input[0].data_type: invalid enum value TYPE_FP31"),
        ({"backend": "auto", "max_batch_size": -1}, "config: max_batch_size: -1 is below 1"),
        ({"backend": "auto", "max_batch_size": 0}, "config: max_batch_size: 0 is below 1"),
        (
            {"backend": "auto", "max_batch_size": 1, "instanceGroup": [{}, {"count": 0}]},
            "config: instance_group[1].count: 0 is below 1",
        ),
        (
            {"backend": "auto", "max_batch_size": 1, "parameters": {"max_token": {"string_value": "8"}}},
            'config: parameters["max_token"]: unknown key; did you mean `max_tokens`?',
        ),
        ({"backend": "auto", "max_batch_size": 1, "sequence_batching": {}}, "config: sequence_batching: not supported"),
        ({"dynamic_batching": {}, "sequence_batching": {}}, "config: "),
        ("[" * 100_000, "config: is not a configuration"),
        ('{"input":' * 500 + "1" + "}" * 500, "config: "),
        (" " * (MAX_FILE_BYTES + 1), "config: larger than 1048576 characters"),
    ],
)
def test_a_fault_names_its_field_and_what_is_wrong(document: object, message: str) -> None:
    said = fault(document)
    assert message in said
    assert said.isprintable()
    assert len(said) < 600


PIECES = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    '"',
    "null",
    "1e999",
    "-1",
    "9" * 30,
    '"x"',
    "true",
    "NaN",
    "\\ud800",
    '"dims"',
    "0.5",
]
WRITTEN = json.dumps(
    {"backend": "onnxruntime", "max_batch_size": 8, "input": [{"name": "a", "data_type": "TYPE_FP32", "dims": [1]}],
     "dynamic_batching": {"preferred_batch_size": [4]}, "parameters": {"k": {"string_value": "v"}}}
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.integers(0, len(WRITTEN)), length=st.integers(0, 20), insert=st.text(max_size=8) | st.sampled_from(PIECES)
)
def test_nothing_but_config_error_comes_out_whatever_it_holds(start: int, length: int, insert: str) -> None:
    message = ""
    try:
        assert isinstance(read(WRITTEN[:start] + insert + WRITTEN[start + length :]), ModelSettings)
    except ConfigError as error:
        message = str(error)
    assert message.isprintable()
