"""The server's settings: frozen values with their defaults. The command line fills them from flags and `TRIVEC_*`."""

import enum
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024

MIN_CHUNK_BYTES = 4096
DEFAULT_CHUNK_BYTES = MIB
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    What one server accepts. Counts of queued work are per model version; a request is refused if work is queued
    and adding the request would pass a limit, so that an idle server takes any request that is legal by itself.
    Connections and what is on them are counted for the whole server.
    """

    max_texts_per_request: int = 1024
    max_request_bytes: int = 16 * MIB
    max_response_bytes: int = 64 * MIB
    max_chunk_bytes: int = 4 * MIB
    max_queued_texts: int = 16_384
    max_queued_bytes: int = 128 * MIB
    max_queued_tokens: int = 2_000_000
    max_queue_time_s: float = 60.0
    max_held_bytes: int = 1024 * MIB
    max_text_bytes: int = MIB
    max_stream_requests: int = 64
    max_stream_result_bytes: int = 64 * MIB
    max_connections: int = 4096
    max_concurrent_streams: int = 4096
    max_concurrent_calls: int = 16_384
    max_unread_bytes: int = 256 * MIB
    max_metadata_bytes: int = 16 * 1024
    request_timeout_s: float = 60.0
    handshake_timeout_s: float = 10.0
    min_ping_interval_s: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """
    Where embeddings are kept for models with `response_cache`: in this process, up to `size_bytes`, or in a Redis
    server, for `ttl_s` seconds. `has_tls`: over TLS, believing the authorities of `ca_file`, or those of the system.
    """

    kind: str = "local"
    size_bytes: int = 128 * MIB
    host: str = "127.0.0.1"
    port: int = 6379
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    has_tls: bool = False
    ca_file: Path | None = None
    ttl_s: int = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """PEM files. `client_ca`: clients must show a certificate of one of these authorities."""

    certificate: Path
    private_key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingSettings:
    """
    Where spans are sent: `endpoint` is http://host:port, or https:// for TLS; None: nowhere. `sample_ratio`: the share
    of the traces that begin here, 0 to 1; None: what OTEL_TRACES_SAMPLER says.
    """

    endpoint: str | None = None
    sample_ratio: float | None = None


class Management(enum.Enum):
    """Whether calls may load and unload models and change settings: those that may (AUTO), or none."""

    AUTO = "auto"
    OFF = "off"


EVERY_MODEL = "*"
"""What `load_models` says, alone, for all of them."""


class ControlMode(enum.Enum):
    """Who decides which models are loaded: the start alone, the repository's directories, or calls (as in Triton)."""

    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """
    Everything `trivec serve` can be told. A `metrics_port` of None: no metrics; a port of 0: any free one.

    `load_models`: those to serve, empty: all; with ControlMode.EXPLICIT those to load at the start, empty: none.
    `repository_stability_s`: how long what has changed must have looked the same before polling loads it.
    `open_when_loaded`: the gRPC port opens only once the models to load first are loaded or have failed.
    `security_look_s`: how often certificates and the access file are looked at for a change.
    """

    model_repositories: tuple[Path, ...] = (Path("model_repository"),)
    model_control_mode: ControlMode = ControlMode.NONE
    load_models: tuple[str, ...] = ()
    repository_poll_s: float = 15.0
    repository_stability_s: float = 2.0
    strict_readiness: bool = True
    exit_on_error: bool = False
    default_model: str | None = None
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    open_when_loaded: bool = False
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = 8002
    limits: Limits = field(default_factory=Limits)
    cache: CacheSettings = CacheSettings()
    tracing: TracingSettings = TracingSettings()
    drain_pause_s: float = 2.0
    drain_grace_s: float = 30.0
    keepalive_time_s: float = 120.0
    max_connection_age_s: float = 1800.0
    max_connection_age_grace_s: float = 60.0
    load_report: bool = True
    tls: TlsSettings | None = None
    allow_insecure: bool = False
    access_file: Path | None = None
    management: Management = Management.AUTO
    management_host: str = "127.0.0.1"
    management_port: int | None = None
    reflection: bool = True
    security_look_s: float = 1.0
    allow_client_shm: bool = False
    log_level: str = "info"
    log_format: str = "text"
    log_texts: bool = False
