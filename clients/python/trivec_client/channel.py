"""What a channel to a server is made from: security, limits, keepalive."""

import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

DEFAULT_TARGET = "127.0.0.1:8001"

_GRPC_NAMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:", "xds:")
"""How names begin that gRPC itself resolves; they say where the server is in ways of their own."""
_HOST_AND_PORT = re.compile(r"(\[[^][/]+\]|[^][:/\s]+):(\d{1,5})", re.ASCII)

ChannelOption = tuple[str, str | int | bool]
Metadata = Sequence[tuple[str, str]]


def check_target(target: str) -> None:
    """
    Refuses what gRPC would try in vain, or at port 443.

    Raises:
        ValueError: the target is neither `host:port` nor a name with a scheme that gRPC resolves.
    """
    if target.startswith(_GRPC_NAMES):
        return
    match = _HOST_AND_PORT.fullmatch(target)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(f"target: {target!r} is not host:port, such as {DEFAULT_TARGET} or [::1]:8001")


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


def channel_options(tls: Tls | None, extra: Sequence[ChannelOption]) -> list[ChannelOption]:
    """Options of the channel; those in `extra` come last and win."""
    options: list[ChannelOption] = [
        ("grpc.primary_user_agent", f"trivec-python/{importlib.metadata.version('trivec')}"),
        # The server's own limits are known from GetModel, and requests are made to keep them.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A dead connection under a running call is noticed within 40 s. Idle channels are left alone.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        # gRPC waits 1 s to 120 s between connection attempts; a retry within that wait could only fail.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Each client has its own connection, and its own wait after a failure.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return [*options, *extra]
