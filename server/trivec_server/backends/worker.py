"""An engine in a process of its own."""

from trivec_server.backends.interface import Engine, EngineFactory, EngineRequest


def start_worker(factory: EngineFactory, request: EngineRequest) -> Engine:
    """Builds the engine in a new process; returns one that sends its batches there."""
    raise NotImplementedError(factory, request)
