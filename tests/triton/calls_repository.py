"""Load, unload and reload on a server in explicit mode that has loaded one model; statistics from a load on."""

import json
from typing import Any

import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2  # type: ignore[import-not-found, unused-ignore]
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-not-found, unused-ignore]

from tests.triton.calls_server import index
from tests.triton.recording import Calls, Session, outcome, result
from tests.triton.requests import floats, message, raw_input, simple_inputs, tensor, texts

calls = Calls()


def _then_index(name: str, call: Any, *models: str) -> None:
    """The call, and what the index says behind it, of some models or of all."""
    calls.add(name, lambda session: {"call": outcome(lambda: call(session)), "index": _entries(session, *models)})


def _entries(session: Session, *models: str) -> Any:
    return [entry for entry in index(session) if not models or entry[0] in models]


def _infer(session: Session, rows: int = 1) -> Any:
    return result(session.client.infer("simple", simple_inputs(rows)))["outputs"]


_then_index("explicit: at first", lambda session: session.client.is_server_ready())
calls.add("explicit: not loaded: ready", lambda session: session.client.is_model_ready("simple"))
calls.add("explicit: not loaded: infer", _infer)
calls.add("explicit: not loaded: metadata", lambda session: session.client.get_model_metadata("simple"))
calls.add("explicit: not loaded: config", lambda session: session.client.get_model_config("simple"))
calls.add("explicit: not loaded: statistics", lambda session: session.client.get_inference_statistics("simple"))
_then_index("load", lambda session: session.client.load_model("simple"), "simple")
calls.add("load: then infer", _infer)
_then_index("load: again", lambda session: session.client.load_model("simple"), "simple")
_then_index(
    "load: not in the repository", lambda session: session.client.load_model("none_such"), "none_such", "simple"
)
_then_index("load: no name", lambda session: session.client.load_model(""), "", "simple")
_then_index("load: a path", lambda session: session.client.load_model("../simple"), "simple", "../simple")
_then_index("load: broken", lambda session: session.client.load_model("broken"), "broken")
calls.add("load: broken: server ready", lambda session: session.client.is_server_ready())
calls.add("load: broken: model ready", lambda session: session.client.is_model_ready("broken"))
calls.add("load: broken: infer", lambda session: session.client.infer("broken", floats(1)))
calls.add("load: broken: metadata", lambda session: session.client.get_model_metadata("broken"))
_then_index("unload: broken", lambda session: session.client.unload_model("broken"), "broken")


def _config(session: Session, **changes: Any) -> str:
    """The config of `simple` in JSON, with some changes."""
    config = model_config_pb2.ModelConfig()
    config.CopyFrom(session.client.get_model_config("simple").config)
    config.dynamic_batching.ClearField("preferred_batch_size")
    config.ClearField("platform")
    for key, value in changes.items():
        setattr(config, key, value)
    written: str = json_format.MessageToJson(config, preserving_proto_field_name=True)
    return written


def _batch_size(session: Session, name: str = "simple") -> Any:
    return session.client.get_model_config(name).config.max_batch_size


@calls("load: config in its place")
def _override(session: Session) -> Any:
    session.client.load_model("simple", config=_config(session, max_batch_size=2))
    return {"batch size": _batch_size(session), "three rows": outcome(lambda: _infer(session, 3))}


@calls("load: plain, behind a config in its place")
def _kept(session: Session) -> Any:
    session.client.load_model("simple")
    return {"batch size": _batch_size(session)}


_then_index("load: config that is no JSON", lambda session: session.client.load_model("simple", config="{"), "simple")
_then_index(
    "load: config with an unknown field",
    lambda session: session.client.load_model("simple", config='{"colour": "red"}'),
    "simple",
)
_then_index(
    "load: config of another model",
    lambda session: session.client.load_model("simple", config=_config(session, name="other")),
    "simple",
)
_then_index(
    "load: config with an unknown backend",
    lambda session: session.client.load_model("simple", config=_config(session, backend="none_such")),
    "simple",
)
calls.add("load: config with an unknown backend: infer", _infer)


def _load(name: str, given: dict[str, Any], model: str = "simple") -> None:
    def call(session: Session) -> Any:
        made = pb.RepositoryModelLoadRequest(model_name=model)
        for key, (kind, value) in given.items():
            setattr(made.parameters[key], kind, value)
        session.stub.RepositoryModelLoad(made)

    _then_index(f"load: {name}", call, model)


_load("config as a number", {"config": ("int64_param", 5)})
_load("unknown parameter", {"colour": ("string_param", "red")})
_load("a file as text", {"config": ("string_param", "{}"), "file:1/x": ("string_param", "red")})


@calls("load: a repository's name")
def _named(session: Session) -> Any:
    return session.stub.RepositoryModelLoad(
        pb.RepositoryModelLoadRequest(model_name="simple", repository_name="elsewhere")
    ).ByteSize()


def _files(session: Session, path: str) -> dict[str, bytes]:
    return {path: session.files["identity_fp32"]}


def _file_config(session: Session, name: str) -> str:
    """The config of identity_fp32, under another name."""
    return json.dumps({**json.loads(session.files["identity_fp32 config"]), "name": name})


_then_index(
    "load: files without a config",
    lambda session: session.client.load_model("from_files", files=_files(session, f"file:1/{session.model_file}")),
    "from_files",
)


@calls("load: from files")
def _from_files(session: Session) -> Any:
    session.client.load_model(
        "from_files",
        config=_file_config(session, "from_files"),
        files=_files(session, f"file:1/{session.model_file}"),
    )
    return {
        "infer": result(session.client.infer("from_files", floats(1, 2)))["outputs"],
        "ready": session.client.is_model_ready("from_files"),
        "index": _entries(session, "from_files"),
    }


@calls("load: files in place of a model's own")
def _in_place(session: Session) -> Any:
    session.client.load_model(
        "identity_bytes",
        config=_file_config(session, "identity_bytes"),
        files=_files(session, f"file:3/{session.model_file}"),
    )
    return {
        "infer": result(session.client.infer("identity_bytes", floats(1))),
        "index": _entries(session, "identity_bytes"),
    }


_then_index(
    "load: back to a model's own files", lambda session: session.client.load_model("identity_bytes"), "identity_bytes"
)
calls.add(
    "load: back to a model's own files: infer",
    lambda session: result(session.client.infer("identity_bytes", texts(["x"]))),
)


def _escape(name: str, path: str) -> None:
    _then_index(
        f"load: a file's path {name}",
        lambda session: session.client.load_model(
            "escaped", config=_file_config(session, "escaped"), files=_files(session, path)
        ),
        "escaped",
    )


_escape("upwards", "file:../escaped.txt")
_escape("upwards from inside", "file:1/../../escaped.txt")
_escape("from the root", "file:/none/escaped.txt")
_escape("of nothing", "file:")
_escape("of no version", "file:model.py")

_then_index("load: versions", lambda session: session.client.load_model("two_versions"), "two_versions")
_then_index("unload", lambda session: session.client.unload_model("simple"), "simple")
calls.add("unload: then ready", lambda session: session.client.is_model_ready("simple"))
calls.add("unload: then infer", _infer)
calls.add("unload: then metadata", lambda session: session.client.get_model_metadata("simple"))
_then_index("unload: again", lambda session: session.client.unload_model("simple"), "simple")
_then_index("unload: not in the repository", lambda session: session.client.unload_model("none_such"), "none_such")
_then_index(
    "unload: versions",
    lambda session: session.client.unload_model("two_versions", unload_dependents=True),
    "two_versions",
)


@calls("unload: unknown parameter")
def _unload_unknown(session: Session) -> Any:
    made = pb.RepositoryModelUnloadRequest(model_name="two_versions")
    made.parameters["colour"].string_param = "red"
    return session.stub.RepositoryModelUnload(made).ByteSize()


@calls("unload: unload_dependents as text")
def _unload_text(session: Session) -> Any:
    made = pb.RepositoryModelUnloadRequest(model_name="two_versions")
    made.parameters["unload_dependents"].string_param = "yes"
    return session.stub.RepositoryModelUnload(made).ByteSize()


@calls("statistics: of a model just loaded")
def _fresh(session: Session) -> Any:
    session.client.load_model("identity_fp32")
    return _statistics(session)


@calls("statistics: of some requests")
def _counted(session: Session) -> Any:
    for rows in (1, 1, 3):
        session.client.infer("identity_fp32", [tensor("INPUT0", np.ones((rows, 4), np.float32))])
    for _ in range(2):
        outcome(lambda: session.client.infer("identity_fp32", simple_inputs()))
    outcome(lambda: session.stub.ModelInfer(message("identity_fp32", raw_input("FP32", [1, 2]), raw=[b""])))
    return _statistics(session)


@calls("statistics: of a model that fails")
def _failing(session: Session) -> Any:
    session.client.load_model("pick")
    bad = message("pick", raw_input("INT64", [1, 1]), raw=[b"\x63" + bytes(7)])
    outcome(lambda: session.stub.ModelInfer(bad))
    return _statistics(session, "pick")


def _statistics(session: Session, name: str = "identity_fp32") -> Any:
    """Counts as they are; of durations, whether there are any."""
    (told,) = session.client.get_inference_statistics(name).model_stats
    stats = told.inference_stats
    return {
        "name": told.name,
        "version": told.version,
        "last_inference": told.last_inference > 0,
        "inference_count": told.inference_count,
        "execution_count": told.execution_count,
        "inference_stats": {
            field.name: [getattr(stats, field.name).count, getattr(stats, field.name).ns > 0]
            for field in stats.DESCRIPTOR.fields
        },
        "batch_stats": [
            [batch.batch_size, batch.compute_input.count, batch.compute_infer.count, batch.compute_output.count]
            for batch in told.batch_stats
        ],
        "memory_usage": len(told.memory_usage),
        "response_stats": sorted(told.response_stats),
    }
