"""
What becomes of ended spans: counted, sent by the SDK's own thread, and lost without any harm where nobody takes them.
"""

import logging
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from trivec_server.logs import get_logger
from trivec_server.metrics import Metrics

_log = get_logger(__name__)


class CountingProcessor(BatchSpanProcessor):
    """Counts the spans for which the SDK has no room: it drops them with a warning, which the log need not repeat."""

    def __init__(self, exporter: "CountingExporter", queue_spans: int, metrics: Metrics) -> None:
        super().__init__(exporter, max_queue_size=queue_spans)
        self._exporter = exporter
        self._queue_spans = queue_spans
        self._dropped = metrics.trace_spans("dropped")
        self._queued = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Takes an ended span. On the event loop's thread only."""
        if span.context is not None and span.context.trace_flags.sampled:
            if self._queued - self._exporter.taken >= self._queue_spans:
                self._dropped.inc()
            else:
                self._queued += 1
        super().on_end(span)


class CountingExporter(SpanExporter):
    """
    Counts what becomes of spans, and logs when the receiver is lost and when it is there again: no line for each try.
    `taken` is how many spans the SDK has taken out of its queue.
    """

    def __init__(self, exporter: SpanExporter, endpoint: str, log: "SdkLog", metrics: Metrics) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._log = log
        self._exported = metrics.trace_spans("exported")
        self._failed = metrics.trace_spans("failed")
        self._is_failing = False
        self._is_closed = False
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends spans. On the SDK's thread."""
        self.taken += len(spans)
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._exported.inc(len(spans))
            if self._is_failing:
                _log.info("traces are taken again", endpoint=self._endpoint)
        else:
            self._failed.inc(len(spans))
            if not self._is_failing:
                _log.warning("traces are lost: the receiver does not take them", reason=self._log.latest)
        self._is_failing = result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        """Ends the export under way."""
        if not self._is_closed:
            self._is_closed = True
            self._exporter.shutdown()


class SdkLog(logging.Handler):
    """
    What OpenTelemetry logs, as events of level debug: it tells of every failed try. `latest` is what an exporter said
    last.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.latest = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one line."""
        message = record.getMessage()
        if ".exporter." in record.name:
            self.latest = message
        _log.debug("OpenTelemetry", message=message)


def capture_sdk_log() -> SdkLog:
    """Takes OpenTelemetry's lines away from stderr."""
    logger = logging.getLogger("opentelemetry")
    handler = SdkLog()
    logger.handlers[:] = [handler]
    logger.propagate = False
    return handler
