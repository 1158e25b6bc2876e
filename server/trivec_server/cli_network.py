"""`trivec serve`: where the server listens, how long connections live, and how it ends them."""

from typing import Any

import click

from trivec_server.cli_options import MAX_SECONDS, Seconds, option, options, switch
from trivec_server.settings import ServeSettings

_DEFAULTS = ServeSettings()

_ADDRESSES = (
    option("--host", "The address to listen on.", default=_DEFAULTS.host),
    option(
        "--grpc-port", "The gRPC port; 0: any free one.", type=click.IntRange(0, 65535), default=_DEFAULTS.grpc_port
    ),
    switch(
        "--open-when-loaded",
        "Refuse gRPC connections until the models to load first are loaded or have failed, for balancers that do not "
        "ask for health (nginx). Otherwise they are taken at once, and calls answered UNAVAILABLE until then.",
        default=_DEFAULTS.open_when_loaded,
    ),
    option("--metrics-host", "The address of the metrics endpoint.", default=_DEFAULTS.metrics_host),
    option(
        "--metrics-port",
        "The port of the Prometheus endpoint; 0: any free one, -1: none.",
        type=click.IntRange(-1, 65535),
        default=_DEFAULTS.metrics_port,
    ),
)
_CONNECTIONS = (
    option(
        "--keepalive-time-s",
        "Ping an idle connection after so many seconds.",
        type=Seconds(1, MAX_SECONDS),
        default=_DEFAULTS.keepalive_time_s,
    ),
    option(
        "--max-connection-age-s",
        "Ask clients to reconnect after so many seconds, so that load spreads over new servers.",
        type=Seconds(1, MAX_SECONDS),
        default=_DEFAULTS.max_connection_age_s,
    ),
    option(
        "--max-connection-age-grace-s",
        "Then: seconds for the connection's calls to finish.",
        type=Seconds(0, MAX_SECONDS),
        default=_DEFAULTS.max_connection_age_grace_s,
    ),
    switch(
        "--load-report",
        "With each answer, say how busy this server is (ORCA, in the metadata `endpoint-load-metrics-bin`), for "
        "balancers that weigh servers by it.",
        default=_DEFAULTS.load_report,
    ),
)
_DRAIN = (
    option(
        "--drain-pause-s",
        "After SIGTERM: seconds to go on serving with health NOT_SERVING, for balancers to see it.",
        type=Seconds(0, MAX_SECONDS),
        default=_DEFAULTS.drain_pause_s,
    ),
    option(
        "--drain-grace-s",
        "Then: seconds for the calls in flight to finish.",
        type=Seconds(0, MAX_SECONDS),
        default=_DEFAULTS.drain_grace_s,
    ),
)
network_options = options(_ADDRESSES, _CONNECTIONS, _DRAIN)


def network_settings(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of ServeSettings that are not what their option was given, which it takes out of `given`."""
    metrics_port = given.pop("metrics_port")
    return {"metrics_port": None if metrics_port < 0 else metrics_port}
