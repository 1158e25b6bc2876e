"""What goes wrong beside an answer: tracebacks in the log, exceptions that nobody has caught."""

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog


class Watch(logging.Handler):
    """`faults` is what has gone wrong so far. Sees the server's own log, the libraries', threads, and event loops."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # Of libraries: gRPC and asyncio log what nobody has caught.
        if record.exc_info or record.levelno >= logging.ERROR:
            self.faults.append(f"{record.name}: {logging.Formatter().format(record)}")

    def see_event(
        self, _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """A processor of structlog, the last one: nothing is written."""
        if event.get("exc_info"):
            self.faults.append(repr(event))
        raise structlog.DropEvent

    def take(self) -> list[str]:
        """The faults so far, which are then forgotten."""
        taken, self.faults = self.faults, []
        return taken

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Sees what is left to the loop."""
        loop.set_exception_handler(lambda _, context: self.faults.append(repr(context)))


@contextmanager
def watching() -> Iterator[Watch]:
    """Watches this process while the block runs, which writes no log meanwhile."""
    watch = Watch()
    # In place, as structlog.testing does: loggers that were used before keep this list.
    processors = structlog.get_config()["processors"]
    before = list(processors)
    thread_hook, unraisable_hook = threading.excepthook, sys.unraisablehook
    processors[:] = [watch.see_event]
    logging.getLogger().addHandler(watch)
    threading.excepthook = lambda fault: watch.faults.append(f"thread: {fault.exc_value!r}")
    sys.unraisablehook = lambda fault: watch.faults.append(f"unraisable: {fault.exc_value!r} in {fault.object!r}")
    try:
        yield watch
    finally:
        threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook
        logging.getLogger().removeHandler(watch)
        processors[:] = before
