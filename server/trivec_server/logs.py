"""
Structured logs on stderr: one event a line, as text or JSON. Texts of users are logged by `log_texts` alone, and only
if the process was told to; tokens and passwords never are.

What is logged can be changed while the server runs: it is a setting of the process, as its stderr is.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

ISO8601 = "ISO8601"
DEFAULT_TIMES = "default"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """
    Which events are logged. `verbose_level` above 0: those of level debug too. `times`: DEFAULT_TIMES has microseconds,
    ISO8601 has whole seconds.
    """

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose_level: int = 0
    times: str = DEFAULT_TIMES


class _Process:
    """What this process logs, and how."""

    def __init__(self) -> None:
        self.settings = LogSettings()
        self.log_format = "text"
        self.logs_texts = False
        self.levels = _enabled(self.settings)


def _enabled(settings: LogSettings) -> frozenset[str]:
    levels = {
        "debug": settings.verbose_level > 0,
        "info": settings.info,
        "warning": settings.warning,
        "error": settings.error,
        "critical": settings.error,
    }
    return frozenset(level for level, enabled in levels.items() if enabled)


_process = _Process()
_times = {
    DEFAULT_TIMES: structlog.processors.TimeStamper(fmt="iso", utc=True),
    ISO8601: structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True),
}


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger; bind `request_id` to it where a request is at hand."""
    logger: FilteringBoundLogger = structlog.get_logger(component=name.removeprefix("trivec_server."))
    return logger


_text_log = get_logger(__name__)


def log_settings() -> LogSettings:
    """What this process logs now."""
    return _process.settings


def set_log_settings(settings: LogSettings) -> None:
    """Changes what this process logs, from the next event on."""
    _process.settings = settings
    _process.levels = _enabled(settings)


def log_level_and_format() -> tuple[str, str]:
    """The lowest level that is logged, and the format, as `configure_logs` takes them."""
    level = next((level for level in ("debug", "info", "warning") if level in _process.levels), "error")
    return level, _process.log_format


def log_texts(request_id: str, texts: Sequence[str]) -> None:
    """Logs the texts of a request, where `configure_logs` was told so."""
    if _process.logs_texts:
        _text_log.info("texts of a request", request_id=request_id, texts=list(texts))


def configure_logs(level: str, log_format: str, *, logs_texts: bool = False) -> None:
    """
    Sets level (one of settings.LOG_LEVELS) and format (one of settings.LOG_FORMATS) for the process, and whether texts
    of requests are logged, at level info.
    """
    _process.log_format = log_format
    _process.logs_texts = logs_texts
    set_log_settings(
        LogSettings(
            info=level in {"debug", "info"},
            warning=level != "error",
            verbose_level=1 if level == "debug" else 0,
        )
    )
    processors: list[Processor] = [
        _drop_unwanted,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_time,
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
        # Levels are told apart by `_drop_unwanted`: loggers, once used, keep the class that they began with.
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_telling)
    # grpc and huggingface_hub use the standard library's logging.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    if logs_texts:
        _text_log.warning("the texts of all requests are logged, as --log-texts asks: for debugging alone")


def _drop_unwanted(_: WrappedLogger, method: str, event: EventDict) -> EventDict:
    # structlog calls log.exception an error by this time.
    if method not in _process.levels:
        raise structlog.DropEvent
    return event


def _add_time(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    return _times[_process.settings.times](logger, method, event)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Leaves out gRPC's traceback about a call that its client ended while the answer was being sent."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core by servicer method")
