"""What is asked of the server and its models: readiness, metadata, configuration, statistics, settings."""

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference import grpc_service_pb2 as pb
from inference import model_config_pb2
from trivec_server import logs
from trivec_server.types import BatchingSettings, ModelVersion

from tests.rpc.inference_server import (
    SERVICE,
    InferenceServer,
    TensorModel,
    embed,
    floats,
    inference_server,
    refusal_of,
)
from tests.scripted_engine import DIMENSION, Script
from tests.scripted_tensors import TensorScript, identity, row_functions, without_batch_dimension
from tests.small_repository import make_repository

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def server(tmp_path: Path, script: Script) -> AsyncIterator[InferenceServer]:
    config = "version_policy { all { } }\n"
    tensors: dict[str, TensorModel | TensorScript] = {
        "floats": TensorScript(model=row_functions()),
        "whole": TensorModel(
            TensorScript(model=without_batch_dimension(identity(shape=(2,)))), BatchingSettings(max_batch_size=0)
        ),
    }
    repository = make_repository(tmp_path, versions=(1, 3), config=config)
    async with inference_server(repository, script, tensors) as server:
        yield server


async def ready(server: InferenceServer, name: str, version: str = "") -> bool:
    asked = pb.ModelReadyRequest(name=name, version=version)
    return (await server.call("ModelReady", asked, pb.ModelReadyResponse)).ready


async def metadata(server: InferenceServer, name: str, version: str = "") -> pb.ModelMetadataResponse:
    asked = pb.ModelMetadataRequest(name=name, version=version)
    return await server.call("ModelMetadata", asked, pb.ModelMetadataResponse)


async def config(server: InferenceServer, name: str, version: str = "") -> model_config_pb2.ModelConfig:
    asked = pb.ModelConfigRequest(name=name, version=version)
    return (await server.call("ModelConfig", asked, pb.ModelConfigResponse)).config


async def statistics(server: InferenceServer, name: str = "", version: str = "") -> list[pb.ModelStatistics]:
    asked = pb.ModelStatisticsRequest(name=name, version=version)
    return list((await server.call("ModelStatistics", asked, pb.ModelStatisticsResponse)).model_stats)


async def test_the_server_lives_and_is_ready(server: InferenceServer) -> None:
    assert (await server.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)).live
    assert (await server.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)).ready


async def test_a_model_is_ready_by_version_or_by_its_newest(server: InferenceServer) -> None:
    assert await ready(server, "small")
    assert await ready(server, "small", "1")
    assert await ready(server, "floats", "01")


@pytest.mark.parametrize(("name", "version"), [("none", ""), ("small", "2"), ("small", "0"), ("", ""), ("none", "7")])
async def test_what_is_not_known_is_not_ready_without_an_error(
    server: InferenceServer, name: str, version: str
) -> None:
    assert not await ready(server, name, version)


async def test_what_is_known_and_not_ready_is_not_ready(server: InferenceServer) -> None:
    server.registry.refuse(ModelVersion("broken", 1), "it is broken")
    server.registry.expect(ModelVersion("late", 1))
    for name in ("broken", "late"):
        assert not await ready(server, name)
        assert not await ready(server, name, "1")


BAD_VERSIONS = [
    ("x", "failed to get model version from specified version string 'x' (details: stol)"),
    ("-1", "invalid model version specified '-1' "),
]


@pytest.mark.parametrize(("version", "words"), BAD_VERSIONS)
@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
async def test_a_version_that_is_no_number_is_refused(
    server: InferenceServer, method: str, version: str, words: str
) -> None:
    raw = pb.ModelReadyRequest(name="small", version=version).SerializeToString()
    refusal = await refusal_of(server.send(method, raw))
    assert refusal.code is INVALID
    assert words in refusal.message


async def test_the_server_tells_its_name_and_only_extensions_that_it_has(server: InferenceServer) -> None:
    told = await server.call("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
    assert told.name == "trivec"
    assert told.version
    assert set(told.extensions) == {
        "classification",
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "binary_tensor_data",
        "parameters",
        "statistics",
        "logging",
    }


async def test_metadata_of_an_embedding_model(server: InferenceServer) -> None:
    told = await metadata(server, "small")
    assert (told.name, list(told.versions), told.platform) == ("small", ["1", "3"], "scripted")
    assert [(each.name, each.datatype, list(each.shape)) for each in told.inputs] == [("text", "BYTES", [-1, 1])]
    assert [(each.name, each.datatype, list(each.shape)) for each in told.outputs] == [
        ("dense", "FP32", [-1, DIMENSION]),
        ("sparse_indptr", "INT64", [-1]),
        ("sparse_indices", "INT64", [-1]),
        ("sparse_values", "FP32", [-1]),
        ("multi_vector_offsets", "INT64", [-1]),
        ("multi_vector", "FP32", [-1, DIMENSION]),
    ]
    assert list((await metadata(server, "small", "1")).versions) == ["1"]


async def test_metadata_of_models_that_take_tensors(server: InferenceServer) -> None:
    told = await metadata(server, "floats")
    assert [(each.name, each.datatype, list(each.shape)) for each in told.inputs] == [("x", "FP32", [-1, -1])]
    assert [(each.name, list(each.shape)) for each in told.outputs] == [
        ("same", [-1, -1]),
        ("total", [-1, 1]),
        ("batch_rows", [-1, 1]),
    ]
    told = await metadata(server, "whole")
    assert [list(each.shape) for each in told.inputs] == [[-1, 2]]


async def test_the_configuration_is_that_in_effect(server: InferenceServer) -> None:
    told = await config(server, "small")
    assert (told.name, told.max_batch_size, told.backend) == ("small", 16, "scripted")
    assert [each.name for each in told.input] == ["text"]
    assert {"dense", "sparse_indptr", "multi_vector"} <= {each.name for each in told.output}
    assert (await config(server, "floats")).max_batch_size == 8


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig"])
@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("none", "", "Request for unknown model: 'none' is not found"),
        ("small", "2", "Request for unknown model: 'small' version 2 is not found"),
        ("broken", "", "Request for unknown model: 'broken' has no available versions"),
    ],
)
async def test_what_is_unknown_is_not_described(
    server: InferenceServer, method: str, name: str, version: str, message: str
) -> None:
    server.registry.refuse(ModelVersion("broken", 1), "it is broken")
    refusal = await refusal_of(
        server.send(method, pb.ModelReadyRequest(name=name, version=version).SerializeToString())
    )
    assert (refusal.code, refusal.message) == (NOT_FOUND, message)


async def test_statistics_count_requests_rows_and_batches(server: InferenceServer) -> None:
    for rows in (1, 1, 3):
        await server.infer(floats(*[[1.0]] * rows))
    await refusal_of(server.infer(floats([1], outputs=["none"])))
    (told,) = await statistics(server, "floats")
    assert (told.name, told.version, told.inference_count, told.execution_count) == ("floats", "1", 5, 3)
    assert told.last_inference > 0
    stats = told.inference_stats
    for stage in (stats.success, stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output):
        assert stage.count == 3
    assert stats.success.ns > 0
    assert (stats.fail.count, stats.cache_hit.count, stats.cache_miss.count) == (0, 0, 0)
    assert [(each.batch_size, each.compute_infer.count) for each in told.batch_stats] == [(1, 2), (3, 1)]
    for batch in told.batch_stats:
        assert batch.compute_input.count == batch.compute_infer.count == batch.compute_output.count


async def test_statistics_of_embeddings_are_counted_too(server: InferenceServer) -> None:
    await server.infer(embed("w10", "w11"))
    (told,) = await statistics(server, "small", "3")
    assert (told.inference_count, told.inference_stats.success.count) == (2, 1)


async def test_a_failure_is_counted(server: InferenceServer, script: Script) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no")

    script.before_run = fail
    await refusal_of(server.infer(embed("w10")))
    (told,) = await statistics(server, "small", "3")
    assert (told.inference_stats.fail.count, told.inference_stats.success.count) == (1, 0)


async def test_statistics_of_all_models_are_those_of_ready_versions(server: InferenceServer) -> None:
    server.registry.refuse(ModelVersion("broken", 1), "it is broken")
    told = [(each.name, each.version) for each in await statistics(server)]
    assert told == [("floats", "1"), ("small", "1"), ("small", "3"), ("whole", "1")]


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("none", "", "requested model 'none' is not available"),
        ("broken", "", "requested model 'broken' is not available"),
        ("small", "2", "requested model version is not available for model 'small'"),
    ],
)
async def test_statistics_of_what_is_not_ready_are_refused(
    server: InferenceServer, name: str, version: str, message: str
) -> None:
    server.registry.refuse(ModelVersion("broken", 1), "it is broken")
    refusal = await refusal_of(statistics(server, name, version))
    assert (refusal.code, refusal.message) == (INVALID, message)


async def test_health_knows_the_service(server: InferenceServer) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def trace(server: InferenceServer, model: str = "", /, **settings: list[str]) -> dict[str, str]:
    asked = pb.TraceSettingRequest(model_name=model)
    for key, values in settings.items():
        asked.settings[key].value.extend(values)
        asked.settings[key].SetInParent()
    told = await server.call("TraceSetting", asked, pb.TraceSettingResponse)
    return {key: ",".join(setting.value) for key, setting in told.settings.items()}


OFF = {
    "trace_level": "OFF",
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}


async def test_tracing_is_off_and_its_settings_are_kept(server: InferenceServer) -> None:
    assert await trace(server) == OFF
    assert await trace(server, trace_rate=["500"], trace_count=["7"]) == OFF | {"trace_rate": "500", "trace_count": "7"}
    assert await trace(server, "floats", trace_rate=["250"]) == OFF | {"trace_rate": "250", "trace_count": "7"}
    assert (await trace(server))["trace_rate"] == "500"
    assert (await trace(server, "floats", trace_rate=[]))["trace_rate"] == "500"
    assert await trace(server, trace_rate=[], trace_count=[], trace_level=["OFF"]) == OFF


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (
            {"trace_level": ["TIMESTAMPS"]},
            INVALID,
            "Attempting to set invalid trace setting :trace file name is not given",
        ),
        (
            {"trace_file": ["x"]},
            grpc.StatusCode.UNIMPLEMENTED,
            "trace file location can not be updated through network protocol",
        ),
        ({"trace_rate": ["often"]}, INVALID, "Unable to parse 'trace_rate', got: often"),
        ({"trace_count": ["-5"]}, INVALID, "Unable to parse 'trace_count'. Expecting value >= -1, got: -5"),
        ({"trace_rate": ["1", "2"]}, INVALID, "expect only 1 value for 'trace_rate'"),
    ],
)
async def test_a_bad_trace_setting_is_refused(
    server: InferenceServer, settings: dict[str, list[str]], code: grpc.StatusCode, message: str
) -> None:
    refusal = await refusal_of(trace(server, **settings))
    assert (refusal.code, refusal.message) == (code, message)
    assert await trace(server) == OFF


async def test_trace_settings_of_an_unknown_model_are_refused(server: InferenceServer) -> None:
    refusal = await refusal_of(trace(server, "none"))
    assert (refusal.code, refusal.message) == (INVALID, "Request for unknown model : none")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """The process's log as `trivec serve` sets it up."""
    written = io.StringIO()
    before, configured = logs.log_settings(), structlog.get_config() if structlog.is_configured() else None
    monkeypatch.setattr("sys.stderr", written)
    logs.configure_logs("info", "json")
    yield written
    logs.set_log_settings(before)
    structlog.reset_defaults()
    if configured is not None:
        structlog.configure(**configured)


def setting(value: bool | int | str) -> pb.LogSettingsRequest.SettingValue:
    if isinstance(value, bool):
        return pb.LogSettingsRequest.SettingValue(bool_param=value)
    if isinstance(value, int):
        return pb.LogSettingsRequest.SettingValue(uint32_param=value)
    return pb.LogSettingsRequest.SettingValue(string_param=value)


async def set_logs(server: InferenceServer, **settings: bool | int | str) -> dict[str, bool | int | str]:
    asked = pb.LogSettingsRequest(settings={key: setting(value) for key, value in settings.items()})
    told = await server.call("LogSettings", asked, pb.LogSettingsResponse)
    return {key: getattr(each, str(each.WhichOneof("parameter_choice"))) for key, each in told.settings.items()}


async def test_log_settings_change_what_is_logged(server: InferenceServer, log: io.StringIO) -> None:
    at_first = {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    assert await set_logs(server) == at_first
    logger = structlog.get_logger()
    changed = await set_logs(server, log_info=False, log_verbose_level=1, log_format="ISO8601")
    assert changed == at_first | {"log_info": False, "log_verbose_level": 1, "log_format": "ISO8601"}
    logger.info("not said")
    logger.debug("said in detail")
    assert "not said" not in log.getvalue()
    (line,) = [line for line in log.getvalue().splitlines() if "said in detail" in line]
    assert '"timestamp": "' in line
    assert "." not in line.split('"timestamp": "')[1].split('"')[0]
    assert await set_logs(server, log_info=True, log_verbose_level=0, log_format="default", unknown="x") == at_first
    logger.debug("no longer")
    logger.info("said again")
    assert "no longer" not in log.getvalue()
    assert "said again" in log.getvalue()


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        ({"log_info": "yes"}, INVALID, "expect boolean for 'log_info'"),
        ({"log_verbose_level": True}, INVALID, "expect int32 for 'log_verbose_level'"),
        ({"log_format": 1}, INVALID, "expect string for 'log_format'"),
        ({"log_format": "rhyme"}, INVALID, "invalid argument for log_format, got: rhyme"),
        (
            {"log_error": False, "log_file": "x"},
            grpc.StatusCode.UNIMPLEMENTED,
            "log file location can not be updated through network protocol",
        ),
    ],
)
async def test_a_bad_log_setting_changes_nothing(
    server: InferenceServer,
    log: io.StringIO,
    settings: dict[str, bool | int | str],
    code: grpc.StatusCode,
    message: str,
) -> None:
    before = await set_logs(server)
    refusal = await refusal_of(set_logs(server, **settings))
    assert (refusal.code, refusal.message) == (code, message)
    assert await set_logs(server) == before


@pytest.mark.parametrize("method", ["ServerReady", "ModelReady", "ModelConfig", "TraceSetting", "RepositoryIndex"])
async def test_a_message_that_does_not_decode_is_refused(server: InferenceServer, method: str) -> None:
    refusal = await refusal_of(server.send(method, b"\xff\xff"))
    assert refusal.code is INVALID
