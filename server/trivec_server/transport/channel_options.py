"""What gRPC is told of a server's connections."""

from trivec_server.settings import ServeSettings

_FOREVER_MS = 2**31 - 1


def channel_options(settings: ServeSettings) -> list[tuple[str, int]]:
    """The options of a gRPC server."""
    limits = settings.limits
    return [
        ("grpc.max_receive_message_length", limits.max_request_bytes),
        ("grpc.max_send_message_length", limits.max_response_bytes),
        # Two servers on one port would each get some of the calls, and neither say so.
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
        # Between the two gRPC refuses at random.
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.handshake_timeout_s)),
        # What a client has not acknowledged does not bind it.
        ("grpc.http2.settings_timeout", _milliseconds(limits.handshake_timeout_s)),
        ("grpc.keepalive_time_ms", _milliseconds(settings.keepalive_time_s)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(limits.min_ping_interval_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_connection_age_grace_s)),
    ]


def _milliseconds(duration_s: float) -> int:
    """A duration for gRPC, whose largest stands for ever."""
    return min(round(duration_s * 1000), _FOREVER_MS)
