"""The spine of one version of a model that takes tensors: admission, queue, engines."""

from contextlib import AbstractContextManager

from trivec_server.serving.statistics import ModelStatistics
from trivec_server.serving.tensors.request import TensorResult, TensorTask


class TensorPipeline:
    """Infers with one model version. Its methods are for the event loop; `start` and `close` end its threads."""

    statistics: ModelStatistics

    def start(self) -> None:
        """Lets the devices pull batches."""
        raise NotImplementedError

    async def close(self) -> None:
        """Waits until nobody uses the version, refuses new requests, ends the threads and closes the engines."""
        raise NotImplementedError

    def in_use(self) -> AbstractContextManager[None]:
        """While it lasts, the version is not closed: for whoever has resolved it and is not done with it."""
        raise NotImplementedError

    async def infer(self, task: TensorTask) -> TensorResult:
        """
        Computes the task's outputs. Cancelling it drops what is not computed yet and disturbs no other request.

        Raises:
            InvalidRequest: the priority is unknown.
            Overloaded: a limit on queued work is reached.
            QueueTimeout: the queue's timeout passed.
            DeadlineExceeded: the task's deadline passed.
            ComputeError: the engine failed.
            Unavailable: the model is being unloaded.
        """
        raise NotImplementedError
