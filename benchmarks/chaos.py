"""
2,000 requests with random cancellations and deadlines at a small engine. Every request that was left alone must be
answered right, and afterwards nothing may be left: no queued token, no request under way, no task.

    python -m benchmarks.chaos
"""

import argparse
import asyncio
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import grpc
import numpy as np
from trivec.v1 import embedding_pb2 as pb
from trivec.v1.embedding_pb2_grpc import EmbeddingServiceStub
from trivec_server.backends.interface import TokenBatch
from trivec_server.logs import configure_logs

from tests.rpc.running_server import RunningServer, running_server
from tests.scripted_engine import Script, expected_dense, expected_multi_vector, expected_weights
from tests.small_repository import MAX_TOKENS, make_repository

if TYPE_CHECKING:
    from trivec.v1.embedding_pb2_grpc import EmbeddingServiceAsyncStub

IN_FLIGHT = 64
COMPUTE_S = 0.002
_LEFTOVER_LOOKS = 1000
MESSAGES_PER_STREAM = 8
_MODES = (pb.MODE_DENSE, pb.MODE_SPARSE, pb.MODE_MULTI_VECTOR, pb.MODE_HYBRID)
_CONFIG = "instance_group { count: 2 kind: KIND_CPU }\n"

_LATE = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


class WrongAnswerError(Exception):
    """A request that was left alone got another answer than its own."""


def make_request(random: Random) -> pb.EmbedRequest:
    texts = [
        " ".join(f"w{random.randrange(10, 1000)}" for _ in range(random.randrange(MAX_TOKENS - 2)))
        for _ in range(random.choice((1, 1, 1, 4, 40)))
    ]
    return pb.EmbedRequest(texts=texts, modes=[random.choice(_MODES)])


def check(request: pb.EmbedRequest, embeddings: list[pb.Embedding]) -> None:
    """Compares every number with what the engine gives for the text alone."""
    if [embedding.index for embedding in embeddings] != list(range(len(request.texts))):
        raise WrongAnswerError("texts are missing or out of order")
    mode = request.modes[0]
    for text, embedding in zip(request.texts, embeddings, strict=True):
        ids = [0, *(int(word[1:]) for word in text.split()), 2]
        if mode in (pb.MODE_DENSE, pb.MODE_HYBRID):
            _same(embedding.dense.values, expected_dense(ids))
        if mode in (pb.MODE_SPARSE, pb.MODE_HYBRID):
            weights = dict(zip(ids[1:-1], expected_weights(ids[1:-1]).tolist(), strict=True))
            kept = sorted(token for token, weight in weights.items() if weight > 0)
            _same(embedding.sparse.ids, np.array(kept))
            _same(embedding.sparse.weights, np.array([weights[token] for token in kept], np.float32))
        if mode in (pb.MODE_MULTI_VECTOR, pb.MODE_HYBRID):
            _same(embedding.multi_vector.values, expected_multi_vector(ids).reshape(-1))


def _same(got: object, expected: "np.typing.NDArray[np.generic]") -> None:
    if not np.array_equal(np.array(got, expected.dtype), expected):
        raise WrongAnswerError("numbers differ")


def _compute(busy: threading.Event, _: TokenBatch) -> None:
    busy.wait(COMPUTE_S)


async def unary(stub: "EmbeddingServiceAsyncStub", random: Random, outcomes: Counter[str]) -> None:
    """One request: left alone, cancelled after a while, or with a short deadline."""
    request = make_request(random)
    fate = random.choices(("left alone", "cancelled", "deadline"), (6, 2, 2))[0]
    call = stub.Embed(request, timeout=random.uniform(0.001, 0.05) if fate == "deadline" else None)
    if fate == "cancelled":
        asyncio.get_running_loop().call_later(random.uniform(0, 0.05), call.cancel)
    try:
        response = await call
    except asyncio.CancelledError:
        if fate != "cancelled":
            raise
        outcomes["cancelled"] += 1
    except grpc.aio.AioRpcError as error:
        # A deadline that cannot be met is refused at once, one that passes ends the call.
        if fate != "deadline" or error.code() not in _LATE:
            raise
        outcomes["past its deadline"] += 1
    else:
        check(request, list(response.embeddings))
        outcomes["answered"] += 1


async def stream(stub: "EmbeddingServiceAsyncStub", random: Random, outcomes: Counter[str]) -> None:
    """One stream of several requests: left alone, or cancelled after a while."""
    requests = {str(number): make_request(random) for number in range(MESSAGES_PER_STREAM)}

    async def messages() -> AsyncIterator[pb.EmbedStreamRequest]:
        for name, request in requests.items():
            yield pb.EmbedStreamRequest(id=name, request=request)

    fate = random.choices(("left alone", "cancelled"), (7, 3))[0]
    call = stub.EmbedStream(messages())
    if fate == "cancelled":
        asyncio.get_running_loop().call_later(random.uniform(0, 0.05), call.cancel)
    answers: dict[str, list[pb.Embedding]] = {name: [] for name in requests}
    try:
        async for message in call:
            if message.HasField("error"):
                raise WrongAnswerError(message.error.message)
            answers[message.id].extend(message.response.embeddings)
            if message.final:
                check(requests[message.id], answers[message.id])
                outcomes["answered"] += 1
    except asyncio.CancelledError:
        if fate != "cancelled":
            raise
        outcomes["stream cancelled"] += 1


async def run(requests: int, seed: int) -> bool:
    """The whole run; whether everything was as it must be."""
    configure_logs("warning", "text")
    random = Random(seed)  # noqa: S311 - chaos, not secrets
    # The engine takes its time, so that there is a queue to be cancelled out of.
    busy = threading.Event()
    script = Script(before_run=partial(_compute, busy))
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        repository = make_repository(Path(folder) / "models", config=_CONFIG)
        async with running_server(repository, script) as server:
            before = asyncio.all_tasks()
            stub = EmbeddingServiceStub(server.channel)
            slots = asyncio.Semaphore(IN_FLIGHT)

            async def one(number: int) -> None:
                async with slots:
                    if number % 16 == 0:
                        await stream(stub, random, outcomes)
                    else:
                        await unary(stub, random, outcomes)

            streams = -(-requests // (15 + MESSAGES_PER_STREAM))
            results = await asyncio.gather(*(one(number) for number in range(streams * 16)), return_exceptions=True)
            failures = Counter(f"{type(r).__name__}: {r}"[:200] for r in results if isinstance(r, BaseException))
            left = await leftovers(server, before, busy)
    print(f"requests {streams * (15 + MESSAGES_PER_STREAM)}")
    for name, count in sorted(outcomes.items()):
        print(f"  {name}: {count}")
    for failure, count in failures.items():
        print(f"  WRONG {count} x {failure}")
    for name, count in left.items():
        print(f"{name} {count}")
    print(f"wrong_answers {sum(failures.values())}")
    return not failures and not any(left.values())


async def leftovers(
    server: RunningServer, before: set["asyncio.Task[object]"], busy: threading.Event
) -> dict[str, int]:
    """What is left in the server once its own tasks for ended calls have had their turns."""
    pipeline = server.registry.resolve("", 0).pipeline
    tasks: set[asyncio.Task[object]] = set()
    for _ in range(_LEFTOVER_LOOKS):
        # One task of gRPC's own always waits for the next call.
        tasks = {task for task in asyncio.all_tasks() - before if "AioServer._request_call" not in repr(task)}
        tasks -= {asyncio.current_task()}
        if not (tasks or pipeline.pending_requests or pipeline.queued_tokens):
            break
        # The engine's current batch and the handlers of ended calls have to come to their ends.
        await asyncio.wait(tasks or {asyncio.create_task(asyncio.to_thread(busy.wait, COMPUTE_S))}, timeout=COMPUTE_S)
    for task in tasks:
        print(f"left: {task}")
    return {
        "requests_left": pipeline.pending_requests,
        "queued_tokens_left": pipeline.queued_tokens,
        "tasks_left": len(tasks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    sys.exit(0 if asyncio.run(run(arguments.requests, arguments.seed)) else 1)


if __name__ == "__main__":
    main()
