"""Structured logs on stderr: one event a line, as text or JSON. Texts and tokens of users are never logged."""

import logging
import sys

import structlog
from structlog.typing import FilteringBoundLogger, Processor


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger; bind `request_id` to it where a request is at hand."""
    logger: FilteringBoundLogger = structlog.get_logger(component=name.removeprefix("trivec_server."))
    return logger


def configure_logs(level: str, log_format: str) -> None:
    """Sets level (one of settings.LOG_LEVELS) and format (one of settings.LOG_FORMATS) for the process."""
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks without local variables, which hold texts and tokens.
    if log_format == "json":
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        processors += [
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    else:
        plain = structlog.dev.plain_traceback
        processors += [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_telling)
    # grpc and huggingface_hub use the standard library's logging.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Leaves out gRPC's traceback about a call that its client ended while the answer was being sent."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core by servicer method")
