"""What every channel is made from: security, limits, keepalive."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

ChannelOption = tuple[str, str | int | bool]
Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """
    TLS to the server; `Tls()` trusts the certificate authorities that gRPC brings.

    Attributes:
        ca_file: PEM file of the certificate authorities to trust instead.
        certificate_file: PEM file of the client's own certificate chain, for mutual TLS; needs `key_file`.
        key_file: PEM file of the client's private key.
        server_name: the name that the server's certificate must bear, where it is not the target's host.
    """

    ca_file: Path | str | None = None
    certificate_file: Path | str | None = None
    key_file: Path | str | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file belong together: give both or none")

    def credentials(self) -> grpc.ChannelCredentials:
        """
        Reads the files.

        Raises:
            OSError: a file is not there or not readable.
        """
        return grpc.ssl_channel_credentials(_read(self.ca_file), _read(self.key_file), _read(self.certificate_file))


def _read(path: Path | str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def channel_credentials(tls: Tls | None, credentials: grpc.ChannelCredentials | None) -> grpc.ChannelCredentials | None:
    """
    The credentials of a channel; None: plain text.

    Raises:
        ValueError: both are given.
        OSError: a file that `tls` names is not readable.
    """
    if tls is not None and credentials is not None:
        raise ValueError("tls and credentials exclude each other: give one")
    return tls.credentials() if tls is not None else credentials


def channel_options(tls: Tls | None) -> list[ChannelOption]:
    """Options of a channel."""
    options: list[ChannelOption] = [
        ("grpc.primary_user_agent", f"trivec-python/{importlib.metadata.version('trivec')}"),
        # The server's own limits are known from GetModel, and requests are made to keep them.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A dead connection under a running call is noticed within 40 s. Idle channels are left alone.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # With grpcio 1.85 this counts, and not the keepalive's own timeout.
        ("grpc.http2.ping_timeout_ms", 10_000),
        # After two pings without data between, gRPC would else slow down to one a minute.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 0),
        # gRPC waits 1 s to 120 s between connection attempts; a retry within that wait could only fail.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Each client has its own connection, and its own wait after a failure.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options
