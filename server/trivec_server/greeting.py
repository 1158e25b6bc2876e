"""What `trivec serve` prints once its models are loaded: what it serves, where, and how to call it."""

from importlib.metadata import version

from trivec_server.lifecycle import Started
from trivec_server.repository.control import ControlMode
from trivec_server.repository.registry import EmbeddingVersion, State, TensorVersion, VersionRecord

_TEXT = "人工智能"
_HERE = "in this server's Python environment:"
_TENSORS_ONLY = "Requests with tensors go to inference.GRPCInferenceService/ModelInfer."
_NOTHING_SERVES = {
    ControlMode.NONE: "No model serves.",
    ControlMode.POLL: "No model serves yet; the repository is looked at again and again.",
    ControlMode.EXPLICIT: "No model serves yet; inference.GRPCInferenceService/RepositoryModelLoad loads one.",
}


def greet(started: Started) -> str:
    """The lines to print."""
    target = f"{_host_to_call(started.host)}:{started.grpc_port}"
    metrics = f", metrics on port {started.metrics_port} (/metrics)" if started.metrics_port is not None else ""
    host = f"[{started.host}]" if ":" in started.host else started.host
    management = f", management on port {started.management_port}" if started.management_port is not None else ""
    lines = [f"Trivec {version('trivec')} serves gRPC on {host}:{started.grpc_port}{metrics}{management}"]
    lines += [f"  {_describe(record)}" for record in started.records]
    if len({record.key.name for record in started.records}) > 1:
        none = "none: requests must name their model, or start with --default-model"
        lines.append(f"  default model: {started.default_model or none}")
    of_texts = [record for record in started.records if not isinstance(record.served, TensorVersion)]
    ready = [record.key.name for record in of_texts if record.state is State.READY]
    if not ready:
        of_tensors = len(of_texts) < len(started.records)
        lines.append(_TENSORS_ONLY if of_tensors else _NOTHING_SERVES[started.control_mode])
    else:
        lines += _try_it(started, target, "" if started.default_model in ready else ready[0])
    return "\n".join(lines)


def _try_it(started: Started, target: str, model: str) -> list[str]:
    """A call with grpcurl, and one in Python, with what the server asks of callers; no `model`: the default one."""
    named = f'"model": "{model}", ' if model else ""
    request = f'{{{named}"texts": ["{_TEXT}"], "modes": ["MODE_HYBRID"]}}'
    arguments = [f'"{target}"', f'model="{model}"'] if model else [f'"{target}"']
    flags = ["-cacert CA.pem" if started.has_tls else "-plaintext"]
    files = 'ca_file="CA.pem"'
    if started.asks_certificates:
        flags.append("-cert CLIENT.pem -key CLIENT.key")
        files += ', certificate_file="CLIENT.pem", key_file="CLIENT.key"'
    if started.has_tls:
        arguments.append(f"tls=Tls({files})")
    if started.asks_tokens:
        flags.append("-H 'authorization: Bearer TOKEN'")
        arguments.append('token="TOKEN"')
    grpcurl = f"  grpcurl {' '.join(flags)} -d '{request}' {target} trivec.v1.EmbeddingService/Embed"
    return [
        *(["Try it:", grpcurl, f"or {_HERE}"] if started.has_reflection else [f"Try it, {_HERE}"]),
        f"  from trivec_client import {'Tls, ' if started.has_tls else ''}TrivecClient",
        f"  with TrivecClient({', '.join(arguments)}) as client:",
        f'      print(client.encode(["{_TEXT}"], return_sparse=True, return_colbert_vecs=True))',
    ]


def _host_to_call(host: str) -> str:
    """A host that a client on this machine can call."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - what was asked for, not what is chosen here
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"  # noqa: S104
    return f"[{host}]" if ":" in host else host


def _describe(record: VersionRecord) -> str:
    served = record.served
    if served is None:
        # Version 0: none was found.
        name = record.key if record.key.version else record.key.name
        return f"{name}: {record.state.name}: {record.reason}"
    if isinstance(served, TensorVersion):
        info = served.loaded.info
        names = ", ".join(spec.name for spec in served.loaded.outputs)
        return f"{record.key}: {record.state.name}, engine {info.engine} on {info.device}, tensors: {names}"
    return _describe_embedding(record, served)


def _describe_embedding(record: VersionRecord, served: EmbeddingVersion) -> str:
    loaded, info = served.loaded, served.loaded.info
    what = (
        f"{record.key}: {record.state.name}, engine {info.engine} on {info.device} in {info.precision}, dense "
        f"vectors of {info.dense_dimension} and token vectors of {info.multi_vector_dimension} dimensions, texts of "
        f"up to {loaded.max_tokens} tokens"
    )
    if loaded.manifest.model.demonstration:
        what += "; a demonstration model, not for production"
    return what
