"""Trivec as its users have it: `trivec serve` in a process of its own, and the Python client in this one."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from trivec_client import TrivecClient
from trivec_client.vectors import WireEncoding

from benchmarks.engines.process import SystemFailed
from benchmarks.engines.systems import tree_rss_bytes
from benchmarks.engines.worker import timed
from benchmarks.engines.workload import TextSet
from tests.serving_process import serve

REQUEST_TEXTS = 16
IN_FLIGHT = 16
_LONGEST = 0
"""As long as the model allows."""


class ServedTrivec:
    """A server with one model, and a client that asks for all three embeddings."""

    def __init__(self, repository: Path, wire: WireEncoding) -> None:
        """
        Raises:
            SystemFailed: the server or its model does not start; says why.
        """
        self._open = ExitStack()
        before = time.monotonic()
        try:
            server = self._open.enter_context(serve(repository))
        except AssertionError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise SystemFailed(f"trivec serve: {lines[0] if lines else 'did not start'}"[:300]) from error
        self.start_s = time.monotonic() - before
        self.pid = server.process.pid
        self.target = server.target
        self._client = self._open.enter_context(
            TrivecClient(
                server.target,
                wire_encoding=wire,
                batch_size=REQUEST_TEXTS,
                max_in_flight=IN_FLIGHT,
                options=[("grpc.max_receive_message_length", -1)],
            )
        )
        (model,) = self._client.list_models()
        if model.state != "READY":
            self.close()
            raise SystemFailed(model.state_reason[:300])
        self.engine, self.precision, self.device = model.engine, model.precision, model.device
        self.settings = (
            f"{model.engine}, {model.precision}, {model.device}; gRPC, {REQUEST_TEXTS} texts a request, {wire} vectors"
        )

    @property
    def versions(self) -> dict[str, str]:
        """Nothing beyond what the machine's description says."""
        return {}

    @property
    def rss_bytes(self) -> int:
        """The server's memory."""
        return tree_rss_bytes(self.pid)

    def embed(self, texts: TextSet) -> float:
        """Seconds until all three embeddings of all texts are here as arrays."""
        return timed(lambda: self._encode(texts.texts))

    def embed_each(self, texts: TextSet) -> list[float]:
        """Seconds for each text in a request of its own, one after the other."""
        return [timed(lambda text=text: self._encode([text])) for text in texts.texts]

    def embed_stream(self, texts: Sequence[str], texts_per_request: int) -> float:
        """Seconds for many short texts, dense vectors alone."""

        def run() -> None:
            for _ in self._client.encode_stream(texts, batch_size=texts_per_request, max_length=_LONGEST):
                pass

        return timed(run)

    def dense(self, texts: Sequence[str]) -> list[list[float]]:
        vectors = self._client.encode(list(texts), max_length=_LONGEST)["dense_vecs"]
        assert vectors is not None
        rows: list[list[float]] = vectors.tolist()
        return rows

    def close(self) -> None:
        self._open.close()

    def _encode(self, texts: Sequence[str]) -> None:
        self._client.encode(texts, max_length=_LONGEST, return_dense=True, return_sparse=True, return_colbert_vecs=True)
