"""A real OTLP receiver in this process: the TraceService over gRPC, which keeps every span."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PATIENCE_S = 60.0


def attributes(pairs: "list[KeyValue]") -> dict[str, str | int]:
    """Attributes by name; those of text and whole numbers."""
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in pairs}


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span and the attributes of what sent it."""

    span: Span
    attributes: Mapping[str, str | int]
    resource: Mapping[str, str | int]
    raw: bytes

    @property
    def name(self) -> str:
        return self.span.name


@dataclass
class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """What has come so far."""

    endpoint: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    _arrived: threading.Condition = field(default_factory=threading.Condition)

    def Export(  # noqa: N802 - the service's name
        self, request: pb.ExportTraceServiceRequest, _: grpc.ServicerContext
    ) -> pb.ExportTraceServiceResponse:
        with self._arrived:
            for group in request.resource_spans:
                resource = attributes(list(group.resource.attributes))
                for scope in group.scope_spans:
                    for span in scope.spans:
                        found = attributes(list(span.attributes))
                        self.spans.append(ReceivedSpan(span, found, resource, span.SerializeToString()))
            self._arrived.notify_all()
        return pb.ExportTraceServiceResponse()

    def of_request(self, request_id: str) -> list[ReceivedSpan]:
        """The spans of the trace that a request belongs to, once its own span has come; the earliest first."""
        root = self.wait_for(lambda each: each.attributes.get("trivec.request_id") == request_id)
        return sorted(
            (each for each in self.spans if each.span.trace_id == root.span.trace_id),
            key=lambda each: each.span.start_time_unix_nano,
        )

    def wait_for(self, holds: Callable[[ReceivedSpan], bool]) -> ReceivedSpan:
        """The first span of that kind, as soon as it has come."""
        ends_at = time.monotonic() + PATIENCE_S
        with self._arrived:
            while True:
                for each in self.spans:
                    if holds(each):
                        return each
                assert self._arrived.wait(ends_at - time.monotonic()), [each.name for each in self.spans]


@contextmanager
def receiving() -> Iterator[OtlpReceiver]:
    """A receiver on a free port."""
    receiver = OtlpReceiver()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None).wait()
