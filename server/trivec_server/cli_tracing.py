"""`trivec serve`: where traces go."""

from typing import Any
from urllib.parse import urlsplit

import click

from trivec_server.cli_options import option, options
from trivec_server.settings import TracingSettings


def _check_endpoint(_context: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
    if not given:
        return None
    expected = "expected http://host:port, or https://host:port for TLS"
    try:
        url = urlsplit(given)
        port = url.port
    except ValueError as error:
        raise click.BadParameter(f"{given}: {error}; {expected}") from None
    if url.scheme not in {"http", "https"} or not url.hostname or port is None or url.path.strip("/"):
        raise click.BadParameter(f"{given}: {expected}")
    return given


tracing_options = options(
    (
        option(
            "--otlp-endpoint",
            "Send a trace of each call to this OTLP receiver over gRPC, such as http://127.0.0.1:4317; https for TLS. "
            "Needs the extra `otel`. Variables OTEL_* that OpenTelemetry documents count as well.",
            callback=_check_endpoint,
        ),
        option(
            "--trace-sample-ratio",
            "The share of calls to trace, 0 to 1, of those whose caller has not decided. [default: 1, or what "
            "OTEL_TRACES_SAMPLER says]",
            type=click.FloatRange(0, 1),
        ),
    )
)


def tracing_settings(given: dict[str, Any]) -> TracingSettings:
    """The settings from the options, which it takes out of `given`."""
    return TracingSettings(endpoint=given.pop("otlp_endpoint"), sample_ratio=given.pop("trace_sample_ratio"))
