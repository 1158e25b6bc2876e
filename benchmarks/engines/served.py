"""Trivec as its users have it: `trivec serve` in a process of its own, and the Python client in this one."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from trivec_client import TrivecClient
from trivec_client.vectors import WireEncoding

from benchmarks.engines.lengths import TextSet
from benchmarks.engines.process import SystemFailed
from benchmarks.engines.systems import tree_rss_bytes
from benchmarks.engines.worker import timed
from tests.ending import end

REQUEST_TEXTS = 16
IN_FLIGHT = 16
_LONGEST = 0
"""As long as the model allows."""
_OPTIONS = [("grpc.max_receive_message_length", -1)]


class ServedTrivec:
    """A server with one model, and a client that asks for all three embeddings."""

    def __init__(self, repository: Path, wire: WireEncoding, log: Path, request_texts: int = REQUEST_TEXTS) -> None:
        """
        Raises:
            SystemFailed: the server or its model does not start; says why.
        """
        self._process = _start(repository, log)
        try:
            self.target = _wait_for_target(self._process, log)
        except SystemFailed:
            _end(self._process)
            raise
        self._client = TrivecClient(
            self.target, wire_encoding=wire, batch_size=request_texts, max_in_flight=IN_FLIGHT, options=_OPTIONS
        )
        (model,) = self._client.list_models()
        if model.state != "READY":
            self.close()
            raise SystemFailed(model.state_reason[:300])
        self.engine, self.precision, self.device = model.engine, model.precision, model.device
        self.settings = (
            f"{model.engine}, {model.precision}, {model.device}; gRPC, {request_texts} texts a request, {wire} vectors"
        )

    @property
    def versions(self) -> dict[str, str]:
        """Nothing beyond what the machine's description says."""
        return {}

    @property
    def rss_bytes(self) -> int:
        """The server's memory."""
        return tree_rss_bytes(self._process.pid)

    def embed(self, texts: TextSet) -> float:
        """Seconds until all three embeddings of all texts are here as arrays."""
        return timed(lambda: self._encode(texts.texts))

    def embed_each(self, texts: TextSet) -> list[float]:
        """Seconds for each text in a request of its own, one after the other."""
        return [timed(partial(self._encode, [text])) for text in texts.texts]

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
        self._client.close()
        _end(self._process)

    def _encode(self, texts: Sequence[str]) -> None:
        self._client.encode(texts, max_length=_LONGEST, return_dense=True, return_sparse=True, return_colbert_vecs=True)


def _start(repository: Path, log: Path) -> "subprocess.Popen[str]":
    """`trivec serve` as a user starts it, on free ports."""
    command = [sys.executable, "-m", "trivec_server", "serve", "--model-repository", str(repository)]
    command += ["--grpc-port", "0", "--metrics-port", "0", "--drain-pause-s", "0"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRIVEC_")}
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, env=environment, encoding="utf-8")


def _wait_for_target(process: "subprocess.Popen[str]", log: Path) -> str:
    """The address that the server prints once it has loaded its models, or failed to."""
    assert process.stdout is not None
    found = re.search(r"serves gRPC on (\S+:\d+)", process.stdout.readline())
    if found is None:
        code = process.wait()
        raise SystemFailed(f"trivec serve ended with {code}: {log.read_text(encoding='utf-8').strip()[:200]}")
    return found[1]


def _end(process: "subprocess.Popen[str]") -> None:
    end(process)
    if process.stdout is not None:
        process.stdout.close()
