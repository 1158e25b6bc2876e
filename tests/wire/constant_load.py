"""Clients that send requests one after the other for as long as a test needs them, and keep what came of them."""

import json
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub

TEXTS = ("hello world", "人工智能", "the hello world")
REQUEST = pb.EmbedRequest(
    texts=TEXTS,
    modes=[pb.MODE_DENSE, pb.MODE_SPARSE, pb.MODE_MULTI_VECTOR],
    input_type=pb.INPUT_TYPE_QUERY,
    encoding=pb.VECTOR_ENCODING_FLOAT32,
)
TRITON_CLIENT = Path(__file__).parents[2] / ".venv-tritonclient" / "bin" / "python"

_TRITON_LOAD = Path(__file__).with_name("kserve_load.py")
_PATIENCE_S = 60.0

Vectors = NDArray[np.float32]


def dense_rows(response: pb.EmbedResponse) -> Vectors:
    """The dense vectors of an answer to REQUEST."""
    return np.stack([np.frombuffer(each.dense.data, np.float32) for each in response.embeddings])


@dataclass
class Load:
    """What was sent until now. `answers` are the dense vectors of TEXTS; `failures` must stay empty."""

    target: str
    answers: list[Vectors] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def embed(self) -> None:
        """Embed, one call after the other."""
        with grpc.insecure_channel(self.target) as channel:
            stub = EmbeddingServiceStub(channel)
            while not self.over.is_set():
                self._take("Embed", stub.Embed(REQUEST, timeout=_PATIENCE_S))

    def stream(self) -> None:
        """EmbedStream: one stream that never ends, with one request under way at a time."""
        answered: queue.Queue[None] = queue.Queue()

        def requests() -> Iterator[pb.EmbedStreamRequest]:
            while not self.over.is_set():
                yield pb.EmbedStreamRequest(id="x", request=REQUEST)
                answered.get()

        with grpc.insecure_channel(self.target) as channel:
            responses: list[pb.Embedding] = []
            for response in EmbeddingServiceStub(channel).EmbedStream(requests()):
                if response.HasField("error"):
                    self.failures.append(f"EmbedStream: {response.error.message}")
                responses += response.response.embeddings
                if response.final:
                    self._take("EmbedStream", pb.EmbedResponse(embeddings=responses))
                    responses.clear()
                    answered.put(None)

    def _take(self, method: str, response: pb.EmbedResponse) -> None:
        self.answers.append(dense_rows(response))
        # Each method has threads of its own, and counts only have to be about right.
        self.calls[method] = self.calls.get(method, 0) + 1


@contextmanager
def constant_load(target: str, model: str) -> Iterator[Load]:
    """Embed and EmbedStream from this process, ModelInfer from another by Triton's client, while the block runs."""
    load = Load(target)

    def attempt(send: Callable[[], None]) -> None:
        try:
            send()
        except (grpc.RpcError, ValueError) as fault:
            load.failures.append(str(fault))

    threads = [threading.Thread(target=attempt, args=(send,)) for send in (load.embed, load.stream)]
    with subprocess.Popen(
        [TRITON_CLIENT, _TRITON_LOAD, target, model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as triton:
        assert triton.stderr is not None
        said = triton.stderr.readline()
        assert said == "begun\n", said + triton.stderr.read()
        for thread in threads:
            thread.start()
        try:
            yield load
        finally:
            load.over.set()
            for thread in threads:
                thread.join()
            output, errors = triton.communicate()
    assert triton.returncode == 0, errors
    ended = json.loads(output)
    load.calls["ModelInfer"] = ended["calls"]
    load.failures += ended["failures"]
