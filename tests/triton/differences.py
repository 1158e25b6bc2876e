"""
Where this server answers otherwise than Triton, on purpose: every case, with its reason. What is not named here is to
be the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

Record = dict[str, Any]
Change = Callable[[Record], Record]


@dataclass(frozen=True)
class Begins:
    """Equal to every text that begins so."""

    beginning: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and other.startswith(self.beginning)

    def __hash__(self) -> int:
        return hash(self.beginning)


@dataclass(frozen=True)
class Difference:
    """
    `expected` makes of Triton's record of a call what this server's is to be. `calls`: names, or beginnings of names
    that end with `*`.
    """

    reason: str
    calls: tuple[str, ...]
    expected: Change

    def applies(self, name: str) -> bool:
        return any(name.startswith(call[:-1]) if call.endswith("*") else name == call for call in self.calls)


def _each_text(change: Callable[[str], object]) -> Change:
    """Changes every text, wherever it is in the record."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        return change(value) if isinstance(value, str) else value

    return walk


def _swap(values: Mapping[str, object]) -> Change:
    """Every text that is a key becomes its value."""
    return _each_text(lambda text: values.get(text, text))


def _refused(code: str, message: object) -> Change:
    return lambda record: {"name": record["name"], "code": code, "message": message}


def _call_refused(code: str, message: object) -> Change:
    """Of a call whose record also has what the index says behind it."""
    return lambda record: {**record, "answer": {**record["answer"], "call": {"code": code, "message": message}}}


def _answer(**changes: object) -> Change:
    return lambda record: {**record, "answer": {**record["answer"], **changes}}


def _config(record: Record) -> Record:
    own = {"backend": "onnxruntime", "default_model_filename": "model.onnx", "platform": "onnxruntime_onnx"}
    return {**record, "answer": {"config": {**record["answer"]["config"], **own}}}


_NOT_POLLED = "failed to load '{}', failed to poll from model repository: "
_SIZE = "[request id: <id_unknown>] input byte size mismatch for input 'INPUT0' for model '{}'. Expected {}, got {}"
_NO_SHARED_MEMORY = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
_EXTENSIONS = [
    *("classification", "model_repository", "model_repository(unload_dependents)", "schedule_policy"),
    *("model_configuration", "binary_tensor_data", "parameters", "statistics", "logging"),
]

DIFFERENCES = (
    Difference(
        "it has a name of its own, and advertises only the extensions that it has",
        ("server metadata",),
        _answer(name="trivec", version=version("trivec"), extensions=_EXTENSIONS),
    ),
    Difference(
        "ONNX files are served by ONNX Runtime, and the platform says so as that of Triton's ONNX Runtime does",
        ("model metadata", *(f"model metadata: {name}" for name in ("bytes", "no batch", "types", "versions"))),
        _swap({"python": "onnxruntime_onnx"}),
    ),
    Difference("likewise for one version", ("model metadata: one version",), _swap({"python": "onnxruntime_onnx"})),
    Difference(
        "likewise in the configuration",
        ("model config", *(f"model config: {name}" for name in ("no batch", "version policy", "queue policy"))),
        _config,
    ),
    Difference(
        "likewise for the asyncio client",
        ("aio: what is asked of a server",),
        _swap({"triton": "trivec", "python": "onnxruntime_onnx"}),
    ),
    Difference(
        "health of a service that is not there is NOT_FOUND, as the health protocol says",
        ("health check: unknown service",),
        _refused("NOT_FOUND", "'none_such' is neither a service, a model nor a model's version here"),
    ),
    Difference(
        "clients' shared memory is off unless it is asked for, as in Triton since 2026",
        ("shared memory: register a key that is not there", "shared memory: unregister all"),
        _refused("UNIMPLEMENTED", _NO_SHARED_MEMORY),
    ),
    Difference(
        "ONNX Runtime's texts are UTF-8",
        ("infer: bytes: empty, unicode, binary",),
        _refused("INVALID_ARGUMENT", Begins("element 2 of input 'INPUT0' is not UTF-8")),
    ),
    Difference(
        "an empty list has both its brackets",
        (
            "refused: an input too many",
            "stream: a refused request between two",
            "stream: grpc errors: a refused request",
        ),
        _each_text(lambda text: text.replace("input(s) ]", "input(s) []")),
    ),
    Difference(
        "a negative number of rows is no unsigned one",
        ("refused: a negative number of rows",),
        _refused("INVALID_ARGUMENT", _SIZE.format("identity_fp32", -8, 8)),
    ),
    Difference(
        "two negative dimensions do not make up for each other",
        ("refused: all dimensions negative",),
        _refused(
            "INVALID_ARGUMENT",
            "[request id: <id_unknown>] All input dimensions should be specified for input 'INPUT0' for model "
            "'identity_fp32', got [-1,-2]",
        ),
    ),
    Difference(
        "sizes beyond 64 bits do not wrap around",
        ("refused: numbers beyond 64 bits",),
        _refused("INVALID_ARGUMENT", _SIZE.format("identity_fp32", 2**64, 4)),
    ),
    Difference(
        "likewise without a batch dimension",
        ("refused: a product beyond 64 bits",),
        _refused("INVALID_ARGUMENT", _SIZE.format("nobatch", (2**63 - 1) * 8, 4)),
    ),
    Difference(
        "no model keeps a sequence of requests: that is said, where Triton passes over it",
        ("refused: sequence_id", "refused: sequence_id as text"),
        _refused("INVALID_ARGUMENT", Begins("'sequence_")),
    ),
    Difference(
        "a model's failure is told in its engine's words",
        (
            "refused: a model that fails",
            "stream: a model that fails",
            "stream: grpc errors: a model that fails",
            "stream of messages: a model that fails*",
            "aio stream: a grpc error",
        ),
        _swap({"index 99 is out of bounds for axis 0 with size 4": Begins("the model failed on these tensors: ")}),
    ),
    Difference(
        "a failure is counted as one: Triton's python backend counts it as a success",
        ("statistics: of a model that fails",),
        lambda record: {
            **record,
            "answer": {
                **record["answer"],
                "batch_stats": [],
                "execution_count": 0,
                "inference_count": 0,
                "inference_stats": {
                    key: [1, True] if key == "fail" else [0, False] for key in record["answer"]["inference_stats"]
                },
                "last_inference": False,
            },
        },
    ),
    Difference(
        "a full queue also says how full it is",
        ("refused: a full queue",),
        _swap(
            {
                "UNAVAILABLE: [request id: mine] Exceeds maximum queue size": Begins(
                    "UNAVAILABLE: [request id: mine] Exceeds maximum queue size: 2 requests wait"
                )
            }
        ),
    ),
    Difference(
        "a request that this Triton ends at is refused",
        ("fatal: classification of bytes",),
        _refused("INVALID_ARGUMENT", "class result not available for output due to unsupported type 'BYTES'"),
    ),
    Difference(
        "why a model cannot be loaded is told in its engine's words",
        ("load: broken",),
        lambda record: {
            **record,
            "answer": {
                "call": {
                    "code": "INVALID_ARGUMENT",
                    "message": Begins(
                        "load failed for model 'broken': version 1 is at UNAVAILABLE state: model.onnx cannot be loaded"
                    ),
                },
                "index": [["broken", "1", "UNAVAILABLE", Begins("model.onnx cannot be loaded")]],
            },
        },
    ),
    Difference(
        "a model that never served, and whose load a call asked for, does not make the server not ready",
        ("load: broken: server ready",),
        lambda record: {**record, "answer": True},
    ),
    Difference(
        "an unload takes an old failure away",
        ("unload: broken",),
        _answer(index=[["broken", "1", "UNAVAILABLE", "unloaded"]]),
    ),
    Difference(
        "what is wrong with a configuration is told, not only logged",
        ("load: config that is no JSON", "load: config with an unknown field", "load: config of another model"),
        _call_refused("INTERNAL", Begins(_NOT_POLLED.format("simple") + "config")),
    ),
    Difference(
        "a configuration that names no backend there is is refused as a configuration",
        ("load: config with an unknown backend",),
        _call_refused("INTERNAL", Begins(_NOT_POLLED.format("simple") + "config")),
    ),
    Difference(
        "files without a configuration are the caller's mistake, and told",
        ("load: files without a config",),
        _call_refused("INVALID_ARGUMENT", Begins(_NOT_POLLED.format("from_files") + "files need")),
    ),
    Difference(
        "a path that leads out of the model's directory is the caller's mistake, and told",
        (
            "load: a file's path upwards",
            "load: a file's path upwards from inside",
            "load: a file's path from the root",
            "load: a file's path of nothing",
        ),
        _call_refused("INVALID_ARGUMENT", Begins(_NOT_POLLED.format("escaped") + "`file:")),
    ),
    Difference(
        "a model without a version is told where it would be",
        ("load: a file's path of no version",),
        _call_refused(
            "INVALID_ARGUMENT",
            Begins(
                "load failed for model 'escaped': at least one version must be available under the version policy of "
                "model 'escaped': "
            ),
        ),
    ),
    Difference(
        "a model that is served is in the index, also one from files that came with the call",
        ("load: from files",),
        _answer(index=[["from_files", "1", "READY", ""]]),
    ),
)


def expected(record: Record) -> Record:
    """What this server's record of a call is to be, from Triton's."""
    for difference in DIFFERENCES:
        if difference.applies(record["name"]):
            record = difference.expected(record)
    return record
