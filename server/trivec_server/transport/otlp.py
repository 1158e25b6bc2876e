"""
Spans of calls through OpenTelemetry's SDK to an OTLP receiver over gRPC.

The names of attributes are those of the semantic conventions for RPC (`rpc.*`, version 1.41), and `trivec.*` for what
is our own. No text, token or token id ever is an attribute. What the SDK takes from OTEL_* counts: service name and
resource attributes, sampler (where no ratio is given), headers, certificates, timeouts, sizes of queue and batch.
"""

import os
import socket
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from inference import grpc_service_pb2
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, format_trace_id, set_span_in_context
from trivec.v1 import embedding_pb2

from trivec_server.metrics import Metrics
from trivec_server.serving.trail import Trail, collect_trails
from trivec_server.transport.span_export import CountingExporter, CountingProcessor, capture_sdk_log
from trivec_server.transport.tracing import CallTrace, Metadata

_SERVICES = {
    method.name: service.full_name
    for service in (
        *embedding_pb2.DESCRIPTOR.services_by_name.values(),
        *grpc_service_pb2.DESCRIPTOR.services_by_name.values(),
    )
    for method in service.methods
}
_FAULTS_OF_THE_SERVER: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""The codes for which a server's span is an error (semantic conventions for gRPC)."""
_CLOSE_S = 2.0
_DEFAULT_QUEUE_SPANS = 2048
_VERSION = version("trivec")


class OtlpTracing:
    """All spans of one server, and the thread that sends them."""

    def __init__(self, endpoint: str, sample_ratio: float | None, metrics: Metrics) -> None:
        """
        Args:
            endpoint: `http://host:port` or, with TLS, `https://host:port`.
            sample_ratio: The share of traces to keep of those that begin here, 0 to 1; a caller's own decision counts
                first. None: what OTEL_TRACES_SAMPLER says, all without it.
            metrics: Where spans are counted.

        Raises:
            Exception: of any type, where OpenTelemetry cannot use one of its variables.
        """
        queue_spans = int(os.environ.get(OTEL_BSP_MAX_QUEUE_SIZE, _DEFAULT_QUEUE_SPANS))
        log = capture_sdk_log()
        self._exporter = CountingExporter(OTLPSpanExporter(endpoint=endpoint), endpoint, log, metrics)
        self._processor = CountingProcessor(self._exporter, queue_spans, metrics)
        provider = TracerProvider(
            sampler=None if sample_ratio is None else ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=_resource(),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("trivec_server", _VERSION)

    def begin(self, method: str, metadata: Metadata) -> CallTrace:
        """Begins the span of a call, within the trace that its metadata names, if it names one."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        full_name = f"{_SERVICES.get(method, 'unknown')}/{method}"
        return _SpanOfCall(self._tracer, full_name, SpanKind.SERVER, propagate.extract(carrier))

    def begin_message(self, method: str, stream: CallTrace) -> CallTrace:
        """Begins the span of one message of a stream."""
        context = stream.context if isinstance(stream, _SpanOfCall) else Context()
        return _SpanOfCall(self._tracer, method, SpanKind.INTERNAL, context)

    def close(self) -> None:
        """Sends what is left, for 2 seconds at most. Blocks."""
        closing = threading.Thread(target=self._processor.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        # Ends an export under way, too.
        self._exporter.shutdown()


class _SpanOfCall:
    """The span of one call, begun now. Instants are those of `time.monotonic`, spans have the time since 1970."""

    __slots__ = ("_anchor_ns", "_is_recording", "_method", "_reason", "_span", "_tracer", "_trails", "context")

    def __init__(self, tracer: Tracer, method: str, kind: SpanKind, parent: Context) -> None:
        now_ns = time.time_ns()
        self._anchor_ns = now_ns - time.monotonic_ns()
        self._tracer = tracer
        self._method = method
        self._reason = ""
        self._span = tracer.start_span(method, context=parent, kind=kind, start_time=now_ns)
        self._is_recording = self._span.is_recording()
        self._trails: Sequence[Trail] = collect_trails() if self._is_recording else ()
        self.context = set_span_in_context(self._span, Context())

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, or nothing where OTEL_SDK_DISABLED is set."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else ""

    def fail(self, reason: str) -> None:
        """Says why the call is to fail."""
        self._reason = reason

    def finish(self, code: str, model: str, request_id: str) -> None:
        """Ends the span, with those of the stages that the call's requests went through."""
        if not self._is_recording:
            return
        span = self._span
        span.set_attributes(
            {
                "rpc.system.name": "grpc",
                "rpc.method": self._method,
                "rpc.response.status_code": code,
                "trivec.request_id": request_id,
            }
        )
        if model:
            span.set_attribute("trivec.model", model)
        if code != "OK":
            span.set_attribute("error.type", code)
        if code in _FAULTS_OF_THE_SERVER:
            span.set_status(Status(StatusCode.ERROR, self._reason))
        elif self._reason:
            span.add_event("refused", {"reason": self._reason})
        for trail in tuple(self._trails):
            self._add_stages(trail)
        span.end(time.monotonic_ns() + self._anchor_ns)

    def _add_stages(self, trail: Trail) -> None:
        batches = tuple(trail.batches)
        if not trail.queued_at:
            # It has ended before its tokens were there.
            self._child("tokenize", trail.admitted_at, time.monotonic(), {"trivec.rows": trail.rows})
            return
        self._child("tokenize", trail.admitted_at, trail.queued_at, {"trivec.rows": trail.rows})
        taken_at = max((note.taken_at for note in batches), default=time.monotonic())
        self._child("queue", trail.queued_at, taken_at, {"trivec.batches": trail.batch_count})
        for note in batches:
            sizes = {"trivec.batch.rows": note.rows, "trivec.batch.tokens": note.tokens}
            self._child("compute", note.begun_at, note.computed_at, sizes)

    def _child(self, name: str, begun_at: float, ended_at: float, attributes: dict[str, int]) -> None:
        child: Span = self._tracer.start_span(
            name, context=self.context, attributes=attributes, start_time=self._since_1970_ns(begun_at)
        )
        child.end(self._since_1970_ns(max(begun_at, ended_at)))

    def _since_1970_ns(self, instant: float) -> int:
        return round(instant * 1e9) + self._anchor_ns


def _resource() -> Resource:
    """What the variables say of this server, else its name and host."""
    resource = Resource.create()
    name = str(resource.attributes.get(SERVICE_NAME, ""))
    ours = {"service.version": _VERSION, "host.name": socket.gethostname()}
    if not name or name.startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "trivec"}))
    missing = {key: value for key, value in ours.items() if key not in resource.attributes}
    return resource.merge(Resource(missing))
