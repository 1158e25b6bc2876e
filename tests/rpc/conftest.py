"""The event loop of these tests is that of the server as a process; of the client's tests, that of its users."""

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping

import pytest
import structlog
import uvloop

from tests.rpc.live_repository import HeldText


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The hook of pytest-asyncio."""
    if item.path.name.startswith("test_client"):
        return {"asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def held() -> Iterator[HeldText]:
    """Batches with the text HELD wait, and at the end of the test no longer."""
    text = HeldText()
    yield text
    text.go_on.set()


@pytest.fixture(autouse=True)
def _logs_as_at_the_start() -> None:
    """What was configured by a test before, and kept by loggers that it has used, is not for this one."""
    structlog.reset_defaults()
    for name, module in list(sys.modules.items()):
        if name.startswith("trivec_server."):
            for logger in vars(module).values():
                if isinstance(logger, structlog._config.BoundLoggerLazyProxy):
                    vars(logger).pop("bind", None)
