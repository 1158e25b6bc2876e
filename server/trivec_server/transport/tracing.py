"""Traces of calls, as far as calls know of them: nothing here imports OpenTelemetry, which is an extra."""

import re
from collections.abc import Iterable
from typing import Protocol, TypeAlias

from trivec_server.errors import CommandError
from trivec_server.metrics import Metrics
from trivec_server.settings import TracingSettings

Metadata: TypeAlias = "Iterable[tuple[str, str | bytes]]"

TRACE_PARENT_KEY = "traceparent"
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class CallTrace(Protocol):
    """The span of one call, or of one message of a stream."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""

    def fail(self, reason: str) -> None:
        """Says why the call is to fail."""

    def finish(self, code: str, model: str, request_id: str) -> None:
        """Ends the span, with those of the stages that the call's requests went through."""


class Tracing(Protocol):
    """Makes the spans of one server's calls. For the event loop."""

    def begin(self, method: str, metadata: Metadata) -> CallTrace:
        """Begins the span of a call, within the trace that its metadata names, if it names one."""

    def begin_message(self, method: str, stream: CallTrace) -> CallTrace:
        """Begins the span of one message of a stream."""

    def close(self) -> None:
        """Sends what is left, as far as a moment suffices. Blocks."""


def named_trace_id(trace_parent: str) -> str:
    """
    The trace id in a `traceparent` (W3C Trace Context, section 3.2), "" if there is none: the log can name the caller's
    trace also where this server sends none.
    """
    found = _TRACE_PARENT.fullmatch(trace_parent)
    return found[1] if found is not None and found[1].strip("0") else ""


def open_tracing(settings: TracingSettings, metrics: Metrics) -> Tracing | None:
    """
    Traces as the settings say; None without an endpoint.

    Raises:
        CommandError: OpenTelemetry is not installed, or its own variables (OTEL_*) say something that it cannot use.
    """
    if settings.endpoint is None:
        return None
    try:
        from trivec_server.transport.otlp import OtlpTracing  # noqa: PLC0415 - an extra

        return OtlpTracing(settings.endpoint, settings.sample_ratio, metrics)
    except ModuleNotFoundError as error:
        raise CommandError(f"--otlp-endpoint needs the package {error.name}: pip install 'trivec[otel]'") from error
    except Exception as error:  # it raises what it likes about its variables
        reason = " ".join(str(error).split())
        raise CommandError(f"cannot trace to {settings.endpoint}; look at the variables OTEL_*: {reason}") from error
