"""Messages at a whole server in this process, several at a time, over real connections."""

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from inference import grpc_service_pb2 as kserve
from trivec.v1 import embedding_pb2 as pb
from trivec_server.logs import LogSettings, set_log_settings
from trivec_server.settings import ControlMode, ServeSettings

from tests.fuzz.examples import examples
from tests.fuzz.subjects import KEPT, METHODS, REGION, REGION_BYTES, WORDS, Method
from tests.fuzz.watching import Watch, watching
from tests.fuzz.wire_messages import Messages
from tests.rpc import inference_server as infer
from tests.rpc.inference_server import InferenceServer, inference_server
from tests.rpc.running_server import until
from tests.scripted_engine import Script, expected_dense
from tests.scripted_tensors import TensorScript, identity, sum_and_difference
from tests.small_repository import make_repository

PATIENCE_S = 30.0
"""A call that takes longer hangs."""
AT_ONCE = 16
"""Calls in an example, on average."""
_EXPECTED = frozenset(
    {
        *(grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND),
        *(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE),
        *(grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.DEADLINE_EXCEEDED),
    }
)
_TRITONS_INTERNAL = re.compile(
    r"failed to load '|Unable to open shared memory|Invalid shared memory region|shared memory size specified"
    r"|\d+ shared memory regions are registered"
)
"""Triton answers these faults of a caller with INTERNAL, and so does Trivec."""
_UNEXPECTED = "internal error"


@dataclass(frozen=True)
class UnaryCase:
    """One call."""

    method: Method
    raw: bytes


@dataclass(frozen=True)
class StreamCase:
    """One stream of several messages."""

    method: Method
    messages: tuple[bytes, ...]


Case = UnaryCase | StreamCase


@dataclass
class FuzzedServer:
    """A server, and what it has answered: `cases` messages, `codes` by status."""

    server: InferenceServer
    watch: Watch
    shares_memory: bool = False
    cases: int = 0
    codes: dict[str, int] = field(default_factory=dict)

    async def send(self, batch: Sequence[Case]) -> None:
        """Sends all at once, and checks each answer."""
        if self.shares_memory:
            await self._register_region()
        await asyncio.gather(*map(self._send, batch))
        # Forgotten at once, so that a smaller case is not blamed for them.
        faults = self.watch.take()
        assert not faults, faults

    async def _send(self, case: Case) -> None:
        if isinstance(case, UnaryCase):
            self.cases += 1
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.server.channel.unary_unary(case.method.path)
            call = unary(case.raw, timeout=PATIENCE_S)
            self._check(case, await call.code(), await call.details())
            return
        self.cases += len(case.messages)
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self.server.channel.stream_stream(case.method.path)
        stream = method(_each(case.messages), timeout=PATIENCE_S)
        try:
            async for answer in stream:
                assert _UNEXPECTED not in _error_in(answer), f"{_error_in(answer)}: {case}"
        except grpc.aio.AioRpcError:
            # The status is looked at below.
            pass
        self._check(case, await stream.code(), await stream.details())

    async def _register_region(self) -> None:
        """Again, as the calls before may have taken it back."""
        request = kserve.SystemSharedMemoryRegisterRequest(name=KEPT, key=f"/{REGION}", byte_size=REGION_BYTES)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self.server.send("SystemSharedMemoryRegister", request.SerializeToString())

    async def load(self) -> None:
        """Loads the model again, with its own configuration."""
        for method in ("Unload", "Load"):
            request = kserve.RepositoryModelLoadRequest(model_name="small")
            await self.server.send(f"RepositoryModel{method}", request.SerializeToString())

    async def check_health(self) -> None:
        """Whether it serves, computes rightly, and has nothing left of what was sent."""
        check = health_pb2_grpc.HealthStub(self.server.channel).Check
        assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        answer = await self.server.embedding_stub.Embed(pb.EmbedRequest(model="small", texts=["w10"]))
        assert np.allclose(answer.embeddings[0].dense.values, expected_dense([0, 10, 2]), atol=1e-6)
        response = await self.server.infer(infer.floats([1, 2, 3]))
        assert infer.output(response, "total").tolist() == [[6]]
        for model in ("small", *(key.name for key in self.server.tensors)):
            await self._until_idle(model)

    async def _until_idle(self, model: str) -> None:
        running = self.server.running
        await until(
            lambda: not running.metric("trivec_pending_requests", model=model, version="1"),
            f"requests of {model} are left",
        )

    def _check(self, case: Case, code: grpc.StatusCode, details: str | None) -> None:
        self.codes[code.name] = self.codes.get(code.name, 0) + 1
        said = details or ""
        if code is grpc.StatusCode.INTERNAL and _TRITONS_INTERNAL.match(said):
            return
        assert code in _EXPECTED, f"{code.name}: {said}: {case}"
        assert "Deadline Exceeded" not in said, f"it hangs: {case}"
        assert "\n" not in said, f"{said!r}: {case}"


async def _each(messages: tuple[bytes, ...]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


def _error_in(answer: bytes) -> str:
    """The error in a message of either stream; empty: none."""
    try:
        return str(pb.EmbedStreamResponse.FromString(answer).error.message)
    except DecodeError:
        return kserve.ModelStreamInferResponse.FromString(answer).error_message


def _cases(methods: Sequence[Method]) -> st.SearchStrategy[Case]:
    messages = Messages(WORDS)

    def of(method: Method) -> st.SearchStrategy[Case]:
        raw = messages.cases(method.message, method.samples)
        if method.is_stream:
            return st.lists(raw, min_size=1, max_size=6).map(lambda each: StreamCase(method, tuple(each)))
        return raw.map(lambda each: UnaryCase(method, each))

    # Those with much in them come more often.
    return st.one_of(*(of(method) for method in methods for _ in range(len(method.samples))))


@contextmanager
def fuzzed_server(settings: ServeSettings) -> Iterator[tuple[FuzzedServer, asyncio.Runner]]:
    """Serves embeddings and tensors while the block runs; then looks whether the server is as well as before."""
    region = Path("/dev/shm") / REGION  # noqa: S108 - where POSIX shared memory lies
    tensors = {
        "floats": TensorScript(),
        "pair": TensorScript(sum_and_difference(4, optional=True)),
        "bytes": TensorScript(identity("BYTES")),
    }
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner, watching() as watch:
        watch.watch_loop(runner.get_loop())
        region.write_bytes(bytes(REGION_BYTES))
        stack = AsyncExitStack()
        serving = inference_server(make_repository(Path(directory)), Script(), tensors, settings=settings)
        try:
            server = FuzzedServer(runner.run(stack.enter_async_context(serving)), watch, settings.allow_client_shm)
            yield server, runner
            runner.run(server.check_health())
        finally:
            runner.run(stack.aclose())
            set_log_settings(LogSettings())
            region.unlink()
        assert not watch.faults, watch.faults


def fuzz_calls(cases: int) -> FuzzedServer:
    """Every RPC of both services."""
    with fuzzed_server(ServeSettings(allow_client_shm=True)) as (server, runner):

        @examples(cases // AT_ONCE)
        @given(st.lists(_cases(METHODS), min_size=AT_ONCE // 2, max_size=AT_ONCE * 3 // 2))
        def send(batch: list[Case]) -> None:
            runner.run(server.send(batch))

        send()
    return server


def fuzz_loads(cases: int) -> FuzzedServer:
    """Models loaded and unloaded by calls, with configurations that nobody wrote."""
    methods = [method for method in METHODS if "/Repository" in method.path or method.path.endswith("/ModelConfig")]
    with fuzzed_server(ServeSettings(model_control_mode=ControlMode.EXPLICIT, load_models=("*",))) as (server, runner):

        @examples(cases // AT_ONCE)
        @given(st.lists(_cases(methods), min_size=AT_ONCE // 2, max_size=AT_ONCE * 3 // 2))
        def send(batch: list[Case]) -> None:
            runner.run(server.send(batch))

        send()
        runner.run(server.load())
    return server
