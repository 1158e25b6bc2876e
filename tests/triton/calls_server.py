"""What is asked of the server itself and of its models, not of their results."""

import asyncio
import time
from typing import Any

import grpc
from tritonclient.grpc import aio as triton_aio  # type: ignore[import-not-found, unused-ignore]
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-not-found, unused-ignore]

from tests.triton.recording import Calls, Session, normalised

calls = Calls()
_HEALTH = "/grpc.health.v1.Health/Check"

calls.add("live", lambda session: session.client.is_server_live())
calls.add("ready", lambda session: session.client.is_server_ready())
calls.add("model ready", lambda session: session.client.is_model_ready("simple"))
calls.add("model ready: version", lambda session: session.client.is_model_ready("two_versions", "2"))
calls.add("model ready: unknown model", lambda session: session.client.is_model_ready("none_such"))
calls.add("model ready: unknown version", lambda session: session.client.is_model_ready("simple", "9"))
calls.add("model ready: version that is no number", lambda session: session.client.is_model_ready("simple", "one"))
calls.add("model ready: no name", lambda session: session.client.is_model_ready(""))
calls.add("server metadata", lambda session: session.client.get_server_metadata(as_json=True))
calls.add("model metadata", lambda session: session.client.get_model_metadata("simple", as_json=True))
calls.add("model metadata: bytes", lambda session: session.client.get_model_metadata("identity_bytes", as_json=True))
calls.add("model metadata: no batch", lambda session: session.client.get_model_metadata("nobatch", as_json=True))
calls.add("model metadata: types", lambda session: session.client.get_model_metadata("identity_types", as_json=True))
calls.add("model metadata: versions", lambda session: session.client.get_model_metadata("two_versions", as_json=True))
calls.add(
    "model metadata: one version", lambda session: session.client.get_model_metadata("two_versions", "1", as_json=True)
)
calls.add("model metadata: unknown model", lambda session: session.client.get_model_metadata("none_such"))
calls.add("model metadata: unknown version", lambda session: session.client.get_model_metadata("simple", "9"))
calls.add("model metadata: version that is no number", lambda session: session.client.get_model_metadata("simple", "x"))
calls.add("model config", lambda session: session.client.get_model_config("simple", as_json=True))
calls.add("model config: no batch", lambda session: session.client.get_model_config("nobatch", as_json=True))
calls.add("model config: version policy", lambda session: session.client.get_model_config("two_versions", as_json=True))
calls.add("model config: queue policy", lambda session: session.client.get_model_config("slow_refusing", as_json=True))
calls.add("model config: unknown model", lambda session: session.client.get_model_config("none_such"))
calls.add("model config: unknown version", lambda session: session.client.get_model_config("simple", "9"))
calls.add("statistics: unknown model", lambda session: session.client.get_inference_statistics("none_such"))
calls.add("statistics: unknown version", lambda session: session.client.get_inference_statistics("simple", "9"))


@calls("statistics: all models")
def _all_statistics(session: Session) -> Any:
    told = session.client.get_inference_statistics()
    return sorted([statistics.name, statistics.version] for statistics in told.model_stats)


@calls("repository index")
def _index(session: Session) -> Any:
    return index(session)


@calls("repository index: ready ones")
def _ready_index(session: Session) -> Any:
    told = session.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    return sorted([model.name, model.version, model.state, normalised(model.reason)] for model in told.models)


@calls("repository index: a repository's name")
def _named_index(session: Session) -> Any:
    return session.stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="elsewhere"))


def index(session: Session) -> Any:
    """Name, version, state and reason of each entry, once none is on its way to another state."""
    ends_at = time.monotonic() + 60
    while True:
        told = session.client.get_model_repository_index().models
        if all(model.state not in {"LOADING", "UNLOADING"} for model in told) or time.monotonic() > ends_at:
            return sorted([model.name, model.version, model.state, normalised(model.reason)] for model in told)


@calls("health check")
def _health(session: Session) -> Any:
    return _check_health(session, b"")


@calls("health check: unknown service")
def _health_unknown(session: Session) -> Any:
    return _check_health(session, b"\x0a\x09none_such")


def _check_health(session: Session, request: bytes) -> str:
    """tritonclient has no stub for it: 08 01 is SERVING."""
    check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = session.channel.unary_unary(_HEALTH)
    answer: bytes = check(request)
    return answer.hex()


calls.add("load: not in this mode", lambda session: session.client.load_model("simple"))
calls.add("unload: not in this mode", lambda session: session.client.unload_model("simple"))

calls.add("trace settings", lambda session: session.client.get_trace_settings(as_json=True))
calls.add("trace settings: of a model", lambda session: session.client.get_trace_settings("simple", as_json=True))
calls.add("trace settings: unknown model", lambda session: session.client.get_trace_settings("none_such", as_json=True))


def _update_trace(name: str, settings: dict[str, Any], model: str | None = None) -> None:
    calls.add(
        f"trace settings: {name}", lambda session: session.client.update_trace_settings(model, settings, as_json=True)
    )


_update_trace("update", {"trace_rate": "500", "trace_count": "7", "log_frequency": "3"})
calls.add("trace settings: updated", lambda session: session.client.get_trace_settings("simple", as_json=True))
_update_trace("on, without a file", {"trace_level": ["TIMESTAMPS"]})
_update_trace("update of a model", {"trace_rate": "250"}, "simple")
_update_trace("clear", {"trace_level": None, "trace_rate": None, "trace_count": None, "log_frequency": None})
_update_trace("clear of a model", {"trace_rate": None}, "simple")
_update_trace("off", {"trace_level": ["OFF"]})
_update_trace("bad level", {"trace_level": ["LOUD"]})
_update_trace("bad rate", {"trace_rate": "often"})
_update_trace("negative count", {"trace_count": "-5"})
_update_trace("several rates", {"trace_rate": ["1", "2"]})
_update_trace("trace_file", {"trace_file": "elsewhere.json"})
_update_trace("unknown setting", {"trace_colour": "red"})
_update_trace("update of an unknown model", {"trace_rate": "10"}, "none_such")

calls.add("log settings", lambda session: session.client.get_log_settings(as_json=True))


def _update_log(name: str, **settings: Any) -> None:
    calls.add(f"log settings: {name}", lambda session: session.client.update_log_settings(settings, as_json=True))


_update_log("update", log_verbose_level=1, log_info=False, log_warning=False, log_error=True, log_format="ISO8601")
_update_log("back", log_verbose_level=0, log_info=True, log_warning=True, log_error=True, log_format="default")
_update_log("log_file", log_file="elsewhere.log")
_update_log("bad format", log_format="rhyme")


def _send_log(name: str, key: str, **value: Any) -> None:
    """A value of a kind that the client would not send."""
    setting = pb.LogSettingsRequest.SettingValue(**value)
    calls.add(
        f"log settings: {name}",
        lambda session: session.stub.LogSettings(pb.LogSettingsRequest(settings={key: setting})).ByteSize(),
    )


_send_log("text for a flag", "log_info", string_param="yes")
_send_log("flag for a level", "log_verbose_level", bool_param=True)
_send_log("number for a format", "log_format", uint32_param=1)
_send_log("unknown setting", "log_colour", string_param="red")
calls.add("log settings: afterwards", lambda session: session.client.get_log_settings(as_json=True))

calls.add("shared memory: system status", lambda session: session.client.get_system_shared_memory_status(as_json=True))
calls.add("shared memory: cuda status", lambda session: session.client.get_cuda_shared_memory_status(as_json=True))
calls.add(
    "shared memory: register a key that is not there",
    lambda session: session.client.register_system_shared_memory("region", "/none_such", 64),
)
calls.add("shared memory: unregister all", lambda session: session.client.unregister_system_shared_memory())


@calls("aio: what is asked of a server")
def _asyncio(session: Session) -> Any:
    async def ask() -> Any:
        async with triton_aio.InferenceServerClient(session.target) as client:
            return {
                "live": await client.is_server_live(),
                "ready": await client.is_server_ready(),
                "model ready": await client.is_model_ready("simple"),
                "server": (await client.get_server_metadata()).name,
                "metadata": await client.get_model_metadata("identity_fp32", as_json=True),
                "batch size": (await client.get_model_config("simple")).config.max_batch_size,
                "index": len((await client.get_model_repository_index()).models),
                "statistics": len((await client.get_inference_statistics("two_versions")).model_stats),
                "trace": sorted((await client.get_trace_settings()).settings),
                "log": sorted((await client.get_log_settings()).settings),
            }

    return asyncio.run(ask())


def _asked_asyncio(name: str, method: str, *arguments: Any) -> None:
    async def ask(session: Session) -> Any:
        async with triton_aio.InferenceServerClient(session.target) as client:
            return await getattr(client, method)(*arguments)

    calls.add(f"aio: {name}", lambda session: asyncio.run(ask(session)))


_asked_asyncio("metadata of an unknown model", "get_model_metadata", "none_such")
_asked_asyncio("load: not in this mode", "load_model", "simple")
_asked_asyncio("unload: not in this mode", "unload_model", "simple")
